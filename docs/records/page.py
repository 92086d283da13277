"""docs/results.md and what the README says of results, printed from the records."""

import re
import textwrap
import traceback

from . import numbers, record, reproduce, tables

FILTERS = (numbers.fixed, numbers.listed, numbers.span, numbers.thousands, tables.signed)
CANNOT = "*What it does not show:*"
PRINTED = re.compile(
    r"(<!-- (\w+): printed by docs/results.py -->\n\n)((?:(?!<!-- end -->).)*)(<!-- end -->)", re.DOTALL
)


def printed(kit=record.KIT):
    """{path: text} of both pages."""
    readme, folder = kit / "README.md", kit / "docs" / "results"
    return {
        kit / "docs" / "results.md": results(folder),
        readme: in_readme(readme.read_text(encoding="utf-8"), folder),
    }


def results(folder=record.RESULTS):
    """The text of docs/results.md."""
    known = [record.read(name, folder) for name in record.names(folder)]
    return _rendered(folder, "page.md", records=[written(of) for of in known if of.taken]).rstrip() + "\n"


def in_readme(text, folder=record.RESULTS):
    """The text of the README with what stands between marks printed anew, each from the template in docs/results that the mark
    names."""

    def anew(found):
        return f"{found[1]}{reflowed(_rendered(folder, f'{found[2]}.md'))}\n\n{found[4]}"

    return PRINTED.sub(anew, text)


def written(of):
    """A record as the page has it: {"record", "anchor", "claim": its first paragraph, "text": the rest, "made": how, as rows}."""
    text = reflowed(_rendered(of.results, f"{of.name}/text.md", **_of_record(of)))
    claim, _, rest = text.partition("\n\n")
    if CANNOT not in rest:
        raise ValueError(f"{of.name}/text.md does not say what it does not show: {CANNOT}")
    return {"record": of, "anchor": anchor(of.title), "claim": claim, "text": rest, "made": made(of)}


def reflowed(text, width=120):
    """Markdown with its paragraphs and items of lists broken anew; tables, pictures and blocks of code as they are."""
    parts = re.split(r"(^```.*?^```$)", text.strip(), flags=re.MULTILINE | re.DOTALL)
    return "\n\n".join(_paragraphs(part, width) for part in parts if part.strip())


def _paragraphs(text, width):
    if text.startswith("```"):
        return text
    blocks = re.split(r"\n\s*\n", text.strip())
    broken = [re.sub(" +$", "", b, flags=re.MULTILINE) if b[0] in "|<!" else _items(b, width) for b in blocks]
    return "\n\n".join(broken)


def _items(block, width):
    items = re.split(r"\n(?=- )", block)
    how = {"width": width, "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(
        textwrap.fill(" ".join(it.split()), **how, subsequent_indent="  " * it.startswith("- ")) for it in items
    )


def made(of):
    """[(what, text)]: data, runs, time, machine, versions and commit of a record, its files, its check."""
    about, where = of.about, f"results/{of.name}"
    seeds = numbers.listed(about["seeds"])
    ran = f"{about['runs']}" + (f", {about['diverged']} of them diverged" if about["diverged"] else "")
    ran += f", and {about['evaluations']} evaluations" if about["evaluations"] else ""
    together = f", {about['at_a_time']} at a time" if about["at_a_time"] > 1 else ""
    rows = ["runs.csv", *(["epochs.csv"] if of.by_epoch else []), *of.copied]
    return [
        ("data", of.measured_on["what"]),
        ("runs", f"{ran}; seeds {seeds}"),
        ("time", f"{numbers.span(about['seconds'])}{together}, {numbers.listed(about['machines'])}"),
        ("kit", f"commit {numbers.listed(about['commits'])}"),
        ("versions", "; ".join(about["versions"])),
        ("files", ", ".join(f"[{name}]({where}/{name})" for name in rows)),
        ("again", f"`docs/reproduce.sh {of.name}`, then `--check`: {reproduce.tolerated(of)}"),
    ]


def anchor(title):
    """What GitHub makes the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def _of_record(of):
    """What the template of a record may ask for."""
    return {
        "about": of.about,
        "runs": numbers.Rows(of.rows),
        "epochs": numbers.Rows(of.epochs),
        "file": of.file,
        "methods_table": lambda columns, **how: tables.of_methods(of, columns, **how),
        "accuracies_table": lambda *names: tables.accuracies(of, *names),
        "rates_table": lambda: tables.by_rate(of),
        "sizes_table": lambda: tables.by_size(of),
        "matched_table": lambda: tables.matched(of),
        "last_epochs_table": lambda: tables.last_epochs(of),
    }


def _rendered(folder, name, **known):
    """The text of a template. Raises NotBorneOut, with the line, where a sentence is stronger than the numbers."""
    try:
        return _template(folder, name).render(known)
    except numbers.NotBorneOut as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(name)]
        raise numbers.NotBorneOut(f"docs/results/{name}, line {lines[-1]}: {error}") from None


def _template(folder, name):
    import jinja2

    made_by = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made_by.filters |= {of.__name__: of for of in FILTERS}
    made_by.globals |= {
        "given": numbers.given,
        "minus": numbers.minus,
        "share": numbers.share,
        "known": numbers.Difference.known,
        "by_seed": numbers.Difference.of,
        "of": lambda name: _of_record(record.read(name, folder)),
        "PIXELS": tables.PIXELS,
    }
    return made_by.get_template(name)
