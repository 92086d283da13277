"""report.html of both analyses: what it says, what it holds, and how it behaves in a real browser."""

import csv
import html.parser
import json
import re
import shutil
import statistics
import sys

import pytest

from maekit import files
from maekit.analysis import comparison_report, gap_report, report
from tests.support import KIT, analyse_here, browser, run, train_here
from tests.support.runs import write_trajectory

pytestmark = pytest.mark.slow

QUICK = ("--demo", "--epochs", "2", "--max_images", "32", "--batch_size", "16", "--num_workers", "0")
RUNS = {  # method: flags
    "LayerNorm": ("--norm", "ln"),
    "AdaptiveDynamicTanh": ("--norm", "adyt", "--adyt_lambda", "2.2"),  # so that some layers reach the bound
    "DynamicTanh-alpha2.0": ("--norm", "dyt", "--dyt_alpha_init", "2.0"),
}
T_975 = 4.302653  # Student's t, 2 degrees of freedom, from a table
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"

needs_browser = pytest.mark.skipif(
    browser.find() is None,
    reason="NOT TESTED: there is no chromium here to open the report in (apt-get install chromium)",
)


def analyse(*words, check=0, **options):
    if options:
        return run(sys.executable, KIT / "analysis.py", *words, check=check, **options)
    return analyse_here(*words, check=check)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Three methods by three seeds, analysed."""
    root = tmp_path_factory.mktemp("comparison")
    for method, flags in RUNS.items():
        for seed in range(3):
            words = [*QUICK, *flags, "--seed", str(seed), "--output_dir", str(root / method / f"seed{seed}")]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["train.py", *words])
                train_here(*words, check=0)
    return root, analyse("comparison", "--output_dir", root).stdout


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three alphas by two norms, trajectories alone, analysed."""
    root = tmp_path_factory.mktemp("sweep")
    for alpha in (-0.5, 0.0, 0.5):
        for norm in ("LayerNorm", "DynamicTanh"):
            write_trajectory(root / "runs", alpha, norm=norm)
    write_trajectory(root / "runs", -10.0, epochs=2, status="diverged")
    analyse_here(
        "gap", "--log_dir", root / "runs", "--output_dir", root / "analysis", "--accuracy", "frozen", check=0, draw=True
    )
    return root


class Reader(html.parser.HTMLParser):
    """What a page holds: text of elements, rows of tables by their heading, links, scripts that run."""

    def __init__(self, path):
        super().__init__()
        self.items, self.tables, self.links, self.scripts, self.attributes = [], {}, [], 0, []
        self.heading, self.last, self.text = "", "", ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.attributes += attributes
        if tag == "script" and "type" not in attributes:
            self.scripts += 1
        self.links += [attributes["href"]] if tag == "a" else []
        if tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        self.last = tag
        self.text = self.text if tag in ("a", "b", "code") else ""

    def handle_data(self, data):
        self.text += data if self.last not in ("script", "style") else ""

    def handle_endtag(self, tag):
        if tag in ("h2", "h3"):
            self.heading = self.text.strip()
        elif tag in ("th", "td"):
            self.tables[self.heading][-1].append(self.text)
        elif tag in ("li", "p", "pre", "code", "dd"):
            self.items.append(self.text.strip())


def logged(root, method, column):
    """A column of log.csv of three seeds, by the csv module alone: a list of floats each."""
    rows = []
    for seed in range(3):
        with open(root / method / f"seed{seed}" / "log.csv", newline="") as f:
            rows.append([float(row[column]) for row in csv.DictReader(f)])
    return rows


def interval(values):
    """(mean, low, high) by the statistics module and a table."""
    mean, half = statistics.mean(values), T_975 * statistics.stdev(values) / 3**0.5
    return mean, mean - half, mean + half


def same(text, value):
    """Whether a printed number is the value, rounded as it is printed."""
    return abs(float(text) - value) <= 0.5001 * 10 ** -len(text.partition(".")[2])


def test_the_table_of_methods_says_what_the_logs_say(comparison):
    root, _ = comparison
    head, *rows = Reader(root / "report.html").tables["Methods"]
    found = {row[0]: row for row in rows}
    assert list(found)[:3] == ["LayerNorm", "DynamicTanh-alpha2.0", "AdaptiveDynamicTanh"]
    for method in RUNS:
        assert found[method][1] == "3"
        for column, label in (
            ("val_mse", "validation loss"),
            ("train_loss", "training loss"),
            ("epoch_time_s", "training time per epoch (s)"),
        ):
            logs = logged(root, method, column)
            values = [statistics.mean(log) if column == "epoch_time_s" else log[-1] for log in logs]
            numbers = re.findall(r"-?\d+\.?\d*", found[method][head.index(label)])
            assert all(same(text, value) for text, value in zip(numbers, interval(values), strict=True)), (
                method,
                label,
            )


