"""The run folder: what a run leaves, when another command goes on with it, repeats it or must leave it alone."""

import json
import shutil

import pytest
import torch

from maekit import files
from tests.support import train, train_here
from tests.support.commands import complaint, resolved

DEMO = ("--demo", "--max_images", "32", "--batch_size", "32", "--num_workers", "0")
QUICK = (*DEMO, "--epochs", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of one epoch."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(*QUICK, "--output_dir", folder, check=0)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_leaves_all_files_of_the_design_and_no_stray_ones(finished):
    files = {
        "config.json",
        "log.csv",
        "norm_alpha.csv",
        "trajectory.json",
        "summary.json",
        "checkpoint.pth",
        "reconstructions.npz",
        "loss_curve.png",
        "loss_curve.pdf",
        "tensorboard",
        "status.json",
    }
    assert {f.name for f in finished.iterdir()} == files
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["model"] == "LayerNorm"
    for name in ("total_epochs", "total_time", "avg_epoch_time", "final_loss", "min_loss", "min_loss_epoch", "val_mse"):
        assert summary[name] is not None
    config = json.loads((finished / "config.json").read_text())
    assert config["data"]["train_images"] == config["data"]["val_images"] == 32
    assert (
        config["versions"]["torch"] == torch.__version__.partition("+")[0]
        and config["identity"]["precision"] == "float32"
    )
    trajectory = json.loads((finished / "trajectory.json").read_text())
    assert trajectory["status"] == "finished" and trajectory["alpha"] == 0 and len(trajectory["trajectory"]) == 1


def test_the_checkpoint_has_upstreams_keys_and_only_plain_values(finished):
    state = torch.load(finished / "checkpoint.pth", weights_only=True)
    assert {"model", "optimizer", "epoch", "scaler", "args"} <= set(state)
    assert state["epoch"] == 0 and state["args"]["norm"] == "LayerNorm"


def test_tensorboard_holds_what_the_log_holds(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    (row,) = files.read_csv(finished / "log.csv")
    for name in ("train_loss", "val_mse", "lr", "images_per_s"):
        (event,) = events.Scalars(name)
        assert event.step == 0 and event.value == pytest.approx(row[name], rel=1e-6)


def test_the_same_command_again_trains_nothing_and_does_not_import_torch(copy):
    before = {f: f.stat().st_mtime_ns for f in copy.rglob("*") if f.is_file()}
    result = train(*QUICK, "--output_dir", copy, check=0, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert "finished already" in result.stdout and "| torch" not in result.stderr
    assert {f: f.stat().st_mtime_ns for f in copy.rglob("*") if f.is_file()} == before


def test_a_folder_of_another_run_names_the_first_setting_that_differs(copy):
    line = complaint(*QUICK, "--output_dir", copy, "--epochs", "2")
    assert str(copy) in line and "--epochs 1" in line and "--epochs 2" in line and "--overwrite" in line
    assert "--norm DynamicTanh" in complaint(*QUICK, "--output_dir", copy, "--norm", "dyt")
    assert "no --max_images" in complaint("--demo", "--epochs", "1", "--batch_size", "32", "--output_dir", copy)


def test_settings_that_do_not_matter_to_the_run_do_not_make_another_of_it(copy):
    train_here(
        *QUICK, "--output_dir", copy, "--adyt_lambda", "0.7", "--dyt_alpha_init", "3", "--device", "cpu", check=0
    )


@pytest.mark.slow
def test_a_run_does_not_go_on_in_another_precision(tmp_path):
    copy = tmp_path / "run"
    train_here(*QUICK, "--output_dir", copy, "--precision", "bfloat16", check=0)
    (copy / "summary.json").unlink()  # as if it had not ended
    line = complaint(*QUICK, "--output_dir", copy)
    assert "was computed in bfloat16" in line and "--precision bfloat16" in line
    assert "holds a run with --precision bfloat16" in complaint(*QUICK, "--output_dir", copy, "--precision", "float16")
    train_here(*QUICK, "--output_dir", copy, "--precision", "bfloat16", check=0)


def test_other_images_make_another_run(copy, demo_dir, tmp_path):
    other = shutil.copytree(demo_dir, tmp_path / "data")
    next((other / "Data/CLS-LOC/val").glob("*.JPEG")).unlink()
    flags = ["--model", "mae_vit_demo_patch8", "--input_size", "64"]
    settings = json.loads((copy / "config.json").read_text())["identity"]
    for name in ("epochs", "batch_size", "lr", "min_lr", "max_images"):
        flags += [f"--{name}", settings[name]]
    line = complaint(*flags, "--imagenet_dir", other, "--output_dir", copy)
    assert "holds a run with data" in line


def test_overwrite_deletes_the_run_and_nothing_else(copy):
    (copy / "notes.txt").write_text("mine")
    train_here(*QUICK, "--output_dir", copy, "--norm", "dyt", "--overwrite", check=0)
    assert json.loads((copy / "summary.json").read_text())["model"] == "DynamicTanh"
    assert (copy / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_overwrite_deletes_another_run_and_goes_on_with_this_one(tmp_path):
    """A cluster that starts the same command again must not start from nothing."""
    flags = (*DEMO, "--epochs", "2", "--overwrite", "--output_dir", tmp_path)
    train_here(*DEMO, "--epochs", "1", "--output_dir", tmp_path, check=0)
    assert "goes on with" not in train_here(*flags, check=0).stdout
    (tmp_path / "summary.json").unlink()  # as if it had been stopped at its end
    assert "goes on with epoch 2 of 2" in train_here(*flags, check=0).stdout
    said = train_here(*flags, check=0).stdout
    assert "finished already, nothing to do. --resume never --overwrite repeats it." in said
    before = (tmp_path / "checkpoint.pth").stat().st_mtime_ns
    assert "finished after 2 epochs" in train_here(*flags, "--resume", "never", check=0).stdout
    assert (tmp_path / "checkpoint.pth").stat().st_mtime_ns > before


@pytest.mark.parametrize("damaged", ["config.json", "summary.json", "checkpoint.pth"])
def test_overwrite_deletes_what_is_damaged(damaged, copy):
    if damaged == "checkpoint.pth":
        (copy / "summary.json").unlink()
    content = (copy / damaged).read_bytes()
    (copy / damaged).write_bytes(content[: len(content) // 2])
    assert damaged in complaint(*QUICK, "--output_dir", copy)
    said = train_here(*QUICK, "--output_dir", copy, "--overwrite", check=0).stdout
    assert "goes on with" not in said and "finished after 1 epochs" in said
    assert ("Deleted, as --overwrite asks." in said) is (damaged == "checkpoint.pth")


@pytest.mark.parametrize(("name", "before"), [("precision", "bfloat16"), ("pixels", "reduced to 7")])
def test_overwrite_does_not_delete_this_run_because_of_another_machine(name, before, copy):
    """Where bfloat16 is not to be had, say, or no room for the cache."""
    (copy / "summary.json").unlink()
    config = files.read_json(copy / "config.json")
    config["identity"][name] = before
    files.write_json(copy / "config.json", config)
    flags = (*QUICK, "--output_dir", copy, "--overwrite")
    line = complaint(*flags)
    assert f"{before} so far" in line and "start anew: --resume never --overwrite" in line
    assert (copy / "checkpoint.pth").exists()
    assert "goes on with" not in train_here(*flags, "--resume", "never", check=0).stdout


@pytest.mark.parametrize("counts", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_what_a_cluster_starts_again_goes_on_in_any_case(counts, copy, monkeypatch):
    (copy / "summary.json").unlink()
    monkeypatch.setenv(counts, "1")
    flags = (*QUICK, "--output_dir", copy, "--resume", "never", "--overwrite")
    assert "goes on with epoch 1 of 1" in train_here(*flags, check=0).stdout


def test_resume_never_does_not_delete_a_run_unasked(copy):
    assert "--overwrite" in complaint(*QUICK, "--output_dir", copy, "--resume", "never")
    assert (copy / "summary.json").exists()


def test_a_damaged_config_is_named(copy):
    (copy / "config.json").write_text('{"identity": {')
    assert "config.json: is damaged" in complaint(*QUICK, "--output_dir", copy)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "list", "missing", "other_model", "other_norm"])
def test_a_checkpoint_named_by_hand_that_cannot_be_used(damage, finished, tmp_path):
    named, flags = tmp_path / "named.pth", []
    whole = (finished / "checkpoint.pth").read_bytes()
    if damage == "truncated":
        named.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        named.write_text("not a checkpoint")
    elif damage == "empty":
        named.write_bytes(b"")
    elif damage == "list":
        torch.save([1, 2], named)
    elif damage == "other_model":
        named.write_bytes(whole)
        flags = ["--model", "mae_vit_tiny_patch16"]
    elif damage == "other_norm":
        named.write_bytes(whole)
        flags = ["--norm", "adyt"]
    line = complaint(*QUICK, *flags, "--output_dir", tmp_path / "run", "--resume", named)
    says = {
        "missing": "no such file",
        "other_model": "belongs to another model",
        "other_norm": "its norm layers are LayerNorm, here they",
    }
    assert str(named) in line and says.get(damage, "no checkpoint") in line
    assert not (tmp_path / "run" / "checkpoint.pth").exists()


def test_a_checkpoint_named_by_hand_starts_a_longer_run(finished, tmp_path):
    flags = (*DEMO, "--epochs", "2", "--output_dir", tmp_path / "run")
    result = train_here(*flags, "--resume", finished / "checkpoint.pth", check=0)
    assert "goes on with epoch 1 of 2" in result.stdout
    assert [row["epoch"] for row in files.read_csv(tmp_path / "run" / "log.csv")] == [1]
    line = complaint(*QUICK, "--output_dir", tmp_path / "short", "--resume", finished / "checkpoint.pth")
    assert "has 1 epochs already" in line


@pytest.mark.slow
def test_a_checkpoint_from_within_an_epoch_goes_on_there_if_its_batches_are_this_runs(tmp_path):
    flags = (*DEMO, "--batch_size", "8", "--epochs", "2")
    train_here(*flags, "--checkpoint_minutes", "1e-9", "--output_dir", tmp_path / "whole", check=0)
    whole = files.read_csv(tmp_path / "whole/log.csv")
    named = tmp_path / "whole/checkpoint.previous.pth"
    position = torch.load(named, weights_only=True)["position"]
    assert (position["epoch"], position["batch"]) == (1, 3)
    said = train_here(*flags, "--resume", named, "--output_dir", tmp_path / "same", check=0).stdout
    assert "goes on with epoch 1, batch 3 of 2" in said
    (row,) = files.read_csv(tmp_path / "same/log.csv")
    assert (row["train_loss"], row["val_mse"]) == (whole[1]["train_loss"], whole[1]["val_mse"])
    other = ("--batch_size", "16", "--output_dir", tmp_path / "other")
    said = train_here(*flags, "--resume", named, *other, check=0).stdout
    assert "trained again from its start" in said and "goes on with epoch 1 of 2" in said


def test_the_checkpoint_that_a_run_started_from_is_part_of_it(finished, tmp_path):
    flags = (*DEMO, "--epochs", "2", "--output_dir", tmp_path / "run")
    train_here(*flags, "--resume", finished / "checkpoint.pth", check=0)
    line = complaint(*flags)
    assert "this one has no --resume" in line and f"type --resume {finished / 'checkpoint.pth'}, there or not" in line
    own = tmp_path / "run" / "checkpoint.pth"
    assert "would delete it first" in complaint(*flags, "--resume", own, "--overwrite") and own.exists()


def test_the_runs_own_checkpoint_by_name_is_the_same_as_auto(copy):
    result = train_here(*QUICK, "--output_dir", copy, "--resume", copy / "checkpoint.pth", check=0)
    assert "finished already" in result.stdout


def test_a_run_can_be_named_by_its_folder_wherever_that_is(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = (*DEMO, "--epochs", "2", "--output_dir", "longer")
    shutil.copytree(finished, tmp_path / "moved")
    said = train_here(*flags, "--resume", "moved", check=0).stdout
    assert "moved/checkpoint.pth: goes on with epoch 1 of 2" in said
    shutil.rmtree("moved")
    line = complaint(*flags, "--resume", finished)
    assert "To go on with it, type --resume moved/checkpoint.pth, there or not" in line
    assert "finished already" in train_here(*flags, "--resume", "moved/checkpoint.pth", check=0).stdout
    (tmp_path / "empty").mkdir()
    line = complaint(*QUICK, "--output_dir", "new", "--resume", "empty")
    assert line.startswith("error: --resume empty: no run in it (no config.json)")


class TestMoved:
    """A run with its checkpoint in a folder of its own, both typed relative to a working directory that is not this one."""

    FLAGS = (*QUICK, "--output_dir", "out/run", "--checkpoint_dir", "fast/k")

    @pytest.fixture
    def there(self, finished, tmp_path):
        """The tree of a run that was begun there, one of its two epochs done, and everything moved since."""
        there = tmp_path / "there"
        shutil.copytree(finished, there / "out/run")
        (there / "fast/k").mkdir(parents=True)
        (there / "out/run/checkpoint.pth").rename(there / "fast/k/checkpoint.pth")
        (there / "out/run/summary.json").unlink()
        config = json.loads((there / "out/run/config.json").read_text())
        config["settings"] |= {"output_dir": "out/run", "checkpoint_dir": "fast/k"}
        (there / "out/run/config.json").write_text(json.dumps(config))
        return there

    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")

    def test_its_checkpoint_is_found_by_init_and_resume(self, there, finished):
        shutil.copy(finished / "summary.json", there / "out/run")
        for name in (there / "out/run", "../there/out/run"):
            assert resolved("--demo", "--task", "knn", "--init", name).init == str(there / "fast/k/checkpoint.pth")
            assert resolved("--demo", "--resume", name).resume == str(there / "fast/k/checkpoint.pth")

    def test_it_is_not_mistaken_for_that_of_the_same_name_here(self, there, finished, tmp_path):
        shutil.copy(finished / "summary.json", there / "out/run")
        shutil.copytree(there / "fast", tmp_path / "here/fast")
        assert resolved("--demo", "--task", "knn", "--init", there / "out/run").init == str(
            there / "fast/k/checkpoint.pth"
        )

    def test_without_its_checkpoint_it_is_said_what_is_missing(self, there, finished):
        shutil.rmtree(there / "fast")
        init = ("--demo", "--task", "knn", "--init", there / "out/run")
        line = complaint(*init)
        assert (
            "checkpoint is not there" in line and f"{there}/fast/k/checkpoint.pth" in line and "train the run" in line
        )
        shutil.copy(finished / "summary.json", there / "out/run")
        line = complaint(*init)
        assert line.endswith(f"Copy it to {there}/out/run/checkpoint.pth.")
        shutil.copy(finished / "checkpoint.pth", there / "out/run")
        assert resolved(*init).init == str(there / "out/run/checkpoint.pth")

    def test_it_goes_on_with_its_checkpoint_or_says_where_that_is(self, there, tmp_path):
        folder = ("--output_dir", there / "out/run")
        line = complaint(*QUICK, *folder)
        assert f"its checkpoint is in {there}/fast/k. Add --checkpoint_dir {there}/fast/k to go on" in line
        (there / "fast").rename(tmp_path / "lost")
        line = complaint(*QUICK, *folder)
        assert "was kept in fast/k, which has none" in line and f"Copy it to {there}/out/run/checkpoint.pth" in line
        log = (there / "out/run/log.csv").read_text()
        said = train_here(*QUICK, *folder, "--checkpoint_dir", tmp_path / "lost/k", check=0).stdout
        assert "goes on with epoch 1 of 1" in said and (there / "out/run/log.csv").read_text() == log

    def test_what_has_to_be_trained_again_is_said(self, there):
        shutil.rmtree(there / "fast")
        flags = ("--output_dir", there / "out/run", "--checkpoint_dir", there / "fast/k")
        said = train_here(*QUICK, *flags, check=0).stdout
        assert f"no checkpoint in {there}/fast/k, so its 1 epoch is trained again" in said


def test_official_style_weights_alone_start_a_run_at_epoch_0(finished, tmp_path):
    weights = torch.load(finished / "checkpoint.pth", weights_only=True)["model"]
    torch.save({"model": weights}, tmp_path / "mae_visualize.pth")
    result = train_here(*QUICK, "--output_dir", tmp_path / "run", "--resume", tmp_path / "mae_visualize.pth", check=0)
    assert "goes on with epoch 0 of 1" in result.stdout
