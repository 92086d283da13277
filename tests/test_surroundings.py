"""Wherever a program of the kit is started: in a notebook, in a container, after another program."""

import os
import stat
import sys

import pytest

from tests.support import KIT, run, train_here

DRAW = """
import sys
from pathlib import Path
from maekit import surroundings
surroundings.settle()
from maekit.analysis import figures
from matplotlib.figure import Figure

@figures.styled
def draw():
    figure = Figure(figsize=(2, 1))
    figure.subplots().set_title("one of 2_000")
    return figure

figures.save(draw(), Path(sys.argv[1]))
"""
PLACES = """
import os
from maekit import surroundings
surroundings.settle()
print(surroundings.caches(), os.path.expanduser("~"), os.environ.get("USER"))
surroundings.settle()
"""


def python(script, *words, cwd, without=(), **env):
    bare = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "MATPLOTLIBRC", "MPLCONFIGDIR", *without)}
    env = bare | {"PYTHONPATH": os.pathsep.join([str(KIT), *sys.path[1:]])} | env
    words = [sys.executable, "-P", "-c", script, *words]
    emptied = ["env", "-i", *(f"{k}={v}" for k, v in env.items())]
    return run(*emptied, *words, cwd=cwd, check=0)


@pytest.mark.slow
def test_figures_are_the_kits_whatever_matplotlib_is_set_to(tmp_path):
    for name in ("plain", "odd"):
        (tmp_path / name).mkdir()
    (tmp_path / "odd" / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\nsavefig.dpi: 7\n")
    python(DRAW, tmp_path / "plain.png", cwd=tmp_path / "plain")
    notebook = {"MPLBACKEND": "module://of_another_python.backend_inline"}
    odd = python(DRAW, tmp_path / "odd.png", cwd=tmp_path / "odd", **notebook)
    assert odd.stderr == ""
    assert (tmp_path / "odd.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_a_style_that_the_user_has_set_changes_no_figure(tmp_path):
    import matplotlib

    from maekit.analysis import figures

    sizes = []
    for size in (8, 30):
        with matplotlib.rc_context({"font.size": size, "text.usetex": size == 30, "axes.facecolor": "red"}):
            drawn = figures.styled(lambda: matplotlib.rcParams.copy())()
            sizes.append((drawn["font.size"], drawn["text.usetex"], drawn["axes.facecolor"]))
    assert sizes[0] == sizes[1]


CACHES = ("HOME", "XDG_CACHE_HOME", "MAEKIT_CACHE", "USER", "MAEKIT_TOLD_OF_CACHES", "TRITON_HOME")


def test_without_a_home_that_can_be_written_caches_have_a_place(tmp_path):
    result = python(PLACES, cwd=tmp_path, without=CACHES, HOME="/nonexistent", TMPDIR=str(tmp_path))
    own = tmp_path / f"maekit-{os.getuid()}"
    assert result.stdout.split()[:2] == [str(own / "maekit"), "/nonexistent"]
    assert result.stderr == f"no home folder that can be written: caches are in {own}.\n"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


@pytest.mark.parametrize("what", ["a link", "a file", "a link to nowhere"])
def test_a_temporary_folder_that_is_somebody_elses_is_not_used(what, tmp_path):
    own = tmp_path / f"maekit-{os.getuid()}"
    if what == "a file":
        own.touch()
    else:
        own.symlink_to("/etc" if what == "a link" else "/nowhere")
    result = python(PLACES, cwd=tmp_path, without=CACHES, HOME="/nonexistent", TMPDIR=str(tmp_path))
    place = result.stdout.split()[0]
    assert place.startswith(f"{tmp_path}/maekit-") and not place.startswith(str(own))


def test_caches_of_a_home_that_cannot_be_written_are_still_read(tmp_path):
    script = "import os; os.access = lambda place, mode: False\n" + PLACES
    (tmp_path / ".cache").mkdir()
    result = python(script, cwd=tmp_path, without=CACHES, HOME=str(tmp_path))
    assert result.stdout.split()[0] == f"{tmp_path}/.cache/maekit" and not result.stderr


def test_with_a_home_nothing_is_said_or_set(tmp_path):
    result = python(PLACES, cwd=tmp_path, without=CACHES, HOME=str(tmp_path))
    assert result.stdout.split()[:2] == [f"{tmp_path}/.cache/maekit", str(tmp_path)] and not result.stderr
    (tmp_path / "caches").mkdir()
    result = python(PLACES, cwd=tmp_path, without=CACHES, HOME=str(tmp_path), XDG_CACHE_HOME=f"{tmp_path}/caches")
    assert result.stdout.split()[0] == f"{tmp_path}/caches/maekit"


def test_names_that_the_terminal_has_no_letters_for_are_printed_all_the_same(tmp_path):
    script = "from maekit import errors; errors.exit_code(lambda: print('caf\\u00e9 \\udcff'))"
    result = python(script, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.stdout == "caf\\xe9 \\udcff\n"


@pytest.mark.parametrize(
    "left, said",
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set, but not RANK or MASTER_ADDR or MASTER_PORT"),
        ({"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "host"}, "WORLD_SIZE=4 is set, but not MASTER_PORT"),
        ({"WORLD_SIZE": "4", "RANK": "3"}, "WORLD_SIZE=4 is set, but not MASTER_ADDR or MASTER_PORT"),
        ({"WORLD_SIZE": "four", "RANK": "3"}, "WORLD_SIZE=four: is no number of a process"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE=four: is no number of a process"),
        (
            {"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "host", "MASTER_PORT": "1"},
            "RANK=-1: is no number of a process",
        ),
    ],
)
def test_what_another_program_has_left_of_several_processes_is_named(left, said, tmp_path, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    small = ("--model", "mae_vit_demo_patch8", "--input_size", 32, "--batch_size", 4, "--device", "cpu")
    result = train_here("--demo", *small, "--output_dir", tmp_path / "out", check=2)
    assert result.stderr.startswith(f"error: {said}") and result.stderr.count("\n") == 1


def test_the_number_of_a_process_counts_only_among_several(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    small = ("--model", "mae_vit_demo_patch8", "--input_size", 32, "--batch_size", 4, "--device", "cpu", "--epochs", 1)
    train_here("--demo", *small, "--max_images", 8, "--output_dir", tmp_path / "out", check=0)
    assert (tmp_path / "out" / "summary.json").exists()
