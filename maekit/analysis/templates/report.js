"use strict";

// The slider: 0 masked, 1 reconstructed, 2 original; the style sheet fades by --place.
const slider = document.querySelector(".slider input");
function place(value) {
  slider.value = value;
  document.documentElement.style.setProperty("--place", value);
  for (const button of document.querySelectorAll("[data-place]"))
    button.setAttribute("aria-pressed", Math.abs(button.dataset.place - value) < 0.01);
}
if (slider) {
  slider.addEventListener("input", () => place(slider.value));
  for (const button of document.querySelectorAll("[data-place]"))
    button.addEventListener("click", () => place(button.dataset.place));
  place(slider.value);
}

for (const button of document.querySelectorAll(".copy"))
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(code);  // to be copied by hand
    }
  });

// The plot's library is in the page, packed; a script that the page's security policy names by its hash.
async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), c => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
function colours() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const layout = { "font.color": ink, "font.family": getComputedStyle(document.body).fontFamily };
  for (const axis of ["xaxis", "yaxis"]) {
    layout[`${axis}.gridcolor`] = line;
    layout[`${axis}.linecolor`] = line;
  }
  return layout;
}

async function draw() {
  const holder = document.querySelector(".plot"), stored = document.getElementById("plot-data");
  if (!stored) return;
  const script = document.createElement("script");
  script.textContent = await unpack("plot-library");
  document.head.append(script);

  const { data, layout, views } = JSON.parse(stored.textContent);
  const black = data.map(trace => trace.line && trace.line.color === "#000000");
  holder.replaceChildren();
  const narrow = holder.clientWidth < 640;
  const names = data.filter(trace => trace.showlegend !== false).length;
  const height = layout.height + (narrow ? 12 * names : 0);
  await Plotly.newPlot(holder, data, { ...layout, height, dragmode: narrow ? false : "zoom" },
    { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d"] });
  const repaint = () => {
    const blacks = black.flatMap((yes, i) => yes ? [i] : []);
    const restyled = blacks.length ? { "line.color": dark.matches ? "#ffffff" : "#000000" } : {};
    return Plotly.update(holder, restyled, colours(), blacks.length ? blacks : undefined);
  };
  await repaint();
  dark.addEventListener("change", repaint);

  const buttons = document.querySelector(".views");
  if (views.length < 2) return;
  buttons.hidden = false;
  for (const view of views) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = view.label;
    button.setAttribute("aria-pressed", view === views[0]);
    button.addEventListener("click", async () => {
      await Plotly.update(holder, view.restyle, view.relayout);
      for (const other of buttons.children) other.setAttribute("aria-pressed", other === button);
    });
    buttons.append(button);
  }
}
draw().catch(error => {
  const said = document.createElement("p");
  said.textContent = `The plot cannot be drawn here (${error.message}). The figures below show the same.`;
  document.querySelector(".plot").replaceChildren(said);
});