def test_the_sentences_and_differences_say_what_the_logs_say(comparison):
    root, out = comparison
    page = Reader(root / "report.html")
    head, *rows = page.tables["Differences to LayerNorm, paired by seed"]
    reference = logged(root, "LayerNorm", "val_mse")
    for method in ("AdaptiveDynamicTanh", "DynamicTanh-alpha2.0"):
        differences = [mine[-1] - theirs[-1] for mine, theirs in zip(logged(root, method, "val_mse"), reference)]
        mean, low, high = interval(differences)
        sentence = next(item for item in page.items if item.startswith(f"{method} ended ") and " LayerNorm in " in item)
        assert sentence in out
        size, word, first, second = re.search(
            r"ended (\S+) (above|below) LayerNorm .*95 % interval (?:goes from )?(\S+)(?: below)? to (\S+?)(?: above|,)",
            sentence,
        ).groups()
        assert word == ("above" if mean >= 0 else "below") and same(size, abs(mean)) and "3 seeds)" in sentence
        ends = sorted((abs(low), abs(high))) if low * high > 0 else (-low, high)
        assert same(first, ends[0]) and same(second, ends[1])
        assert ("do not show which" in sentence) == (low <= 0 <= high)
        cell = next(row for row in rows if row[0] == method)[head.index("validation loss")]
        numbers = re.findall(r"[-+]?\d+\.?\d*", cell)
        assert all(same(text, value) for text, value in zip(numbers, (mean, low, high), strict=True))


def test_speed_and_saturation_say_what_the_logs_say(comparison):
    root, _ = comparison
    page = Reader(root / "report.html")
    goals = [log[-1] for log in logged(root, "LayerNorm", "val_mse")]
    _, *rows = page.tables["Time to the final loss of LayerNorm"]
    for method in RUNS:
        first = [
            next((i + 1 for i, loss in enumerate(log) if loss <= goal), None)
            for log, goal in zip(logged(root, method, "val_mse"), goals)
        ]
        row = next(row for row in rows if row[0] == method)
        assert row[1] == f"{sum(epoch is not None for epoch in first)} of 3"
        assert row[2] == "–" if None in first else same(row[2].split()[0], statistics.mean(first))
    _, row = page.tables["Saturation over time"]
    shares = [statistics.mean(at) for at in zip(*logged(root, "AdaptiveDynamicTanh", "norm_alpha_saturated"))]
    assert any(shares)
    assert row == ["AdaptiveDynamicTanh", *(f"{100 * share:.0f} %" for share in shares)]
    answer = [item for item in page.items if item.startswith("Does AdaptiveDynamicTanh adapt")]
    assert len(answer) == 1 and "cannot tell" not in answer[0]  # the control run is there


def test_a_difference_that_every_seed_shows_alike_is_no_zero():
    alike = {"differences": {}, "mean": -0.03, "low": -0.03, "high": -0.03, "n": 3, "note": None}
    assert comparison_report.signed(alike) == "-0.030\n-0.030 to -0.030"


def test_statistics_are_kept_as_a_file(comparison):
    known = json.loads((comparison[0] / "comparison_statistics.json").read_text())
    assert known["n"] == dict.fromkeys(known["n"], 3) and set(known["n"]) == set(RUNS)
    assert known["differences"]["val_mse"]["AdaptiveDynamicTanh"]["low"] is not None


def test_a_page_says_how_each_run_came_about_and_links_it(comparison):
    root, _ = comparison
    page = Reader(root / "report.html")
    assert "LayerNorm/seed0" in page.links and "DynamicTanh-alpha2.0/seed2/log.csv" in page.links
    assert all((root / link).exists() for link in page.links if not link.startswith("#"))
    command = next(item for item in page.items if item.startswith("python ") and "DynamicTanh-alpha2.0/seed1" in item)
    assert "--dyt_alpha_init 2.0" in command and "--seed 1" in command
    text = (root / "report.html").read_text(encoding="utf-8")
    config = json.loads((root / "LayerNorm/seed0/config.json").read_text())
    for fact in (config["versions"]["torch"], config["git_commit"], config["hardware"], config["data"]["fingerprint"]):
        assert str(fact) in text
    assert "patch 8; encoder 64 wide, 2 blocks, 4 heads; decoder 128 wide, 1 block, 8 heads" in text
    assert len(text) < 10e6 and "Every run ended, none diverged or failed." in page.items
    assert not re.search(r'(src|href)="(https?:)?//', text)


