"""Data sets of the Hugging Face hub: a hub on this machine, local folders, images and labels, one-line errors."""

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import numpy as np
import pytest
from PIL import Image

from maekit.data import hub, sources
from maekit.errors import InputError
from tests.support import KIT, run, train_here
from tests.support.batches import center_crop_by_pil, collect, equal, training, validation

CLASSES = ("astronaut", "chelsea", "coffee")
PER_CLASS = {"train": 40, "validation": 5}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What the library caches goes to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture(scope="module")
def files(demo_dir):
    """{split: [(file, label)]} of three demo classes; images of a class are not in a row."""
    base = demo_dir / "Data" / "CLS-LOC"
    table = [line.split(",") for line in (demo_dir / "LOC_val_solution.csv").read_text().splitlines()[1:]]
    validation = [[base / "val" / f"{stem}.JPEG" for stem, words in table if words.split()[0] == c] for c in CLASSES]
    of_class = {"train": [sorted((base / "train" / c).glob("*.JPEG")) for c in CLASSES], "validation": validation}
    found = {}
    for split, n in PER_CLASS.items():
        found[split] = [(str(of_class[split][label][i]), label) for i in range(n) for label in range(len(CLASSES))]
    return found


def features(**columns):
    return datasets.Features({"image": datasets.Image(), **(columns or {"label": datasets.ClassLabel(names=CLASSES)})})


def split_of(rows, kind=None):
    """A Dataset of (file or bytes or None, label) pairs."""
    images = [
        None if x is None else {"bytes": x if isinstance(x, bytes) else read(x), "path": f"{i}.JPEG"}
        for i, (x, _) in enumerate(rows)
    ]
    return datasets.Dataset.from_dict({"image": images, "label": [y for _, y in rows]}, features=kind or features())


def read(file):
    with open(file, "rb") as f:
        return f.read()


def dataset_dict(files, **splits):
    """The demo's DatasetDict, with other splits or some left out (None)."""
    rows = {"train": files["train"], "validation": files["validation"], **splits}
    made = {name: split_of(r) if isinstance(r, list) else r for name, r in rows.items() if r is not None}
    return datasets.DatasetDict(made)


def save(made, folder):
    made.save_to_disk(folder)
    return folder


def save_converted(made, folder, config, shards=2):
    """The layout of the hub's parquet conversion: <config>/<split>/NNNN.parquet."""
    for split, rows in made.items():
        (folder / config / split).mkdir(parents=True)
        for i in range(shards):
            rows.shard(shards, i, contiguous=True).to_parquet(folder / config / split / f"{i:04d}.parquet")
    return folder


def save_named(made, folder, prefix="data/"):
    """The layout of push_to_hub: data/<split>-NNNNN-of-NNNNN.parquet."""
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    for split, rows in made.items():
        rows.to_parquet(folder / f"{prefix}{split}-00000-of-00001.parquet")
    return folder


def save_split_folders(made, folder):
    for split, rows in made.items():
        (folder / split).mkdir(parents=True)
        rows.to_parquet(folder / split / "part.parquet")
    return folder


@pytest.fixture(scope="module")
def saved(files, tmp_path_factory):
    """A folder that save_to_disk wrote; not to be changed."""
    return save(dataset_dict(files), tmp_path_factory.mktemp("hub") / "saved")


def message(name, config=None):
    with pytest.raises(InputError) as raised:
        hub.open_splits(str(name), config)
    text = str(raised.value)
    assert "\n" not in text and len(text) < 600
    assert str(name) in text
    return text


# Images and labels


LAYOUTS = {
    "save_to_disk": (save, None),
    "split folders": (save_split_folders, None),
    "push_to_hub": (save_named, None),
    "hub conversion": (lambda made, folder: save_converted(made, folder, "160px"), "160px"),
    "hub conversion, only config": (lambda made, folder: save_converted(made, folder, "default"), None),
}


