"""The numbers and names of a card: those of these weights, over these images, of these seeds, and nobody's folders."""

import json
import shutil

import pytest

from maekit.export import card, scores
from tests.support import export_here, train_here
from tests.support.exporting import RUN as EXPORTED

RUN = (*EXPORTED, "--ema", 0.9)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """LayerNorm with two seeds and k-NN below each, over 32 images below the first and 8 below the second."""
    root = tmp_path_factory.mktemp("runs") / "LayerNorm"
    for seed, images in ((0, 32), (1, 8)):
        run = root / f"seed{seed}"
        train_here(*RUN, "--seed", seed, "--output_dir", run, check=0)
        knn = ("--task", "knn", "--init", run, "--max_val_images", images, "--output_dir", run / "knn")
        train_here(*RUN[:-2], *knn, check=0)
    return root


@pytest.fixture
def root(trained_once, tmp_path):
    shutil.copytree(trained_once, tmp_path / "runs")
    return tmp_path / "runs"


def text_of(run, tmp_path, *flags):
    export_here(run, tmp_path / "out", "--to", "timm", "--overwrite", *flags, check=0)
    return (tmp_path / "out/README.md").read_text()


def change(run, file="config.json", **values):
    """Write values into a run's file; None deletes one."""
    path = run / file
    content = json.loads(path.read_text())
    part = content["identity"] if values.pop("identity", False) else content
    for name, value in values.items():
        part.pop(name, None)
        if value is not None:
            part[name] = value
    path.write_text(json.dumps(content))


def summary(run):
    return json.loads((run / "summary.json").read_text())


def test_a_share_has_wilsons_bounds():
    score = scores.Score(59.5, 200, {})
    assert card._with_bounds("knn_accuracy", score) == "59.5 (52.6 to 66.1)"  # R: prop.test(119, 200, correct = FALSE)
    assert card._with_bounds("knn_accuracy", scores.Score(59.5, None, {})) == "59.5"
    assert card._with_bounds("val_mse", scores.Score(0.12345, 200, {})) == "0.1235"


def test_scores_of_the_average_and_of_the_weights_are_not_mixed(root, tmp_path):
    run, known = root / "seed0", summary(root / "seed0")
    text = text_of(run, tmp_path, "--ema")
    assert f"| validation loss of the averaged weights | {known['ema_val_mse']:.4g} |" in text
    assert "| validation loss |" not in text and "k-NN" not in text and "PSNR" not in text
    text = text_of(run, tmp_path)
    assert "averaged weights" not in text and f"| validation loss | {known['val_mse']:.4g} |" in text


def test_an_accuracy_is_bounded_by_the_images_that_it_was_measured_on(root, tmp_path):
    value = summary(root / "seed1/knn")["acc1"]
    bounds = card._with_bounds("knn_accuracy", scores.Score(value, 8, {}))
    assert f"| k-NN (%), 8 images | {bounds} |  |" in text_of(root / "seed1", tmp_path)  # the other seed's is over 32


def test_a_labelled_share_of_the_images_bounds_nothing():
    found = scores._of_summary({"accuracy": 27.8, "knn_accuracy": 50.0}, {"label_map": "half"}, 32, averaged=False)
    assert found["accuracy"].images is None and found["knn_accuracy"].images == 32


def test_pictures_are_judged_on_fewer_images(root, tmp_path):
    change(root / "seed0", "summary.json", quality_images=24)
    known, text = summary(root / "seed0"), text_of(root / "seed0", tmp_path)
    assert f"| PSNR (dB), 24 images | {known['psnr']:.4g} |" in text and "| validation loss |" in text


