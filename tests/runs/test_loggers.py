"""What TensorBoard and Weights & Biases are given, read back by their own readers."""

import json
import shlex
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maekit import files
from tests.support import KIT, run, train, train_here

FLAGS = shlex.split("--demo --epochs 3 --max_images 64 --batch_size 32 --num_workers 0")
FLAGS += shlex.split("--norm adyt --probes 'joint frozen' --alpha 0.1 --eval_every 2 --output_dir")
OFFLINE = {"WANDB_MODE": "offline", "WANDB_PROJECT": ""}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logged") / "Method" / "seed0"
    pytest.importorskip("wandb")
    train(*FLAGS, folder, "--wandb", env=OFFLINE, check=0)
    return folder


@pytest.mark.slow
def test_tensorboard_has_alphas_pictures_and_settings_to_sort_by(finished):
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0, "histograms": 0}).Reload()
    assert [h.step for h in events.Histograms("norm_alpha")] == [0, 1, 2]
    assert (
        events.Histograms("norm_alpha")[0].histogram_value.num == 8
    )  # two in each of 2 + 1 blocks, and two at the ends
    pictures = events.Images("reconstructions")
    assert [picture.step for picture in pictures] == [1, 2]  # every second epoch, and the last
    assert (pictures[0].width, pictures[0].height) == (8 * 64, 3 * 64)
    settings = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"AdaptiveDynamicTanh" in settings and b"adyt_lambda" in settings
    summary = json.loads((finished / "summary.json").read_text())
    assert events.Scalars("final/val_mse")[0].value == pytest.approx(summary["val_mse"])


def wandb_records(folder):
    """The records of the one offline run below a folder."""
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    return wandb_records_of(file)


def wandb_records_of(file):
    """The records of a run's file: LevelDB's log format after 7 bytes of header, protobuf inside."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts, records = file.read_bytes(), 7, [], []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block is too small for another header
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(wandb_internal_pb2.Record.FromString(b"".join(parts)))
            parts = []
    return records


@pytest.mark.slow
def test_an_offline_run_of_weights_and_biases_holds_config_metrics_and_figures(finished):
    records = wandb_records(finished)
    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert run.project == "mae-norm-comparison" and run.display_name == "Method/seed0"
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["identity"]["norm"] == "AdaptiveDynamicTanh" and config["versions"]["torch"]

    history = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            history.setdefault(row["_step"], {}).update(row)
    for row in files.read_csv(finished / "log.csv"):
        logged = history[row["epoch"]]
        for name in ("train_loss", "val_mse", "accuracy", "frozen_accuracy", "lr"):
            assert logged[name] == pytest.approx(row[name]), name
        assert "norm_alpha" in logged or any(key.startswith("norm_alpha") for key in logged)
    saved = {path.name.partition("_")[0] for path in finished.glob("wandb/offline-run-*/files/media/images/*")}
    assert {"loss", "reconstructions"} <= saved


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_name_there_and_another_has_another(finished, tmp_path):
    """Runs of equal settings in folders of equal names are two; the service would take the second for the first."""
    pytest.importorskip("wandb")

    def called(folder):
        return [
            r.run.run_id
            for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))
            for r in wandb_records_of(file)
            if r.HasField("run")
        ]

    other = tmp_path / "Method" / "seed0"
    train(*FLAGS, other, "--epochs", "1", "--wandb", env=OFFLINE, check=0)
    (first,) = set(called(other))
    (other / "summary.json").unlink()
    train(*FLAGS, other, "--epochs", "1", "--wandb", env=OFFLINE, check=0)
    assert set(called(other)) == {first} and first not in called(finished)
    assert len(list(other.glob("wandb/offline-run-*"))) == 2


def test_wandb_is_off_unless_asked_for(tmp_path):
    train(*FLAGS, tmp_path, "--epochs", "1", env={**OFFLINE, "WANDB_PROJECT": "somebody's"}, check=0)
    assert not (tmp_path / "wandb").exists()


@pytest.mark.slow
def test_projects_are_named_by_flag_then_variable(tmp_path):
    pytest.importorskip("wandb")
    train(
        *FLAGS, tmp_path / "variable", "--epochs", "1", "--wandb", env={**OFFLINE, "WANDB_PROJECT": "theirs"}, check=0
    )
    assert next(r.run.project for r in wandb_records(tmp_path / "variable") if r.HasField("run")) == "theirs"
    train(
        *FLAGS,
        tmp_path / "flag",
        "--epochs",
        "1",
        "--wandb_project",
        "mine",
        env={**OFFLINE, "WANDB_PROJECT": "theirs"},
        check=0,
    )
    assert next(r.run.project for r in wandb_records(tmp_path / "flag") if r.HasField("run")) == "mine"


def test_where_it_is_not_installed_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = train_here(*FLAGS, tmp_path / "run", "--wandb", check=2).stderr
    assert error == "error: --wandb: wandb is not installed. pip install wandb, or leave it out.\n"
    assert not (tmp_path / "run").exists()


def test_without_a_login_nothing_is_trained(tmp_path):
    pytest.importorskip("wandb")
    environment = {"WANDB_MODE": "online", "HOME": str(tmp_path), "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}
    result = train(*FLAGS, tmp_path / "run", "--wandb", env=environment, check=2)
    assert result.stderr.splitlines()[-1].startswith("error: --wandb: not logged in. Run `wandb login`")
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_driver_s_analysis_is_logged_with_its_statistics_as_an_artifact(tmp_path):
    pytest.importorskip("wandb")
    flags = (
        "--demo",
        "--epochs",
        "1",
        "--max_images",
        "32",
        "--batch_size",
        "16",
        "--num_workers",
        "0",
        "--alphas",
        "0 0.5",
        "--probes",
        "joint",
        "--wandb",
        "--output_dir",
        tmp_path,
    )
    run("bash", KIT / "quick_sweep_test.sh", *flags, env=OFFLINE, check=0)
    records = wandb_records(tmp_path / "analysis_demo-quick")
    logged = next(r.run for r in records if r.HasField("run"))
    assert logged.project == "mae-reconstruction-gap-manual-probes"
    artifacts = [r.request.log_artifact.artifact for r in records if r.HasField("request")]
    artifacts += [r.artifact for r in records if r.HasField("artifact")]
    names = {entry.path for artifact in artifacts for entry in artifact.manifest.contents}
    assert {"gap_statistics.json", "gap_table.csv", "report.html", "tube_scatter_signed_alpha.png"} <= names
    trained = list((tmp_path / "demo-mae-reconstruction-gap").rglob("offline-run-*"))
    assert len(trained) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "project"),
    [
        ("run_comparison.sh", "mae-norm-comparison"),
        ("quick_sweep_test.sh", "mae-reconstruction-gap-manual-probes"),
        ("lr_alpha_sweep.sh", "mae-reconstruction-gap-lr-sweep"),
        ("run_alpha_sweep.sh", "mae-reconstruction-gap-full-sweep"),
    ],
)
def test_each_driver_has_a_project_of_its_own(script, project):
    def projects(*flags, variable=""):
        out = run("bash", KIT / script, "--demo", "--dry_run", *flags, env={"WANDB_PROJECT": variable}, check=0).stdout
        words = shlex.split(out)
        assert out.count("--wandb_project ") in (0, len(out.splitlines()))
        return {words[i + 1] for i, word in enumerate(words) if word == "--wandb_project"}

    assert projects(variable="theirs") == set()
    assert projects("--wandb") == {project}
    assert projects("--wandb", variable="theirs") == {"theirs"}
    assert projects("--wandb_project", "mine", variable="theirs") == {"mine"}