@pytest.mark.parametrize(("write", "config"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_named_images_with_their_pixels_and_labels(files, tmp_path, write, config, capfd):
    folder = write(dataset_dict(files), tmp_path / "flowers")
    capfd.readouterr()
    train, val, classes, fingerprint = hub.open_splits(str(folder), config)
    assert capfd.readouterr() == ("", "")  # no progress bars, no warnings
    assert tuple(classes) == CLASSES
    assert len(fingerprint) == 16 and int(fingerprint, 16)
    for images, split in ((train, "train"), (val, "validation")):
        assert images.root == f"{folder} {split}" and len(images) == len(files[split])
        assert images.labels.dtype == np.int64
        for i, (file, label) in enumerate(files[split]):
            assert images.file(i) == f"{folder} {split}[{i}]"
            assert images.labels[i] == label
            np.testing.assert_array_equal(np.asarray(images.open(i)), np.asarray(Image.open(file)))


def test_batches_hold_the_crops_of_the_images_whatever_the_workers(files, saved):
    train, val, _, _ = hub.open_splits(str(saved))
    alone = collect(validation(val, with_labels=True)[0])
    assert equal(alone, collect(validation(val, workers=2, with_labels=True)[0]))
    for i, (file, label) in enumerate(files["validation"]):
        np.testing.assert_array_equal(alone["images"][i].permute(1, 2, 0).numpy(), center_crop_by_pil(file))
        assert alone["labels"][i] == label
    alone = collect(training(train, with_labels=True)[0], 1)
    assert equal(alone, collect(training(train, workers=2, with_labels=True)[0], 1))
    by_index = [files["train"][i][1] for i in alone["index"].tolist()]
    assert alone["labels"].tolist() == by_index


def read_in_child(images, rows):
    return [(images.open(i).convert("RGB").tobytes(), images.file(i), int(images.labels[i])) for i in rows]


def test_a_run_on_a_saved_data_set_equals_the_run_on_the_same_files_in_folders(files, saved, tmp_path):
    """Losses and accuracies to the last digit: JPEG bytes, order and labels are the same."""
    for split, folder in (("train", "train"), ("validation", "val")):
        for file, label in files[split]:
            (tmp_path / "folders" / folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / "folders" / folder / CLASSES[label])
    rows = {split: sorted(files[split], key=lambda row: (row[1], os.path.basename(row[0]))) for split in files}
    save(dataset_dict(files, **rows), tmp_path / "set")
    flags = ("--model", "mae_vit_demo_patch8", "--input_size", "64", "--epochs", "2", "--batch_size", "40", "--lr", "1e-3",
             "--num_workers", "0", "--alpha", "0.5", "--probes", "all", "--max_images", "80")  # fmt: skip
    logs = {}
    for name, flag in (("folders", "--imagenet_dir"), ("set", "--hf_dataset")):
        train_here(*flags, flag, tmp_path / name, "--output_dir", tmp_path / "run" / name, check=0)
        logs[name] = json.loads((tmp_path / "run" / name / "trajectory.json").read_text())["trajectory"]
        config = json.loads((tmp_path / "run" / name / "config.json").read_text())
        assert config["data"]["classes"] == 3 and config["data"]["train_images"] == 80
    assert logs["set"] == logs["folders"]
    again = train_here(*flags, "--hf_dataset", tmp_path / "set", "--output_dir", tmp_path / "run" / "set", check=0)
    assert "finished already" in again.stdout


def test_images_travel_to_spawned_processes_without_their_bytes(saved):
    train, _, _, _ = hub.open_splits(str(saved))
    some = train.subset(np.array([7, 3]))
    assert len(pickle.dumps(some)) < os.path.getsize(next((saved / "train").glob("*.arrow"))) / 5
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_in_child, (some, [1, 0])) == read_in_child(some, [1, 0])


def test_a_subset_keeps_rows_names_and_labels_in_the_order_asked_for(files, saved):
    train, _, _, _ = hub.open_splits(str(saved))
    some = train.subset(np.array([50, 4, 31])).subset([2, 0])
    assert len(some) == 2 and some.file(0).endswith("train[31]") and some.root == train.root
    assert some.labels.tolist() == [files["train"][31][1], files["train"][50][1]]
    np.testing.assert_array_equal(np.asarray(some.open(1)), np.asarray(Image.open(files["train"][50][0])))
    chosen = sources.even_subset(train.labels, 3, 7, 0)  # what --max_images does
    assert np.bincount(train.subset(chosen).labels).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def test_opening_decodes_no_image(files, tmp_path):
    rows = [(b"not an image", label) for _, label in files["train"]]
    train, _, _, _ = hub.open_splits(str(save(dataset_dict(files, train=rows), tmp_path / "d")))
    with pytest.raises(OSError, match="cannot identify"):
        train.open(0)


def test_an_image_by_path_is_read_from_that_path(files, tmp_path):
    folder = save(dataset_dict(files), tmp_path / "d")
    train, _, _, _ = hub.open_splits(str(folder))
    rows = datasets.Dataset.from_dict({"image": [f for f, _ in files["train"]]}).cast_column("image", datasets.Image())
    by_path = hub.HubImages("x train", rows.cast_column("image", datasets.Image(decode=False)), None)
    np.testing.assert_array_equal(np.asarray(by_path.open(5)), np.asarray(train.open(5)))


@pytest.mark.parametrize("damage", [None, b"", b"\xff\xd8 no JPEG"], ids=["none", "empty", "damaged"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_row_is_named_and_replaced(files, tmp_path, damage, workers):
    rows = list(files["train"])
    rows[17] = (damage, rows[17][1])
    train, _, _, _ = hub.open_splits(str(save(dataset_dict(files, train=rows), tmp_path / "d")))
    said = []
    batch = collect(training(train, workers=workers, said=said)[0], 0)
    assert len(batch["images"]) == 120 and batch["broken"].max() == 17
    assert len(said) == 1 and f"{tmp_path / 'd'} train[17]" in said[0]


def test_an_image_cut_short_is_broken(files, tmp_path):
    rows = list(files["validation"])
    rows[3] = (read(rows[3][0])[:800], rows[3][1])
    _, val, _, _ = hub.open_splits(str(save(dataset_dict(files, validation=rows), tmp_path / "d")))
    with pytest.raises(InputError, match=r"validation\[3\]"):  # 1 of 15 is more than one in a hundred
        collect(validation(val)[0])


# Splits, columns, classes


@pytest.mark.parametrize(
    ("there", "used"),
    [
        (("validation", "val", "test"), "validation"),
        (("test", "val"), "val"),
        (("test", "valid"), "valid"),
        (("test",), "test"),
    ],
)
def test_validation_is_the_first_of_its_names(files, tmp_path, there, used):
    splits = {name: files["validation"] if name == used else files["validation"][:2] for name in there}
    made = dataset_dict(files, **{"validation": None, **splits})
    _, val, _, _ = hub.open_splits(str(save(made, tmp_path / "d")))
    assert val.root.endswith(f" {used}") and len(val) == 15


def test_of_several_columns_the_usual_names_are_taken(files, tmp_path):
    def add(rows):
        coarse = datasets.ClassLabel(names=["thing", "animal"])
        rows = rows.rename_columns({"image": "img", "label": "fine_label"})
        rows = rows.add_column("a_coarse", [0] * len(rows)).cast_column("a_coarse", coarse)
        other = split_of([(None, 0)] * len(rows)).remove_columns("label").rename_column("image", "a_mask")
        rows = datasets.concatenate_datasets([other, rows], axis=1)
        return rows.select_columns(["a_mask", "a_coarse", "img", "fine_label"])

    made = datasets.DatasetDict({split: add(rows) for split, rows in dataset_dict(files).items()})
    train, _, classes, _ = hub.open_splits(str(save(made, tmp_path / "d")))
    assert tuple(classes) == CLASSES and train.labels.tolist() == [y for _, y in files["train"]]
    assert train.open(0).size == (96, 96)


def test_integer_labels_become_the_positions_of_their_sorted_values(files, tmp_path):
    plain = features(label=datasets.Value("int32"))
    value = {0: 40, 1: 7, 2: 100}
    made = {split: split_of([(f, value[y]) for f, y in rows], plain) for split, rows in files.items()}
    train, val, classes, _ = hub.open_splits(str(save(datasets.DatasetDict(made), tmp_path / "d")))
    assert classes == ["7", "40", "100"]
    position = {0: 1, 1: 0, 2: 2}
    assert train.labels.tolist() == [position[y] for _, y in files["train"]]
    assert val.labels.tolist() == [position[y] for _, y in files["validation"]]

    made["validation"] = split_of([(files["validation"][0][0], 8)], plain)
    said = message(save(datasets.DatasetDict(made), tmp_path / "e"))
    assert "validation" in said and "label 8," in said and "7, 40, 100" in said


def test_validation_labels_go_by_the_names_of_the_training_classes(files, tmp_path):
    turned = features(label=datasets.ClassLabel(names=CLASSES[::-1]))
    val = split_of([(f, 2 - y) for f, y in files["validation"]], turned)
    _, val, classes, _ = hub.open_splits(str(save(dataset_dict(files, validation=val), tmp_path / "d")))
    assert tuple(classes) == CLASSES
    assert val.labels.tolist() == [y for _, y in files["validation"]]

    foreign = features(label=datasets.ClassLabel(names=("astronaut", "dog", "coffee")))
    made = dataset_dict(files, validation=split_of(files["validation"], foreign))
    assert "label dog, which is no class" in message(save(made, tmp_path / "e"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("unlabelled", [-1, None])
def test_a_validation_split_without_labels_has_none(files, tmp_path, unlabelled):
    made = dataset_dict(files, validation=[(f, unlabelled) for f, _ in files["validation"]])
    train, val, _, _ = hub.open_splits(str(save(made, tmp_path / "d")))
    assert val.labels is None and val.subset([1]).labels is None and train.labels is not None
    assert set(collect(validation(val, with_labels=True)[0])["labels"].tolist()) == {-1}


# Fingerprint


def test_the_fingerprint_is_of_the_content_not_of_its_storage(files, tmp_path):
    prints = {
        hub.open_splits(str(write(dataset_dict(files), tmp_path / str(i))), config)[3]
        for i, (write, config) in enumerate(LAYOUTS.values())
    }
    assert len(prints) == 1


def changed_label(rows):
    return [*rows[:-1], (rows[-1][0], (rows[-1][1] + 1) % 3)]


def changed_image(rows):
    return [*rows[:-1], (rows[0][0], rows[-1][1])]


def changed_order(rows):
    return [rows[1], rows[0], *rows[2:]]


def no_image(rows):
    return [*rows[:-1], (None, rows[-1][1])]


def unlabelled(rows):
    return [(f, -1) for f, _ in rows]


@pytest.mark.parametrize("change", [changed_label, changed_image, changed_order, no_image, unlabelled])
def test_other_content_has_another_fingerprint(files, saved, tmp_path, change):
    made = dataset_dict(files, validation=change(files["validation"]))
    assert hub.open_splits(str(save(made, tmp_path / "d")))[3] != hub.open_splits(str(saved))[3]


# Folders that cannot be used


def test_missing_splits_are_named_with_those_there_are(files, tmp_path):
    said = message(save(dataset_dict(files, validation=None, extra=files["validation"]), tmp_path / "d"))
    assert "train, extra" in said and "validation" in said
    said = message(save(dataset_dict(files, train=None), tmp_path / "e"))
    assert "has validation" in said


@pytest.mark.parametrize("write", [save, save_split_folders])
def test_an_empty_split_is_one_line(files, tmp_path, write):
    assert "cannot be read" in message(write(dataset_dict(files, validation=[]), tmp_path / "d"))


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


# The hub: one that this process serves


class Hub(ThreadingHTTPServer):
    """Repositories under `root`, as <owner>/<name>/<revision>/files, over the part of the hub's HTTP interface that
    the libraries use to look up and download a data set. `asked` lists the paths asked for."""

    daemon_threads = True

    def __init__(self, root):
        self.root, self.asked = root, []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts == [""]:
            return self.answer(200, b"hub")
        api = parts[0] == "api"
        if len(parts) < 3:
            return self.answer(404)
        owner, name, *rest = parts[2:] if api else parts[1:]
        verb, revision, *path = rest or ["revision", "main"]
        if owner == "gated":
            return self.answer(403 if api else 401, error="GatedRepo")
        repository = self.server.root / owner / name
        if not repository.is_dir():
            return self.answer(401, error="RepoNotFound")
        revisions = {r.name: r for r in repository.iterdir()}
        by_commit = {hashlib.sha1(r.encode()).hexdigest(): r for r in revisions}
        revision = by_commit.get(revision, revision).replace("/", "%2F")
        if revision not in revisions:
            return self.answer(404, error="RevisionNotFound")
        self.commit, base = hashlib.sha1(revision.encode()).hexdigest(), revisions[revision]
        if verb == "resolve":
            file = base.joinpath(*path)
            return self.answer(200, read(file)) if file.is_file() else self.answer(404, error="EntryNotFound")
        entries = [self.entry(base, f) for f in sorted(base.rglob("*"))]
        if verb == "revision":
            files = [{"rfilename": e["path"]} for e in entries if e["type"] == "file"]
            return self.json({"id": f"{owner}/{name}", "sha": self.commit, "siblings": files, "private": False})
        if verb == "paths-info":
            wanted = parse_qs(form).get("paths", [])
            return self.json([e for e in entries if e["path"] in wanted])
        assert verb == "tree", self.path
        folder, deep = "/".join(path), "recursive=true" in self.path.lower()
        inside = [e for e in entries if not folder or e["path"].startswith(folder + "/")]
        if folder and not inside:
            return self.answer(404, error="EntryNotFound")
        depth = len(path) + 1
        return self.json([e for e in inside if deep or e["path"].count("/") < depth])

    do_HEAD = do_POST = do_GET

    @staticmethod
    def entry(base, file):
        path = file.relative_to(base).as_posix()
        oid = hashlib.sha1(path.encode()).hexdigest()
        if file.is_dir():
            return {"type": "directory", "path": path, "oid": oid, "size": 0}
        return {"type": "file", "path": path, "oid": oid, "size": file.stat().st_size}

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), "application/json")

    def answer(self, status, body=b"", kind="application/octet-stream", error=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        if error:
            self.send_header("X-Error-Code", error)
        else:
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", getattr(self, "commit", ""))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


CLIENT = """
import json, sys, time
import datasets
from maekit import errors
from maekit.data import hub
for name, config in json.loads(sys.argv[1]):
    start = time.monotonic()
    try:
        train, val, classes, fingerprint = hub.open_splits(name, config)
        said = [train.root, val.root, train.labels.tolist(), len(val), classes, fingerprint, train.open(17).tobytes().hex()]
    except errors.InputError as error:
        said = str(error)
    print(json.dumps([said, time.monotonic() - start]), flush=True)
"""


def ask(hub_url, home, *sets, **env):
    """What open_splits gives or says for each (name, config), in a process of its own, and the seconds it took."""
    env = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_TOKEN": "", "PYTHONWARNINGS": "ignore", **env}
    result = run(sys.executable, "-c", CLIENT, json.dumps(sets), cwd=KIT, env=env, check=0)
    assert "Traceback" not in result.stderr, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def repositories(files, tmp_path_factory):
    """A hub's repositories: a loading script with its conversion, parquet files, and what cannot be used."""
    root, made = tmp_path_factory.mktemp("repositories"), dataset_dict(files)
    small = dataset_dict(files, train=files["train"][:30])

    def script(name):
        (root / name / "main").mkdir(parents=True)
        (root / name / "main" / f"{name.split('/')[1]}.py").write_text("raise SystemExit('a script was run')\n")
        (root / name / "main" / "README.md").write_text("---\nlicense: mit\n---\n")
        return root / name / "refs%2Fconvert%2Fparquet"

    converted = script("owner/scripted")
    save_converted(made, converted, "320px")
    save_converted(small, converted, "160px")
    (converted / ".gitattributes").write_text("*.parquet filter=lfs\n")
    save_converted(made, script("owner/scripted-once"), "default")
    save_converted(made, script("owner/scripted-partly"), "default")
    partly = root / "owner/scripted-partly/refs%2Fconvert%2Fparquet/default"
    (partly / "train").rename(partly / "partial-train")
    script("owner/scripted-only")

    parquet = save_named(made, root / "owner/parquet/main")
    (parquet / "README.md").write_text("# Images\n")
    configs = ["---", "configs:"]
    for config, rows in (("large", made), ("small", small)):
        save_named(rows, root / "owner/configs/main", f"{config}/")
        configs += [f"- config_name: {config}", "  data_files:"]
        configs += [f"  - split: {split}\n    path: {config}/{split}-*" for split in made]
    (root / "owner/configs/main/README.md").write_text("\n".join([*configs, "---", ""]))
    (root / "owner/text/main").mkdir(parents=True)
    (root / "owner/text/main/notes.md").write_text("no data\n")
    return root


WORKING = [
    ("owner/scripted", "320px"),
    ("owner/scripted-once", None),
    ("owner/parquet", None),
    ("owner/configs", "large"),
]


def test_scripts_and_parquet_repositories_load_and_work_offline_afterwards(files, saved, repositories, tmp_path):
    served = Hub(repositories)
    online = ask(served.url, tmp_path, *WORKING)
    assert not [path for path in served.asked if "160px" in path and "resolve" in path]  # only what was asked for
    for (name, _), (said, _) in zip(WORKING, online, strict=True):
        assert isinstance(said, list), said
        train_root, val_root, labels, n_val, classes, fingerprint, pixels = said
        assert (train_root, val_root, n_val) == (f"{name} train", f"{name} validation", 15)
        assert labels == [y for _, y in files["train"]] and tuple(classes) == CLASSES
        assert fingerprint == hub.open_splits(str(saved))[3]
        assert bytes.fromhex(pixels) == Image.open(files["train"][17][0]).tobytes()
    served.shutdown()
    served.server_close()

    never = [("owner/scripted", "160px"), ("owner/configs", "small"), ("owner/never", None)]
    for env in ({}, {"HF_HUB_OFFLINE": "1"}):
        offline = ask(served.url, tmp_path, *WORKING, *never, **env)
        assert [said for said, _ in offline[: len(WORKING)]] == [said for said, _ in online]
        for said, seconds in offline[len(WORKING) :]:
            assert "cannot be reached" in said and "--imagenet_dir" in said and "\n" not in said
            assert seconds < 60
        assert "large" in offline[-2][0]  # what the cache has


def test_an_interrupted_download_is_not_taken_for_the_whole(repositories, tmp_path):
    served = Hub(repositories)
    assert isinstance(ask(served.url, tmp_path, ("owner/scripted", "320px"))[0][0], list)
    served.shutdown()
    served.server_close()
    shard = next(tmp_path.rglob("320px/train/0001.parquet"))
    shard.unlink()
    assert "cannot be reached" in ask(served.url, tmp_path, ("owner/scripted", "320px"))[0][0]


def test_what_the_hub_does_not_have_is_one_line(repositories, tmp_path):
    served = Hub(repositories)
    expected = {
        ("owner/none", None): ["no such data set", "private"],
        ("gated/set", None): ["is gated", "https://huggingface.co/datasets/gated/set"],
        ("owner/scripted", None): ["--hf_config", "160px, 320px"],
        ("owner/scripted", "640px"): ["no such configuration", "160px, 320px"],
        ("owner/scripted-partly", None): ["only a part", "partial-train"],
        ("owner/scripted-only", None): ["loading script", "not converted"],
        ("owner/configs", None): ["--hf_config", "large", "small"],
        ("owner/configs", "medium"): ["no such configuration", "large", "small"],
        ("owner/parquet", "320px"): ["no such configuration", "default"],
        ("owner/text", None): ["no data files"],
        ("not a name", None): ["no such data set"],
    }
    for ((name, config), parts), (said, seconds) in zip(
        expected.items(), ask(served.url, tmp_path, *expected), strict=True
    ):
        assert isinstance(said, str) and said.startswith(f"--hf_dataset {name}") and "\n" not in said
        assert config is None or f"--hf_config {config}" in said
        for part in parts:
            assert part in said, said
    assert not [path for path in served.asked if "parquet" in path and "resolve" in path and path.endswith(".parquet")]


def test_a_name_server_that_does_not_answer_ends_in_seconds(monkeypatch):
    """Looking up a name has no limit of its own."""
    from huggingface_hub import constants, utils

    class Session:
        def head(self, *_, **__):
            forever.wait()

    forever = threading.Event()
    monkeypatch.setattr(utils, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", -1.9)
    assert hub._unreachable().startswith("no answer in 0.1")
    forever.set()


def test_opening_a_folder_asks_nobody(repositories, tmp_path, monkeypatch):
    """`datasets` would report that it was opened."""
    import socket

    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where))
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    folder = next(repositories.rglob("320px")).parent
    assert len(hub.open_splits(str(folder), "320px")[1]) and not asked


def test_a_hub_that_does_not_answer_ends_in_seconds(tmp_path):
    """A port that accepts and stays silent, and a host that does not exist."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ((said, seconds),) = ask(url, tmp_path, ("frgfm/imagenette", "320px"), HF_HUB_ETAG_TIMEOUT="2")
        assert seconds < 60
    assert said.startswith("--hf_dataset frgfm/imagenette --hf_config 320px: the hub cannot be reached (ReadTimeout")
    ((said, seconds),) = ask("http://hub.invalid", tmp_path, ("frgfm/imagenette", "320px"))
    assert "cannot be reached" in said and "--demo" in said and seconds < 60