def test_one_seed_is_said_to_have_no_interval(comparison, tmp_path):
    for method in RUNS:
        shutil.copytree(comparison[0] / method / "seed0", tmp_path / method / "seed0")
    out = analyse_here("comparison", "--output_dir", tmp_path, check=0).stdout
    page = Reader(tmp_path / "report.html")
    assert any(
        item.startswith(
            "Too few finished seeds for an interval, which takes 3: LayerNorm (1), DynamicTanh-alpha2.0 (1)"
        )
        for item in page.items
    )
    assert "in validation loss (1 seed, so no interval, which takes 3: --seeds)." in out
    assert not any(" 95 % interval " in item for item in page.items if " ended " in item)
    assert any("No intervals: they need 3 seeds" in item for item in page.items)


def test_every_figure_has_a_caption_and_one_without_is_shown_all_the_same(comparison, sweep):
    for page in (comparison[0] / "report.html", sweep / "analysis/report.html"):
        drawn = {f.stem for f in page.parent.glob("*.png") if not f.stem.endswith("_column")}
        shown = dict(re.findall(r"<figcaption><b>(\S+)</b> (.*)</figcaption>", page.read_text(encoding="utf-8")))
        assert set(shown) == drawn and all(len(caption) > 40 for caption in shown.values())
    names = ["new_figure", "loss_comparison"]
    assert report.in_order(names, comparison_report.CAPTIONS) == {
        "loss_comparison": "loss_comparison",
        "new_figure": None,
    }
    assert list(gap_report.captions(["new_frozen", "mse_over_epochs"])) == ["mse_over_epochs", "new_frozen"]


def test_names_paths_and_errors_are_shown_as_text(comparison, tmp_path):
    root = tmp_path / EVIL.replace("/", "∕").replace("alert(1)", "alert(0)")
    for name in ("seed0", EVIL.partition("/")[0]):
        shutil.copytree(comparison[0] / "LayerNorm/seed0", root / name / "run")
    failed = root / "failed" / EVIL.partition("/")[0]
    shutil.copytree(comparison[0] / "LayerNorm/seed1", failed)
    (failed / "summary.json").unlink()
    files.write_json(failed / "status.json", {"status": "failed", "error": f"InputError: {EVIL}</pre>"})
    config = json.loads((failed / "config.json").read_text())
    config["hardware"] = config["git_commit"] = EVIL
    files.write_json(failed / "config.json", {**config, "command": ["train.py", "--output_dir", EVIL]})
    (root / "typed.txt").write_text(f"./run_comparison.sh --output_dir '{EVIL}'\n")
    analyse("comparison", "--output_dir", root)
    page = Reader(root / "report.html")
    assert page.scripts == 1 and "onerror" not in page.attributes
    shown = "\n".join(page.items)
    assert shown.count(EVIL) >= 4, shown  # the error, the hardware, the commit, what was typed
    if browser.find():
        with browser.opened() as tab:
            tab.open(root / "report.html")
            tab.wait("document.querySelectorAll('.plot .legendtext').length > 0")
            assert not tab.errors and tab.value("document.querySelectorAll('img[src=x]').length") == 0


