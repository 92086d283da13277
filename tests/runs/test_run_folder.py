"""The run folder: what is never half there, and what cannot be used."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from maekit import files
from maekit.errors import Busy, InputError
from maekit.runs import measures
from maekit.runs.folder import RunFolder
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from tests.support import KIT, run, train, train_here

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


def complaint(*flags):
    """The one line that a command with bad input prints."""
    result = train_here(*flags, check=2)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in result.stderr
    return lines[-1]


def resolved(*flags):
    """The settings of a command."""
    return resolve(build_parser("train.py", "").parse_args([str(flag) for flag in flags]))


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
    assert config["data"]["train_images"] == 32 and config["data"]["val_images"] == 40
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


def test_what_killed_processes_left_half_written_goes_with_the_next_start(tmp_path, monkeypatch):
    """Checkpoints of a gigabyte among them. Other files stay, and a folder that another process holds is left alone."""
    folder = RunFolder(tmp_path / "run [1]", tmp_path / "fast")
    foreign = [tmp_path / "run [1]" / name for name in (".notes.12.tmp", "log.csv.tmp", "log.csv")]
    left = [folder.log.with_name(".log.csv.12.tmp"), folder.checkpoint.with_name(".checkpoint.pth.4321.tmp")]
    for file in (*foreign, *left):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    with monkeypatch.context() as patch, pytest.raises(Busy):
        patch.setattr(folder._held, "acquire", lambda: False)
        folder.claim({})
    assert all(file.exists() for file in left)
    assert folder.claim({}) is None and not any(file.exists() for file in left)
    assert all(file.exists() for file in foreign)
    folder.release()


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
    for name in ("epochs", "batch_size", "lr", "max_images"):
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


def test_a_run_that_left_no_state_binds_no_precision(tmp_path):
    """It was out of memory, say, in its first step."""
    files.write_json(tmp_path / "config.json", {"identity": {"precision": "bfloat16", "pixels": "reduced to 7"}})
    train_here(*QUICK, "--output_dir", tmp_path, check=0)


@pytest.mark.parametrize("content", ['{"mine": 1}', "[]"])
def test_a_config_of_something_else_is_left_alone(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    for more in ((), ("--overwrite",), ("--overwrite", "--resume", "never")):
        assert "config.json: is not of a run. Move it away" in complaint(*QUICK, "--output_dir", tmp_path, *more)
    assert (tmp_path / "config.json").read_text() == content


def test_two_processes_may_try_at_once_whether_a_folder_can_be_written(tmp_path):
    tries = "import sys; sys.path.insert(0, sys.argv[1]); from maekit.runs import folder\n" + (
        "for _ in range(3000): folder._make_writable(folder.Path(sys.argv[2], 'status.json'), '--output_dir')"
    )
    both = [subprocess.Popen([sys.executable, "-c", tries, KIT, tmp_path]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0] and not list(tmp_path.iterdir())


def test_resume_never_does_not_delete_a_run_unasked(copy):
    assert "--overwrite" in complaint(*QUICK, "--output_dir", copy, "--resume", "never")
    assert (copy / "summary.json").exists()


def test_an_output_folder_that_is_a_file_or_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in complaint(*QUICK, "--output_dir", tmp_path / "file")
    assert "cannot be written" in complaint(*QUICK, "--output_dir", tmp_path / "file" / "below")
    assert "cannot be written" in complaint(*QUICK, "--output_dir", "/proc/nowhere")


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


def test_a_file_is_whole_or_the_one_before_it(tmp_path):
    path = tmp_path / "file"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic_write(path) as f:
        f.write(b"half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["file"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.fstat(fd).st_size), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append(paths[1]), replace(*paths)))
    with files.atomic_write(tmp_path / "file", previous=tmp_path / "before") as f:
        f.write(b"first")
    with files.atomic_write(tmp_path / "file", previous=tmp_path / "before") as f:
        f.write(b"second")
    assert done == [5, tmp_path / "file", 6, tmp_path / "before", tmp_path / "file"]
    assert ((tmp_path / "before").read_bytes(), (tmp_path / "file").read_bytes()) == (b"first", b"second")


@pytest.mark.slow
def test_two_processes_that_write_one_file_at_once_each_write_all_of_it(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with files.atomic_write(path) as ours:
        ours.write(b"ours")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            with files.atomic_write(path) as theirs:
                theirs.write(b"theirs")
        assert path.read_bytes() == b"theirs"
    assert path.read_bytes() == b"ours" and os.listdir(tmp_path) == ["file"]


def test_drafts_of_a_file_are_told_from_those_of_others_whatever_it_is_called(tmp_path):
    own, other = (tmp_path / f".{name}.12.tmp" for name in ("run[1]*.json", "run1.json"))
    for draft in (own, other):
        draft.touch()
    files.remove_drafts([tmp_path / "run[1]*.json"])
    assert not own.exists() and other.exists()


def test_numbers_survive_the_log_to_the_last_digit(tmp_path):
    rows = [{"epoch": 3, "train_loss": 0.1 + 0.2, "val_mse": 1e-300, "peak_memory_mb": None}]
    files.write_csv(tmp_path / "log.csv", ("epoch", "train_loss", "val_mse", "peak_memory_mb"), rows)
    assert files.read_csv(tmp_path / "log.csv") == rows


def test_json_never_holds_a_nan(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": [float("nan"), float("inf"), 1.5]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, None, 1.5]}


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_files_before_whole(copy, tmp_path):
    """A real file system of 10 MB where it can be mounted; else a limit on the size of files."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", small], check=False).returncode == 0
    flags = (*DEMO, "--epochs", "2", "--output_dir", small / "run")
    try:
        if mounted:  # room for one checkpoint of 7 MB, not for two
            result = train(*flags, check=2)
        else:
            limited = f"ulimit -f 4000; exec {sys.executable} train.py {' '.join(map(str, flags))}"
            result = run("bash", "-c", limited, check=2)
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ") and "Make room" in last and "Traceback" not in result.stderr
        left = {f.name for f in (small / "run").iterdir()}
        assert not [name for name in left if name.endswith(".tmp")]
        assert json.loads((small / "run" / "config.json").read_text())
        if mounted:
            state = torch.load(small / "run" / "checkpoint.pth", weights_only=True)
            assert state["epoch"] == 0, "the checkpoint before survives"
    finally:
        if mounted:
            subprocess.run(["umount", small], check=True)


