"""python -m maekit.export: what it refuses, what it writes, what its card says, and what reports say of it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from maekit.export import trained
from tests.support import KIT, analyse_here, export_here, train_here
from tests.support.exporting import RUN


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A comparison: LayerNorm with three seeds, the first with an evaluation, DynamicTanh with one."""
    root = tmp_path_factory.mktemp("comparison")
    for seed in range(3):
        train_here(*RUN, "--norm", "ln", "--seed", seed, "--output_dir", root / f"LayerNorm/seed{seed}", check=0)
        knn = ("--init", root / f"LayerNorm/seed{seed}", "--output_dir", root / f"LayerNorm/seed{seed}/knn")
        train_here(*RUN, "--task", "knn", "--seed", seed, *knn, check=0)
    train_here(*RUN, "--norm", "dyt", "--output_dir", root / "DynamicTanh/seed0", check=0)
    return root


@pytest.fixture
def run(root, tmp_path):
    """A run's folder of one's own."""
    shutil.copytree(root / "LayerNorm/seed0", tmp_path / "runs/LayerNorm/seed0")
    return tmp_path / "runs/LayerNorm/seed0"


def complaint(*flags):
    result = export_here(*flags, check=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_help_is_there_before_the_packages_are():
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-S", "-m", "maekit.export", "--help"]
    done = subprocess.run(words, cwd=KIT, env=without, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "--push" in done.stdout


def test_a_norm_that_hugging_face_has_no_layer_for_is_refused_with_the_way_out(root, tmp_path):
    line = complaint(root / "DynamicTanh/seed0", tmp_path / "out", "--to", "huggingface")
    assert "its norm is DynamicTanh" in line and "--to timm" in line
    assert not (tmp_path / "out").exists() and not (root / "DynamicTanh/seed0/exports.json").exists()


def test_runs_without_weights_to_export_are_refused(root, run, tmp_path):
    def refused(*flags):
        return complaint(*flags, tmp_path / "out", "--to", "timm")

    assert "no run in it (no config.json)" in refused(tmp_path)
    assert "k-NN trains no weights" in refused(root / "LayerNorm/seed0/knn")
    assert "keeps no moving average" in refused(run, "--ema")
    checkpoint = run / "checkpoint.pth"
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["norm.weight"][0] = float("nan")
    torch.save(state, checkpoint)
    assert "norm.weight has values that are not finite" in refused(run)
    torch.save({**state, "args": {**state["args"], "lr": 7.0}}, checkpoint)
    assert f"{checkpoint}: is of a run with --lr 7.0" in refused(run)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    assert f"{checkpoint}: truncated, damaged" in refused(run)
    checkpoint.unlink()
    assert "its checkpoint is not there" in refused(run)
    summary = run / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "status": "diverged"}))
    assert "has diverged" in refused(run)
    summary.unlink()
    assert "has not ended" in refused(run)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_kept_elsewhere_is_found(tmp_path):
    train_here(*RUN, "--output_dir", tmp_path / "run", "--checkpoint_dir", tmp_path / "kept", check=0)
    export_here(tmp_path / "run", tmp_path / "out", "--to", "timm", check=0)
    assert (tmp_path / "out/model.safetensors").is_file()


