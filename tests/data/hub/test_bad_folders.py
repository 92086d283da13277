"""Folders of data sets that cannot be used are one line."""

import json
import shutil
import sys

import datasets
import pytest

from maekit.data import hub
from tests.support import run
from tests.support.hub import CLIENT, dataset_dict, message, save, save_converted, save_split_folders, split_of


def test_missing_splits_are_named_with_those_there_are(files, tmp_path):
    said = message(save(dataset_dict(files, validation=None, extra=files["validation"]), tmp_path / "d"))
    assert "no split validation" in said and "split extra" in said and "--val_share 0.1" in said
    said = message(save(dataset_dict(files, train=None), tmp_path / "e"))
    assert "has validation" in said


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("write", [save, save_split_folders])
def test_an_empty_split_is_one_line(files, tmp_path, write, split):
    reason = f"split {split} has no images" if write is save else "cannot be read"
    assert reason in message(write(dataset_dict(files, **{split: []}), tmp_path / "d"))


def test_missing_columns_are_named_with_those_there_are(files, tmp_path):
    made = dataset_dict(files)
    said = message(save(made.remove_columns("image"), tmp_path / "d"))
    assert "label: ClassLabel" in said and "Image" in said
    said = message(save(made.cast_column("label", datasets.Value("string")), tmp_path / "e"))
    assert "image: Image" in said and "label: string" in said


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("label", [-1, None])
def test_a_training_split_with_unlabelled_images_is_refused(files, tmp_path, label):
    rows = [*files["train"][:-1], (files["train"][-1][0], label)]
    assert "train" in message(save(dataset_dict(files, train=rows), tmp_path / "d"))


def test_a_dataset_without_splits_says_to_save_a_dict(files, tmp_path):
    split_of(files["train"]).save_to_disk(tmp_path / "d")
    assert "without splits" in message(tmp_path / "d") and "DatasetDict" in message(tmp_path / "d")


def test_a_folder_of_neither_kind_is_one_line(tmp_path, demo_dir):
    (tmp_path / "d").mkdir()
    assert "neither" in message(tmp_path / "d")
    assert "--imagenet_dir" in message(demo_dir)


@pytest.mark.parametrize("name", ["/data/none", "./none", "~/none", "a/b/c"])
def test_a_missing_folder_is_one_line_and_asks_no_hub(name, monkeypatch):
    monkeypatch.setattr(hub, "_unreachable", lambda: pytest.fail("asked the hub"))
    assert "no such folder" in message(name)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.slow
def test_damaged_folders_are_one_line(files, saved, tmp_path):
    for i, damage in enumerate(
        (
            lambda d: shutil.rmtree(d / "validation"),
            lambda d: (d / "train" / "state.json").write_text("{"),
            lambda d: truncate(next((d / "train").glob("*.arrow"))),
            lambda d: next((d / "train").glob("*.arrow")).unlink(),
            lambda d: (d / "dataset_dict.json").write_text("no JSON"),
        )
    ):
        folder = tmp_path / f"s{i}"
        shutil.copytree(saved, folder)
        damage(folder)
        assert "cannot be read" in message(folder), i
    folder = save_converted(dataset_dict(files), tmp_path / "p", "default")
    truncate(folder / "default" / "train" / "0001.parquet")
    result = run(
        sys.executable, "-c", CLIENT, json.dumps([(str(folder), None)]), env={"HF_HOME": str(tmp_path)}, check=0
    )
    assert "cannot be read" in result.stdout and result.stderr == ""  # no log lines of the library's either


def test_a_long_error_of_a_library_becomes_one_line(saved, monkeypatch):
    def fail(folder):
        raise ValueError("first line\n\tsecond line\n" + "and so on, " * 500)

    monkeypatch.setattr(datasets, "load_from_disk", fail)
    assert "ValueError: first line second line and so on" in message(saved)


def test_a_configuration_must_be_named_where_there_are_several(files, tmp_path):
    made = dataset_dict(files)
    for config in ("160px", "320px"):
        save_converted(made, tmp_path / "d", config)
    said = message(tmp_path / "d")
    assert "--hf_config" in said and "160px, 320px" in said
    said = message(tmp_path / "d", "full_size")
    assert "--hf_config full_size" in said and "160px, 320px" in said
    assert len(hub.open_splits(str(tmp_path / "d"), "320px")[0]) == 120


def test_a_partial_conversion_is_not_taken_for_the_whole(files, tmp_path):
    folder = save_converted(dataset_dict(files), tmp_path / "d", "default")
    (folder / "default" / "train").rename(folder / "default" / "partial-train")
    assert "only a part" in message(folder) and "partial-train" in message(folder)


def test_the_module_imports_neither_torch_nor_datasets():
    code = "import sys, maekit.data.hub; print(sorted({'torch', 'datasets', 'pyarrow', 'huggingface_hub'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code, check=0).stdout == "[]\n"


def test_a_missing_library_stays_a_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError):
        hub.open_splits("frgfm/imagenette", "320px")