def test_runs_that_failed_diverged_or_never_started_are_listed(comparison, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(comparison[0] / "LayerNorm/seed0", root / "LayerNorm/seed0")
    shutil.copytree(comparison[0] / "LayerNorm/seed1", root / "LayerNorm/seed1")
    summary = json.loads((root / "LayerNorm/seed1/summary.json").read_text())
    files.write_json(root / "LayerNorm/seed1/summary.json", {**summary, "status": "diverged"})
    (root / "RMSNorm/seed0").mkdir(parents=True)
    files.write_json(root / "RMSNorm/seed0/status.json", {"status": "failed", "error": "out of memory"})
    (root / "commands.txt").write_text(f"python train.py --output_dir {root}/DynamicErf/seed0\n")
    analyse("comparison", "--output_dir", root)
    shown = Reader(root / "report.html").items
    assert "diverged LayerNorm/seed1: after 2 epochs" in shown and "failed RMSNorm/seed0: out of memory" in shown
    assert "never started DynamicErf/seed0" in shown


def test_without_plotly_there_is_a_line_and_everything_but_the_plot(comparison, tmp_path):
    shutil.copytree(comparison[0] / "LayerNorm/seed0", tmp_path / "runs/LayerNorm/seed0")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['plotly'] = None\n")
    result = analyse("comparison", "--output_dir", tmp_path / "runs", env={"PYTHONPATH": str(tmp_path)})
    line = "note: package plotly is not installed, so the report has no interactive plot: pip install plotly."
    assert line in result.stdout.splitlines() and not result.stderr
    text = (tmp_path / "runs/report.html").read_text(encoding="utf-8")
    assert 'id="plot-library"' not in text and "package plotly is not installed" in text and "loss_comparison" in text
    assert (tmp_path / "runs/loss_comparison.pdf").exists() and (tmp_path / "runs/comparison_table.csv").exists()


def test_open_opens_the_report_and_torch_is_not_imported(comparison, tmp_path):
    """BROWSER is what Python's webbrowser starts."""
    (tmp_path / "see").write_text('#!/bin/sh\necho "$1" > "$0.out"\n')
    (tmp_path / "see").chmod(0o755)
    root = shutil.copytree(comparison[0] / "LayerNorm/seed0", tmp_path / "a run/seed0").parent
    code = (
        f"import sys, analysis; analysis.main(['comparison', '--output_dir', {str(root)!r}, '--open']); "
        "sys.exit('torch' in sys.modules)"
    )
    run(sys.executable, "-c", code, check=0, env={"BROWSER": f"{tmp_path}/see %s"})
    assert (tmp_path / "see.out").read_text().strip() == (root / "report.html").as_uri()


def test_a_sweeps_page_has_its_findings_and_links_its_runs(sweep):
    page = Reader(sweep / "analysis/report.html")
    known = json.loads((sweep / "analysis/gap_statistics_frozen.json").read_text())
    frozen = next(item for item in page.items if item.startswith("frozen probe: "))
    assert f"Γ = {known['reconstruction_gap']:.1f} percentage points" in frozen and "untrained encoder has " in frozen
    assert "diverged -10.0/LayerNorm_lr0.00015_seed0: 2 finite epochs" in page.items
    assert len(page.tables["Last epochs"]) == 1 + 7
    links = [link for link in page.links if "_seed0" in link]
    assert len(links) >= 7 and all((sweep / "analysis" / link).is_dir() for link in links)


@needs_browser
@pytest.mark.parametrize("which", ["comparison", "sweep"])
def test_in_a_browser_slider_and_plot_answer_and_no_network_is_asked(which, comparison, sweep):
    path = comparison[0] / "report.html" if which == "comparison" else sweep / "analysis/report.html"
    with browser.opened() as page:
        for width, dark in ((1280, False), (390, True)):
            page.open(path, width, dark)
            page.wait("document.querySelectorAll('.plot .legendtext').length > 0")
            assert page.value("document.documentElement.scrollWidth") <= width  # nothing sticks out
            shown = "document.querySelectorAll('.plot .scatterlayer .trace .point').length"
            before = page.value(shown)
            page.click(".plot .legendtoggle")
            page.wait(f"{shown} < {before} && {shown} > 0")  # the first method, or alpha, is hidden
            if which == "comparison":
                first = page.value("document.querySelector('.plot').data.at(-1).y.join()")
                page.click(".views button:nth-child(2)")
                page.wait("document.querySelector('.views button:nth-child(2)').getAttribute('aria-pressed') == 'true'")
                assert page.value("document.querySelector('.plot').data.at(-1).y.join()") != first
            colour = page.value("getComputedStyle(document.body).backgroundColor")
            assert colour == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        if which == "comparison":
            opacity = "['.r', '.o'].map(c => +getComputedStyle(document.querySelector(`.cell ${c}`)).opacity).join()"
            assert page.value(opacity) == "1,0"
            for button, is_now in (("0", "0,0"), ("2", "1,1"), ("1", "1,0")):
                page.click(f".slider [data-place='{button}']")
                assert page.value(opacity) == is_now
            page.click(".slider input")  # its middle
            page.value("document.querySelector('.slider input').focus()")
            for kind in ("keyDown", "keyUp"):
                page.call(
                    "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
                )
            assert page.value("+document.querySelector('.slider input').value") > 1
            assert "0." in page.value(opacity).partition(",")[2]
        assert not page.errors, page.errors
        assert {address.partition(":")[0] for address in page.requests} <= {"file", "data", "blob"}


@needs_browser
def test_the_browser_would_notice_errors_and_requests(tmp_path):
    (tmp_path / "bad.html").write_text(
        "<script>fetch('http://localhost:9/x').catch(() => 0); console.error('e'); null.x</script>"
    )
    with browser.opened() as page:
        page.open(tmp_path / "bad.html")
        page.wait("true")
        assert len(page.errors) >= 2 and any(address.startswith("http:") for address in page.requests)