def test_seeds_are_pooled_where_nothing_else_differs(root, tmp_path):
    assert "mean of 2 seeds" in text_of(root / "seed0", tmp_path)
    change(root / "seed0", identity=True, max_val_images=None)  # as a run of before: it was validated on all
    assert "mean of" not in text_of(root / "seed0", tmp_path) and "mean of" not in text_of(root / "seed1", tmp_path)
    change(root / "seed0", identity=True, max_val_images=32, clip_grad=1.0)
    assert "mean of" not in text_of(root / "seed1", tmp_path)


def test_a_run_is_its_folder_however_it_is_named(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root / "seed0")
    assert "mean of 2 seeds" in text_of(".", tmp_path)
    (tmp_path / "link").symlink_to(root / "seed0")
    assert "mean of 2 seeds" in text_of(tmp_path / "link", tmp_path)


def test_an_evaluation_of_other_weights_does_not_count(root, tmp_path):
    assert "k-NN" in text_of(root / "seed0", tmp_path)
    train_here(*RUN, "--lr", 0.02, "--overwrite", "--output_dir", root / "seed0", check=0)
    assert (root / "seed0/knn/summary.json").is_file() and "k-NN" not in text_of(root / "seed0", tmp_path)


def test_nobodys_folders_are_in_it(root, tmp_path):
    change(
        root / "seed0", data={**json.loads((root / "seed0/config.json").read_text())["data"], "source": str(tmp_path)}
    )
    assert f"| data | {tmp_path.name}: 32 for training" in text_of(root / "seed0", tmp_path)
    weights = tmp_path / "alice/w.pth"
    weights.parent.mkdir()
    shutil.copy(root / "seed0/checkpoint.pth", weights)
    train_here(*RUN, "--init", weights, "--output_dir", tmp_path / "more", check=0)
    text = text_of(tmp_path / "more", tmp_path)
    assert "| began from | w.pth (sha256:" in text and "alice" not in text
    assert card._last(r"C:\Users\alice\w.pth", 1) == "w.pth"


def test_a_training_that_went_on_began_from_other_weights(root, tmp_path):
    checkpoint = root / "seed0/checkpoint.pth"
    train_here(*RUN[:-4], "--epochs", 2, "--ema", 0.9, "--resume", checkpoint, "--output_dir", tmp_path / "on", check=0)
    text = text_of(tmp_path / "on", tmp_path)
    assert "| began from | a training that went on, seed0/checkpoint.pth |" in text and str(tmp_path) not in text
    assert "whose licence goes on" in text


def test_whose_code_the_network_was_is_said_with_its_licence(root, tmp_path):
    assert "facebookresearch" not in text_of(root / "seed0", tmp_path)
    for source in ("upstream", {"source": "upstream", "commit": "efb2a80"}):
        change(root / "seed0", model_source=source)
        text = text_of(root / "seed0", tmp_path)
        assert "| model's code | upstream" in text and "facebookresearch/mae, under CC BY-NC 4.0" in text


def test_runs_of_earlier_kits_are_exported(root, tmp_path):
    change(root / "seed0", architecture=None, model_source=None)
    change(root / "seed0", "summary.json", status=None)
    assert "encoder 32 wide, 2 blocks, 2 heads" in text_of(root / "seed0", tmp_path)


def test_a_classifiers_card_has_its_recipe_and_no_decoder(root, tmp_path):
    flags = ("--task", "finetune", "--init", root / "seed0", "--mixup", 0.3, "--output_dir", tmp_path / "tuned")
    train_here(*RUN[:-2], *flags, check=0)
    text = text_of(tmp_path / "tuned", tmp_path)
    assert "| --mixup | 0.3 |" in text and "decoder" not in text and "Masks are" not in text
    assert "| top-1 (%) |" in text


def test_a_new_decoder_says_that_the_encoder_was_frozen(root, tmp_path):
    train_here(*RUN, "--freeze", "encoder", "--init", root / "seed0", "--output_dir", tmp_path / "new", check=0)
    text = text_of(tmp_path / "new", tmp_path)
    assert "a new decoder on a frozen encoder" in text and "| --freeze | encoder |" in text
