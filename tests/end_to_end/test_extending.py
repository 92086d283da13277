"""docs/extending.md: its examples run, and what it adds to the kit is there, in a copy."""

import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch

from maekit import files
from maekit.data import cache
from maekit.data.datasets import TrainImages
from maekit.data.protocol import SourceImages
from maekit.data.sources import Source
from maekit.runs.folder import RunFolder
from tests.support import KIT, run
from tests.support.pages import PAGES, blocks

PAGE = PAGES["extending.md"]


def copy_kit(folder):
    """A copy of the kit, to add to."""
    for file in run("git", "ls-files", "--", "*.py", "*.sh", "*.txt", "maekit", check=0).stdout.split():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(KIT / file, folder / file)
    return folder


def put(file, before, text):
    """Put text into a file before the first place of a line that begins so."""
    code = file.read_text(encoding="utf-8")
    at = code.index(f"\n{before}") + 1
    file.write_text(code[:at] + text + code[at:], encoding="utf-8")


def example(start):
    """The block of Python of docs/extending.md that has a line that begins so."""
    (block,) = [block for block in blocks(PAGE, "python") if f"\n{start}" in f"\n{block}"]
    return block


def test_the_examples_run(tmp_path):
    """Each block of Python that begins with an import, in a folder with a sweep in it."""
    points = [{"epoch": i, "mse": 0.5 + i / 100, "accuracy": 10.0 * i, "frozen_accuracy": 50.0 + i} for i in range(4)]
    for alpha in (0.0, 0.5):
        run_folder = tmp_path / f"outputs/imagenette-mae-reconstruction-gap/full/{alpha}/LayerNorm_lr0.00015_seed0"
        run_folder.mkdir(parents=True)
        files.write_json(run_folder / "trajectory.json", {"alpha": alpha, "trajectory": points})
    found = [block for page in PAGES.values() for block in blocks(page, "python")]
    examples = [block for block in found if block.startswith(("from ", "import "))]
    assert len(examples) >= 3
    for name in ("build_mae", "to_timm", "load_trajectories", "import gap", "update_adaptive"):
        assert any(name in example for example in examples)
    code = "import json, sys\nfor example in json.loads(sys.argv[1]): exec(example, {'__name__': 'example'})"
    run(sys.executable, "-c", code, json.dumps(examples), cwd=tmp_path, env={"PYTHONPATH": str(KIT)}, check=0)


def test_a_data_source_is_added_as_it_says(tmp_path):
    """In a copy of the kit: the page's file and its row in the registry."""
    copy = copy_kit(tmp_path / "kit")
    added = copy / "maekit/data/npz.py"
    added.write_text(example("class NpzImages"), encoding="utf-8")
    sources = copy / "maekit/data/sources.py"
    put(sources, "SOURCES = (", f"{example('def _npz(data)')}\n\n")
    code, registry, rest = sources.read_text(encoding="utf-8").partition("SOURCES = (")
    sources.write_text(code + registry + rest.replace("_folder", "_npz, _folder", 1), encoding="utf-8")
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (48, 40, 48, 3), dtype=np.uint8), np.arange(48) % 3
    (tmp_path / "images").mkdir()
    for split, of in (("train", slice(0, 36)), ("val", slice(36, 48))):
        np.savez(tmp_path / f"images/{split}.npz", images=pixels[of], labels=labels[of])
    flags = ("--imagenet_dir", tmp_path / "images", "--max_images", "24", "--batch_size", "8", "--probes", "all")
    said = run(sys.executable, copy / "train.py", *flags, "--dry_run", check=0).stdout
    assert said.startswith("24 training images of 3 classes, 12 for validation; 3 steps of 8 images an epoch")

    spec = importlib.util.spec_from_file_location("maekit.data.npz", added)
    npz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(npz)
    name, train, val, classes, fingerprint = npz.open_splits(tmp_path / "images")
    assert isinstance(train, SourceImages) and train.signature() != val.signature()
    some = Source(name, train.subset(np.array([4, 7])), val, classes, fingerprint)
    assert some.train.labels.tolist() == [1, 1] and some.train.file(1).endswith("train.npz[7]")
    stored = cache.cached(some, str(tmp_path / "cache"), 32, print)
    sample = TrainImages(stored.train, 32, 16, seed=0, with_labels=True)[0, 1]
    assert sample["images"].shape == (3, 32, 32) and sample["labels"] == 1 and sample["broken"] == -1
    assert np.array_equal(cache.read(stored.train, 1).pixels, pixels[7])


