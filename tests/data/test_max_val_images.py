"""--max_val_images: which validation images a run with fewer of them has, and which runs are the same all the same."""

import json
import shlex
import sys

import numpy as np
import pytest
import torch

from maekit.data import sources
from maekit.data.sources import spread
from maekit.settings.parser import build_parser
from tests.support import KIT, run, train_here
from tests.support.commands import complaint, resolved

RUN = (
    "--demo",
    "--model",
    "enc32d1h2p8",
    "--decoder_type",
    "linear",
    "--input_size",
    32,
    "--max_images",
    16,
    "--batch_size",
    16,
)
RUN += ("--num_workers", 0, "--device", "cpu", "--cache", "off", "--epochs", 1, "--probes", "none")


@pytest.mark.parametrize(("n", "n_chosen"), [(200, 32), (50000, 500), (7, 7), (7, 6), (7, 1), (3925, 1000)])
def test_one_image_of_each_of_equal_parts_is_chosen(n, n_chosen):
    chosen = spread(n, n_chosen)
    edges = np.array([i * n // n_chosen for i in range(n_chosen + 1)])
    assert len(chosen) == n_chosen
    assert (chosen >= edges[:-1]).all() and (chosen < edges[1:]).all()
    np.testing.assert_array_equal(chosen, spread(n, n_chosen))


def test_classes_that_follow_each_other_have_their_shares():
    labels = np.repeat(np.arange(10), [390, 395, 357, 386, 409, 389, 393, 419, 399, 390])  # Imagenette's
    found = np.bincount(labels[spread(len(labels), 500)], minlength=10)
    np.testing.assert_allclose(found, np.bincount(labels) * 500 / len(labels), atol=1.5)


def test_it_is_not_the_first_of_every_part():
    starts = np.arange(500) * 100
    offsets = spread(50000, 500) - starts
    assert 40 < offsets.mean() < 60 and offsets.std() > 20


def test_of_who_says_nothing_it_is_as_many_as_training_images():
    for typed, found in (
        ([], None),
        (["--max_images", 16], 16),
        (["--max_images", 16, "--max_val_images", 8], 8),
        (["--max_images", 16, "--max_val_images", "all"], None),
        (["--max_val_images", 8], 8),
    ):
        data = resolved("--demo", *typed).data
        assert data.max_val_images == found, typed
        source = sources.open_source(data, 0)
        assert len(source.val) == min(found or 40, 40)  # of the demo as tests have it
        assert len(sources.open_source(data, 1).val) == len(source.val)


@pytest.mark.parametrize("value", ["0", "-3", "some", "1.5", ""])
def test_another_value_is_refused(value):
    assert "--max_val_images" in complaint("--demo", f"--max_val_images={value}")


def test_the_first_line_says_how_many_of_how_many(tmp_path):
    out = train_here(*RUN, "--output_dir", tmp_path / "few", check=0).stdout
    assert "16 of 40 (all with --max_val_images all) for validation" in out
    config = json.loads((tmp_path / "few/config.json").read_text())
    assert config["data"]["val_images"] == config["identity"]["max_val_images"] == 16
    out = train_here(*RUN, "--max_val_images", "all", "--output_dir", tmp_path / "all", check=0).stdout
    assert "10 classes, 40 for validation;" in out


def test_a_run_that_was_begun_on_all_images_goes_on_with_them(tmp_path):
    """As runs were before there was the flag."""
    train_here(*RUN, "--max_val_images", "all", "--output_dir", tmp_path, check=0)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["identity"]["max_val_images"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "nothing to do" in train_here(*RUN, "--output_dir", tmp_path, check=0).stdout
    error = train_here(*RUN, "--max_val_images", 8, "--output_dir", tmp_path, check=2).stderr
    assert "holds a run with --max_val_images all, this one has --max_val_images 8" in error


@pytest.mark.parametrize("driver", [[KIT / "run_comparison.sh"], [sys.executable, KIT / "maekit/drivers/windows.py"]])
@pytest.mark.parametrize("typed", ["", "--max_val_images 50", "--max_val_images=50"])
def test_several_numbers_of_training_images_are_validated_alike(driver, typed):
    words = ("--demo", "--methods", "ln", "--max_images", "32 64 all", "--eval", "knn", "--dry_run", *typed.split())
    commands = [shlex.split(line) for line in run(*driver, *words, check=0).stdout.splitlines()]
    assert len(commands) == 9
    for words in commands:
        flags = build_parser("", "").parse_args(words[words.index("--norm") :])
        of_all = flags.max_images is None  # where all are what there is without the flag
        assert flags.max_val_images == (50 if typed else None if of_all else "all"), words
    one = run(*driver, "--demo", "--methods", "ln", "--max_images", "32", "--dry_run", check=0).stdout
    assert "--max_val_images" not in one


def test_a_run_that_was_begun_on_all_is_validated_on_all_when_it_goes_on(tmp_path):
    long = (*RUN[:-4], "--epochs", 2, "--probes", "none")
    train_here(*long, "--max_val_images", "all", "--output_dir", tmp_path, check=0)
    log = (tmp_path / "log.csv").read_text()
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    (tmp_path / "summary.json").unlink()
    for kept in (config := json.loads((tmp_path / "config.json").read_text()))["identity"], state["args"]:
        del kept["max_val_images"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(
        {**state, "epoch": 0, "history": {k: v[:1] for k, v in state["history"].items()}}, tmp_path / "checkpoint.pth"
    )
    out = train_here(*long, "--output_dir", tmp_path, check=0).stdout
    assert "10 classes, 40 for validation;" in out
    assert json.loads((tmp_path / "config.json").read_text())["data"]["val_images"] == 40
    assert (tmp_path / "log.csv").read_text().splitlines()[1] == log.splitlines()[1]


def test_it_is_no_other_run_where_there_are_no_more_images(tmp_path):
    train_here(*RUN, "--max_val_images", 400, "--output_dir", tmp_path, check=0)
    for flags in (("--max_val_images", "all"), ("--max_val_images", 40)):
        assert "nothing to do" in train_here(*RUN, *flags, "--output_dir", tmp_path, check=0).stdout
    error = train_here(*RUN, "--output_dir", tmp_path, check=2).stderr
    assert "--max_val_images all, this one has --max_val_images 16. To go on with it, add --max_val_images all" in error


def test_flags_of_an_evaluation_say_how_it_is_validated():
    for driver in ([KIT / "run_comparison.sh"], [sys.executable, KIT / "maekit/drivers/windows.py"]):
        words = ("--demo", "--methods", "ln", "--max_images", "32 all", "--eval", "knn", "--dry_run")
        lines = run(*driver, *words, "--knn_flags", "--max_val_images 8", check=0).stdout.splitlines()
        flags = [build_parser("", "").parse_args(line.split()[line.split().index("--norm") :]) for line in lines]
        assert [f.max_val_images for f in flags if f.task == "knn"] == [8] * 4


def test_no_labels_left_for_validation_is_said(tmp_path):
    labels = tmp_path / "labels.txt"
    source = sources.open_source(resolved("--demo", "--max_val_images", 1).data, 0)
    names = [name for i, name in enumerate(source.classes) if i != source.val.labels[0]]
    labels.write_text(f"class,label\n{names[0]},x\n{names[1]},y\n")
    flags = ("--alpha", 0.5, "--label_map", labels, "--max_val_images", 1, "--output_dir", tmp_path / "out")
    error = train_here(*RUN[:-2], *flags, check=2).stderr
    assert "no validation image has a label by it. Add --max_val_images all." in error