def test_only_errors_of_storage_become_one_line():
    from maekit.errors import exit_code

    def fails(number):
        def main():
            raise OSError(number, os.strerror(number), "somewhere")

        return main

    assert exit_code(fails(errno.ENOSPC)) == 2
    with pytest.raises(OSError):
        exit_code(fails(errno.ECONNRESET))


def test_a_setting_that_an_older_kit_did_not_know_had_its_default_there(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.claim({"lr": 1}) is None
    files.write_json(folder.config, {"identity": {"lr": 1}})
    assert folder.claim({"lr": 2}) is None  # it left no state behind: a run that was out of memory, say
    folder.checkpoint.touch()
    assert folder.claim({"lr": 1, "alpha": 0.0, "not a flag": 5}) is None
    with pytest.raises(InputError, match="--lr 1.*--lr 2"):
        folder.claim({"lr": 2, "alpha": 0.0})
    with pytest.raises(InputError, match="--alpha 0.0.*--alpha 0.5"):
        folder.claim({"lr": 1, "alpha": 0.5})


@pytest.mark.slow
def test_a_checkpoint_of_an_older_kit_keeps_the_log_that_lies_beside_it(tmp_path):
    """Its checkpoint had no history and its log fewer columns."""
    flags = (*DEMO, "--epochs", "2", "--norm", "dyt", "--output_dir", tmp_path)
    train_here(*flags, check=0)
    whole = files.read_csv(tmp_path / "log.csv")
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    del state["history"]
    torch.save(state, tmp_path / "checkpoint.pth")
    kept = [name for name in measures.LOG_COLUMNS if "accuracy" not in name and "loss_" not in name]
    files.write_csv(tmp_path / "log.csv", kept, [{name: row[name] for name in kept} for row in whole])
    (tmp_path / "summary.json").unlink()
    train_here(*flags, check=0)
    assert [row["train_loss"] for row in files.read_csv(tmp_path / "log.csv")] == [r["train_loss"] for r in whole]


class TestCheckpointDir:
    """--checkpoint_dir: weights on another disk."""

    def test_the_checkpoint_is_there_and_nowhere_else(self, tmp_path):
        train_here(*QUICK, "--output_dir", tmp_path / "run", "--checkpoint_dir", tmp_path / "weights", check=0)
        assert [f.name for f in (tmp_path / "weights").iterdir()] == ["checkpoint.pth"]
        assert not (tmp_path / "run/checkpoint.pth").exists()

    def test_a_run_whose_folder_was_lost_gets_its_whole_log_back(self, tmp_path):
        flags = (*DEMO, "--epochs", "2", "--norm", "dyt", "--probes", "all", "--output_dir", tmp_path / "run")
        flags = (*flags, "--checkpoint_dir", tmp_path / "weights")
        train_here(*flags, check=0)
        kept = {
            name: (tmp_path / "run" / name).read_text() for name in ("log.csv", "norm_alpha.csv", "trajectory.json")
        }
        shutil.rmtree(tmp_path / "run")
        result = train_here(*flags, "--overwrite", check=0)
        assert "goes on with epoch 2 of 2" in result.stdout and "finished after 2 epochs" in result.stdout
        assert {name: (tmp_path / "run" / name).read_text() for name in kept} == kept
        assert json.loads((tmp_path / "run/summary.json").read_text())["total_epochs"] == 2

    def test_a_checkpoint_of_another_run_is_named_and_kept(self, tmp_path):
        flags = (*QUICK, "--checkpoint_dir", tmp_path / "weights")
        train_here(*flags, "--output_dir", tmp_path / "a", check=0)
        before = (tmp_path / "weights/checkpoint.pth").read_bytes()
        line = complaint(*flags, "--output_dir", tmp_path / "b", "--alpha", "0.5")
        assert "weights/checkpoint.pth: is of a run with --alpha 0.0, this one has --alpha 0.5" in line
        assert (tmp_path / "weights/checkpoint.pth").read_bytes() == before
        more = ("--output_dir", tmp_path / "b", "--alpha", "0.5", "--overwrite")
        assert "is of a run with --alpha 0.0" in train_here(*flags, *more, check=0).stdout  # said, and deleted
        assert (tmp_path / "weights/checkpoint.pth").read_bytes() != before
        (tmp_path / "b/summary.json").unlink()
        (tmp_path / "weights/checkpoint.pth").write_bytes(before)  # by another run, meanwhile
        assert "is of a run with --alpha 0.0" in train_here(*flags, *more, check=0).stdout

    def test_weights_alone_are_no_checkpoint_to_go_on_from(self, tmp_path):
        flags = (*QUICK, "--output_dir", tmp_path / "run", "--checkpoint_dir", tmp_path / "weights")
        train_here(*flags, check=0)
        shutil.rmtree(tmp_path / "run")
        file = tmp_path / "weights/checkpoint.pth"
        torch.save({"model": torch.load(file, weights_only=True)["model"]}, file)
        assert "is no checkpoint of a run" in complaint(*flags)

    def test_one_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        line = complaint(*QUICK, "--output_dir", tmp_path / "run", "--checkpoint_dir", tmp_path / "file")
        assert f"--checkpoint_dir {tmp_path / 'file'}: is a file" in line
