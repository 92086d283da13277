"""Where a run folder is kept: full disks and locked ones, a disk for weights, folders of others and of older kits."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from maekit import files
from maekit.errors import Busy, InputError
from maekit.runs import measures
from maekit.runs.folder import RunFolder
from tests.support import KIT, run, train, train_here
from tests.support.commands import complaint

DEMO = ("--demo", "--max_images", "32", "--batch_size", "32", "--num_workers", "0")
QUICK = (*DEMO, "--epochs", "1")


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


def test_two_processes_may_try_at_once_whether_a_folder_can_be_written(tmp_path):
    tries = "import sys; sys.path.insert(0, sys.argv[1]); from maekit.runs import folder\n" + (
        "for _ in range(3000): folder._make_writable(folder.Path(sys.argv[2], 'status.json'), '--output_dir')"
    )
    both = [subprocess.Popen([sys.executable, "-c", tries, KIT, tmp_path]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0] and not list(tmp_path.iterdir())


def test_an_output_folder_that_is_a_file_or_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in complaint(*QUICK, "--output_dir", tmp_path / "file")
    assert "cannot be written" in complaint(*QUICK, "--output_dir", tmp_path / "file" / "below")
    assert "cannot be written" in complaint(*QUICK, "--output_dir", "/proc/nowhere")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_files_before_whole(tmp_path):
    """A real file system of 6 MB where it can be mounted; else a limit on the size of files."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], check=False).returncode == 0
    flags = (*DEMO, "--epochs", "2", "--output_dir", small / "run")
    try:
        if mounted:  # room for one checkpoint of 4 MB, not for two
            result = train(*flags, check=2)
        else:
            limited = f"ulimit -f 3000; exec {sys.executable} train.py {' '.join(map(str, flags))}"
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


@pytest.mark.parametrize("content", ['{"mine": 1}', "[]"])
def test_a_config_of_something_else_is_left_alone(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    for more in ((), ("--overwrite",), ("--overwrite", "--resume", "never")):
        assert "config.json: is not of a run. Move it away" in complaint(*QUICK, "--output_dir", tmp_path, *more)
    assert (tmp_path / "config.json").read_text() == content


def test_a_run_that_left_no_state_binds_no_precision(tmp_path):
    """It was out of memory, say, in its first step."""
    files.write_json(tmp_path / "config.json", {"identity": {"precision": "bfloat16", "pixels": "reduced to 7"}})
    train_here(*QUICK, "--output_dir", tmp_path, check=0)


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

    @pytest.mark.slow
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

    @pytest.mark.slow
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