def test_what_an_image_set_needs_is_what_the_protocol_says():
    told = set(re.findall(r"^\| `(?:images\.)?(\w+)", PAGE, flags=re.MULTILINE)) - {"len"} | {"__len__"}
    protocol = {"root", "labels", "__len__", "open", "file", "is_there", "signature", "subset"}
    assert told == protocol
    stand_in = type("Images", (), dict.fromkeys(protocol, lambda self: None))
    assert isinstance(stand_in(), SourceImages)
    for name in protocol:
        lacking = type("Images", (), dict.fromkeys(protocol - {name}, lambda self: None))
        assert not isinstance(lacking(), SourceImages), name


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """(a copy of the kit with the page's norm, probe and column; what its shell driver leaves of a method with the norm's
    option, watched by the probe)."""
    copy, out = copy_kit(tmp_path_factory.mktemp("kit")), tmp_path_factory.mktemp("out")
    (copy / "maekit/probes/centroids.py").write_text(example("class Centroids(Probe)"), encoding="utf-8")
    for file, before, text in (
        ("norms.py", '    "DynamicErf": ("erf(u)"', example('    "Rootsign": (')),
        ("norms.py", "NORMS = {", example("class ScaleNorm(_AffineNorm)") + "\n\n"),
        ("norms.py", '    "LayerNorm": nn.LayerNorm', '    "ScaleNorm": ScaleNorm,\n'),
        ("norms.py", '    "ln": "LayerNorm"', '    "scale": "ScaleNorm",\n'),
        ("maekit/settings/methods.py", '    "LayerNorm": Norm(', example('    "Rootsign": Norm(')),
        ("maekit/settings/methods.py", '    "LayerNorm": Norm(', example('    "ScaleNorm": Norm(')),
        ("maekit/settings/probes.py", '    "knn": Probe(', example('    "centroids": Probe(')),
        ("maekit/runs/measures.py", '    Measure("images_per_s"', f"    {example('Measure(').strip()},\n"),
        ("maekit/training/trainer.py", '            "images_per_s": ', example('            "steps_per_s": ')),
    ):
        put(copy / file, before, text)
        assert text.strip().rstrip(",") in PAGE
    flags = ("--demo", "--epochs", "2", "--max_images", "64", "--num_workers", "0", "--mae_dir", "builtin")
    flags += (
        "--probes",
        "frozen centroids",
        "--methods",
        "rootsign-alpha1.0 scale-init16.0",
        "--output_dir",
        out / "comparison",
    )
    run("bash", copy / "run_comparison.sh", *flags, check=0)
    return copy, out / "comparison"


def test_a_norm_is_added_as_it_says(extended):
    """A function, and a class, and their rows: the methods are trained with their options, tabulated and drawn."""
    copy, out = extended
    trained = RunFolder(out / "Rootsign-alpha1.0/seed0")
    assert files.read_json(trained.config)["identity"]["dyt_alpha_init"] == 1.0
    of_class = RunFolder(out / "ScaleNorm-init16.0/seed0")
    assert files.read_json(of_class.config)["identity"]["scale_init"] == 16.0
    assert [0.5 < row["norm_alpha_mean"] < 1.5 for row in files.read_csv(trained.log)] == [True, True]  # the column
    assert {row["model"] for row in files.read_csv(out / "comparison_table.csv")} == {
        "Rootsign-alpha1.0",
        "ScaleNorm-init16.0",
    }
    assert (out / "loss_comparison.png").is_file() and (out / "alpha_dynamics.png").is_file()
    assert "Rootsign-alpha1.0" in (out / "report.html").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("norms_of_the_copy", copy / "norms.py")
    norms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(norms)
    assert len(list(norms.convert_norms(norms.nn.LayerNorm(4), "scale").parameters())) == 1
    rootsign = norms.convert_norms(norms.nn.LayerNorm(4), "rootsign").double()
    assert torch.autograd.gradcheck(rootsign, (torch.randn(3, 4, dtype=torch.float64, requires_grad=True),))


def test_a_probe_is_added_as_it_says(extended, tmp_path):
    """A file and a row: its accuracy is in the log, its state in the checkpoint, and the gap's analysis knows it."""
    copy, out = extended
    trained = RunFolder(out / "Rootsign-alpha1.0/seed0")
    assert all(0 <= row["centroid_accuracy"] <= 100 for row in files.read_csv(trained.log))
    state = torch.load(trained.checkpoint, weights_only=True)["probes"]["centroids"]
    assert state["sums"].shape == (10, 64) and state["sums"].abs().sum() > 0
    flags = ("--log_dir", out, "--output_dir", tmp_path, "--accuracy", "centroids")
    run(sys.executable, copy / "analysis.py", "gap", *flags, check=0)
    assert "centroid_accuracy_mean" in (tmp_path / "gap_table.csv").read_text(encoding="utf-8")
    assert (tmp_path / "tube_scatter_signed_alpha_centroids.png").is_file()
    for alpha in (0.0, 0.5):  # of a sweep it is drawn beside the others
        point = {**files.read_json(trained.trajectory), "alpha": alpha}
        folder = tmp_path / f"sweep/{alpha}"
        folder.mkdir(parents=True)
        files.write_json(folder / "trajectory.json", point)
    flags = ("--log_dir", tmp_path / "sweep", "--output_dir", tmp_path / "all")
    run(sys.executable, copy / "analysis.py", "gap", *flags, check=0)
    assert (tmp_path / "all/matched_differences.png").is_file()


def test_a_column_is_added_as_it_says(extended):
    """A row and its value."""
    _, out = extended
    rows = files.read_csv(out / "Rootsign-alpha1.0/seed0/log.csv")
    assert all(row["steps_per_s"] == pytest.approx(row["images_per_s"] / 32) for row in rows)
    row = files.read_csv(out / "comparison_table.csv")[0]
    assert row["model"] == "Rootsign-alpha1.0"
    assert row["steps_per_s"] == pytest.approx(rows[-1]["steps_per_s"])


def test_a_flag_is_added_as_it_says(tmp_path):
    """In a copy of the kit: the page's row, and what follows from it."""
    copy = copy_kit(tmp_path)
    row = example('Flag("label_noise"').strip()
    put(copy / "maekit/settings/flags.py", '        Flag(\n            "epochs"', f"        {row},\n")
    help_text = run(sys.executable, copy / "train.py", "--help", check=0).stdout
    assert "--label_noise X" in help_text and "share of training labels that are wrong" in " ".join(help_text.split())
    result = run(sys.executable, copy / "train.py", "--demo", "--label_noise", "1", "--dry_run", check=2)
    assert result.stderr.count("\n") == 1 and "--label_noise 1.0: must be in [0, 1)." in result.stderr