def test_what_is_in_the_folder_stays_unless_it_is_an_export_to_be_overwritten(run, tmp_path):
    out = tmp_path / "out"
    export_here(run, out, "--to", "upstream", check=0)
    assert {file.name for file in out.iterdir()} == {"checkpoint.pth", "README.md"}
    assert "holds an export" in complaint(run, out, "--to", "timm")
    export_here(run, out, "--to", "timm", "--overwrite", check=0)
    assert {file.name for file in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    (out / "notes.txt").write_text("mine")
    assert "holds notes.txt" in complaint(run, out, "--to", "timm", "--overwrite")
    assert "holds checkpoint.previous.pth, which" in complaint(run, _run_beside(run), "--to", "timm", "--overwrite")
    assert "is a file" in complaint(run, out / "notes.txt", "--to", "timm")
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_only_has_the_names_of_an_export_is_not_deleted(run, tmp_path):
    kept = tmp_path / "kept"
    train_here(*RUN, "--output_dir", tmp_path / "other", "--checkpoint_dir", kept, check=0)
    assert [file.name for file in kept.iterdir()] == ["checkpoint.pth"]
    assert "holds checkpoint.pth, which is of no export" in complaint(run, kept, "--to", "timm", "--overwrite")


def test_a_folder_can_be_a_link_or_the_current_one_and_a_wrong_one_is_a_line(run, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export_here(run, tmp_path / "link", "--to", "timm", check=0)
    assert (tmp_path / "real/README.md").is_file() and (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_here(run, ".", "--to", "timm", check=0)
    assert (tmp_path / "here/README.md").is_file()
    (tmp_path / "file").touch()
    assert "cannot be written (Not a directory)" in complaint(run, tmp_path / "file/x", "--to", "timm")


def _run_beside(run):
    folder = run.parent / "other"
    folder.mkdir()
    (folder / "checkpoint.pth").write_bytes(b"precious")
    (folder / "checkpoint.previous.pth").write_bytes(b"precious")
    return folder


def test_the_card_has_the_data_the_recipe_and_the_numbers_of_all_seeds(root, tmp_path):
    run = root / "LayerNorm/seed1"
    export_here(run, tmp_path / "out", "--to", "huggingface", "--license", "cc-by-4.0", check=0)
    text = (tmp_path / "out/README.md").read_text()
    assert text.startswith("---\nlicense: cc-by-4.0\nlibrary_name: transformers\n")
    summaries = [json.loads((root / f"LayerNorm/seed{seed}/summary.json").read_text()) for seed in range(3)]
    config = json.loads((run / "config.json").read_text())
    losses = torch.tensor([summary["val_mse"] for summary in summaries], dtype=torch.float64)
    half = 4.302652729911275 * losses.std() / 3**0.5  # Student's t of 2 degrees of freedom, 97.5 %
    cell = f"{losses.mean():.4g} ({losses.mean() - half:.4g} to {losses.mean() + half:.4g})"
    assert f"| validation loss | {losses[1]:.4g} | {cell} |" in text
    knn = [json.loads((root / f"LayerNorm/seed{seed}/knn/summary.json").read_text())["acc1"] for seed in range(3)]
    assert f"| k-NN (%) | {knn[1]:.1f} (" in text and f"| {sum(knn) / 3:.4g} (" in text
    for said in (
        config["data"]["fingerprint"],
        f"{config['data']['train_images']:,} for training",
        f"| --lr | {config['identity']['lr']} |",
        "| --seed | 1 |",
        config["hardware"],
        "encoder 32 wide, 2 blocks, 2 heads",
        "The weights: cc-by-4.0.",
    ):
        assert said in text, said


def test_weights_that_began_from_others_say_so(run, tmp_path):
    train_here(*RUN, "--init", run, "--output_dir", tmp_path / "more", check=0)
    export_here(tmp_path / "more", tmp_path / "out", "--to", "timm", check=0)
    text = (tmp_path / "out/README.md").read_text()
    assert "license: unknown" in text and "Training began from other weights, whose licence goes on" in text
    assert "| began from | seed0/checkpoint.pth (sha256:" in text and str(tmp_path) not in text


def test_an_upload_is_asked_for_once_all_is_written(run, tmp_path, monkeypatch):
    import huggingface_hub

    out, asked = tmp_path / "out", []

    class Api:
        def create_repo(self, name, private, exist_ok):
            asked.append((name, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            asked.append((repo_id, sorted(os.listdir(folder_path))))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    line = complaint(run, out, "--to", "timm", "--push", "me/mae")
    assert "not logged in" in line and "hf auth login" in line and not out.exists()
    assert "no name of the hub" in complaint(run, out, "--to", "timm", "--push", "mae")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    export_here(run, out, "--to", "timm", "--push", "me/mae", "--private", check=0)
    assert asked == [("me/mae", True, True), ("me/mae", ["README.md", "config.json", "model.safetensors"])]
    assert 'snapshot_download("me/mae")' in (out / "README.md").read_text()
    assert json.loads((run / "exports.json").read_text())[0]["pushed"] == "me/mae"

    assert [e["pushed"] for e in json.loads((run / "exports.json").read_text())] == ["me/mae"]

    def fail(self, **_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Api, "upload_folder", fail)
    line = complaint(run, tmp_path / "again", "--to", "timm", "--push", "me/mae")
    assert "not uploaded (ConnectionError: no route to host)" in line and "is whole" in line
    assert (tmp_path / "again/model.safetensors").is_file()
    assert [e["pushed"] for e in json.loads((run / "exports.json").read_text())] == ["me/mae", None]


def test_a_run_knows_its_exports_and_a_new_one_forgets_them(run, tmp_path):
    for to in ("timm", "upstream"):
        export_here(run, tmp_path / to, "--to", to, check=0)
    export_here(run, tmp_path / "timm", "--to", "timm", "--overwrite", check=0)
    known = json.loads((run / "exports.json").read_text())
    assert [(e["to"], e["folder"]) for e in known] == [(to, str(tmp_path / to)) for to in ("upstream", "timm")]
    train_here(*RUN, "--output_dir", run, "--norm", "dyt", "--overwrite", check=0)
    assert not (run / "exports.json").exists()


def test_the_report_says_how_to_use_the_weights(root, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(root, runs)
    analyse_here("comparison", "--output_dir", runs, check=0)
    page = (runs / "report.html").read_text()
    assert "Use these weights" in page
    assert f"python -m maekit.export {runs}/LayerNorm/seed0 exports/LayerNorm --to huggingface" in page
    assert f"python -m maekit.export {runs}/DynamicTanh/seed0 exports/DynamicTanh --to timm" in page
    export_here(runs / "LayerNorm/seed2", tmp_path / "mine", "--to", "upstream", check=0)
    analyse_here("comparison", "--output_dir", runs, check=0)
    page = (runs / "report.html").read_text()
    assert "LayerNorm/seed2" in page and "../mine" in page and "exported for upstream" in page
    export_here(runs / "DynamicTanh/seed0", tmp_path / "mine", "--to", "upstream", "--overwrite", check=0)
    analyse_here("comparison", "--output_dir", runs, check=0)
    page = (runs / "report.html").read_text()
    assert page.count("exported for upstream") == 1, "what is there now is another run's"
    (runs / "LayerNorm/seed0/exports.json").write_text('{"a": 1}')
    (runs / "LayerNorm/seed1/exports.json").write_text("{")
    shutil.rmtree(tmp_path / "mine")
    analyse_here("comparison", "--output_dir", runs, check=0)
    assert "exported for" not in (runs / "report.html").read_text()
    export_here(runs / "LayerNorm/seed1", tmp_path / "again", "--to", "timm", check=0)


def test_all_of_a_classifier_is_read(root, tmp_path):
    flags = ("--task", "linprobe", "--init", root / "LayerNorm/seed0", "--output_dir", tmp_path / "probe")
    train_here(*RUN, *flags, "--readout", "attentive", check=0)
    assert "reads its encoder by attention" in complaint(tmp_path / "probe", tmp_path / "out", "--to", "timm")
    train_here(*RUN, *flags[:-1], tmp_path / "mean", "--readout", "mean", check=0)
    assert trained.read(tmp_path / "mean").classes == 10
    assert "by the mean of the patches" in complaint(tmp_path / "mean", tmp_path / "out", "--to", "huggingface")
    assert "upstream's ViT does not" in complaint(tmp_path / "mean", tmp_path / "out", "--to", "upstream")
