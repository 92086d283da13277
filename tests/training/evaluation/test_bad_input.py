"""What cannot be evaluated is one line."""

import shutil

import pytest
import torch

from maekit import files
from maekit.model.mae import MaskedAutoencoder
from maekit.settings import methods
from maekit.settings.architectures import Transformer
from tests.support import write_ilsvrc
from tests.support.commands import complaint, resolved
from tests.support.evaluation import FINETUNE, KNN, LINPROBE, QUICK


@pytest.mark.parametrize("task", ["finetune", "linprobe", "knn"])
def test_weights_that_are_missing_are_one_line(task, plain, tmp_path):
    flags = (*QUICK, "--task", task, "--output_dir", tmp_path / "run")
    line = complaint(*flags)
    assert f"--task {task}: needs --init" in line and "untrained" in line
    assert f"--init {tmp_path / 'nowhere'}: no such file or folder" in complaint(*flags, "--init", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"--init {tmp_path / 'empty'}: no run in it" in complaint(*flags, "--init", tmp_path / "empty")
    (tmp_path / "begun").mkdir()
    shutil.copy(plain / "config.json", tmp_path / "begun")
    line = complaint(*flags, "--init", tmp_path / "begun")
    assert f"--init {tmp_path / 'begun'}: the run has no checkpoint yet" in line
    half = tmp_path / "begun/checkpoint.pth"
    shutil.copy(plain / "checkpoint.pth", half)
    line = complaint(*flags, "--init", tmp_path / "begun")
    assert f"the run has not ended. Finish it, or take it as it is: --init {half}." in line
    assert resolved(*flags, "--init", half).init == str(half)
    config = files.read_json(plain / "config.json")
    config["settings"]["checkpoint_dir"] = str(tmp_path / "away")
    files.write_json(tmp_path / "begun/config.json", config)
    shutil.move(half, (tmp_path / "away").mkdir() or tmp_path / "away")
    way = complaint(*flags, "--init", tmp_path / "begun").rpartition("take it as it is: ")[2].rstrip(".").split()
    assert way[:2] == ["--init", str(tmp_path / "away/checkpoint.pth")]
    assert resolved(*flags, *way).norm.name == config["identity"]["norm"] and "--input_size" in way
    assert not (tmp_path / "run").exists()


def test_a_setting_that_cannot_be_is_one_line(plain):
    line = complaint(*QUICK, *FINETUNE, "--init", plain, "--batch_size", "15")
    assert "--batch_size 15: mixup and cutmix mix pairs" in line and "--mixup 0 --cutmix 0" in line
    unmixed = ("--batch_size", "15", "--mixup", "0", "--cutmix", "0")
    assert resolved(*QUICK, *FINETUNE, "--init", plain, *unmixed).optim.batch_size == 15
    assert resolved(*QUICK, *LINPROBE, "--init", plain, "--batch_size", "15").optim.batch_size == 15
    line = complaint(*QUICK, "--task", "transfer", "--init", plain)
    assert "--task transfer: unknown" in line and "finetune, linprobe, knn" in line
    line = complaint(*QUICK, *KNN, "--init", plain, "--resume", plain / "checkpoint.pth")
    assert "is for pre-training; --task knn starts from --init" in line
    for flag, value in (
        ("drop_path", "1"),
        ("smoothing", "-0.1"),
        ("reprob", "1.5"),
        ("layer_decay", "0"),
        ("mixup", "-1"),
        ("cutmix", "inf"),
    ):
        assert f"--{flag} {float(value)}: must" in complaint(*QUICK, *FINETUNE, "--init", plain, f"--{flag}", value)


@pytest.mark.parametrize("policy", ["foo", "rand-n0q"])
def test_an_augmentation_that_timm_does_not_know_is_one_line(policy, plain, tmp_path):
    line = complaint(*QUICK, *FINETUNE, "--init", plain, "--aa", policy, "--output_dir", tmp_path / "run")
    assert line.startswith(f"error: --aa {policy}: timm makes no augmentation of it (")


def test_an_evaluation_does_not_take_the_folder_of_the_run_it_starts_from(plain):
    before = (plain / "summary.json").read_bytes(), (plain / "checkpoint.pth").read_bytes()
    for task in (FINETUNE, LINPROBE, KNN):
        for more in ((), ("--overwrite",)):
            line = complaint(*QUICK, *task, "--init", plain, "--output_dir", plain, *more)
            assert "is the run in --output_dir itself. Choose another --output_dir" in line
    assert before == ((plain / "summary.json").read_bytes(), (plain / "checkpoint.pth").read_bytes())


@pytest.mark.parametrize("task", ["finetune", "linprobe", "knn"])
def test_labels_are_needed(task, plain, tmp_path):
    root = write_ilsvrc(tmp_path / "ILSVRC", train_images=6, val_images=3)
    (root / "LOC_val_solution.csv").unlink()
    flags = ("--imagenet_dir", root, "--task", task, "--init", plain, "--batch_size", "2", "--accum_iter", "1")
    line = complaint(*flags, "--num_workers", "0", "--output_dir", tmp_path / "run")
    assert f"--task {task}: the validation images in {root}" in line and "LOC_val_solution.csv" in line
    assert "--alpha" not in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("patch", "sizes", "parts"),
    [
        (8, Transformer(64, 4, 2), ("cls_token is (1, 1, 64) there and (1, 1, 96) here",)),
        (8, Transformer(96, 6, 3), ("has blocks.4",)),
        (8, Transformer(96, 3, 3), ("has no blocks.3",)),
        (16, Transformer(96, 4, 3), ("patch_embed.proj.weight is (96, 3, 16, 16) there and (96, 3, 8, 8) here",)),
    ],
    ids=str,
)
@pytest.mark.parametrize("task", [FINETUNE, LINPROBE, KNN], ids=" ".join)
def test_a_checkpoint_of_another_size_is_one_line(task, patch, sizes, parts, tmp_path):
    other = MaskedAutoencoder(64, patch, sizes, Transformer(64, 1, 2))
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    line = complaint(*QUICK, *task, "--init", tmp_path / "other.pth", "--output_dir", tmp_path / "run")
    assert f"{tmp_path / 'other.pth'}: belongs to another model" in line and "--model" in line
    assert all(part in line for part in parts), line


@pytest.mark.slow
@pytest.mark.parametrize("task", [FINETUNE, LINPROBE, KNN], ids=" ".join)
def test_a_checkpoint_of_another_norm_is_one_line_that_names_both(task, pretrained, tmp_path):
    for theirs in methods.NORMS:
        ours = "DynamicTanh" if theirs in ("LayerNorm", "AdaptiveDynamicTanh") else "LayerNorm"
        flags = ("--init", pretrained[theirs] / "checkpoint.pth", "--norm", ours, "--output_dir", tmp_path / "run")
        line = complaint(*QUICK, *task, *flags)
        assert f"its norm layers are {theirs}, here they are {ours}" in line and "--norm" in line


@pytest.mark.slow
def test_a_fine_tuned_network_has_no_final_norm_to_probe(finetuned, tmp_path):
    for task in (LINPROBE, KNN):
        line = complaint(*QUICK, *task, "--init", finetuned, "--output_dir", tmp_path / "run")
        assert "has no norm.weight" in line
