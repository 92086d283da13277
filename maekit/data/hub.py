"""Image data sets that the Hugging Face `datasets` library opens: hub repositories, parquet folders, save_to_disk."""

import contextlib
import glob
import hashlib
import io
import os
import queue
import re
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from .rows import RowImages

_CONVERTED = "refs/convert/parquet"  # the hub's own conversion of a repository: <config>/<split>/0000.parquet
_VALIDATION = ("validation", "val", "valid", "test")
_ELSEWHERE = "or download Imagenette's folder and use --imagenet_dir, or try --demo."


class HubImages(RowImages):
    """The images of one split, read from its Arrow file one by one: rows of a datasets.Dataset of one column, not decoded."""

    def open(self, index):
        """The image as PIL opens it, not decoded yet. Raises OSError for none, else what PIL raises."""
        (image,) = self._images[int(self._rows[index])].values()
        if image is None or (image["bytes"] is None and not image["path"]):
            raise OSError(f"{self.file(index)}: has no image")
        return Image.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"]))

    def signature(self):
        """Hash, in hexadecimal, of name, rows, labels, and sizes of the images in bytes."""
        digest = hashlib.sha256(self.root.encode() + b"\0" + self._rows.astype("<i8").tobytes())
        _update(digest, self._images, self.labels)
        return digest.hexdigest()


def open_splits(name, config=None):
    """(train, val, classes, fingerprint, left out) of a hub repository or a local folder: HubImages twice, list of str, str, and
    phrases on what of it is not used.

    val is the split validation, val, valid or test, the first there is, None where there is none; its labels are None where
    one is negative.
    The fingerprint, 16 hex digits, is of labels and sizes of images, whatever they are stored in. Raises InputError.
    """
    folder = Path(os.path.expanduser(name))
    try:
        splits = _open_folder(name, folder, config) if folder.is_dir() else _open_hub(name, config)
        return _train_and_val(name, config, splits)
    except (InputError, ModuleNotFoundError):
        raise
    except Exception as error:  # of five libraries and damaged files it may be anything
        raise _bad(name, config, _explain(name, config, error, folder.is_dir())) from error


def _open_folder(name, folder, config):
    """{split: Dataset} of a local folder."""
    import datasets

    if (folder / "state.json").is_file():
        raise _bad(name, None, "is one Dataset without splits. Save a DatasetDict with train and validation.")
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else what is on disk is reported, too
    with _quiet(datasets):
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        folder = folder.resolve()
        paths = [file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet")]
        if not paths:
            what = "neither a DatasetDict that save_to_disk wrote nor a folder of parquet files."
            raise _bad(name, None, f"{what} A folder of image files goes to --imagenet_dir.")
        converted = _converted_files(name, paths, config)
        if converted is None:
            return datasets.load_dataset(str(folder), config)
        files = {split: [glob.escape(str(folder / f)) for f in files] for split, files in converted.items()}
        return datasets.load_dataset("parquet", data_files=files)


def _converted_files(name, paths, config):
    """{split: paths} of a config in the layout <config>/<split>/NNNN.parquet; None if paths have another layout."""
    layout = {}
    for path in sorted(paths):
        if not (match := re.fullmatch(r"([^/]+)/([^/]+)/\d{4,}\.parquet", path)):
            return None
        layout.setdefault(match[1], {}).setdefault(match[2], []).append(path)
    if (len(layout) > 1) if config is None else (config not in layout):
        raise _bad(name, config, _which_config(config, _some(layout)))
    splits = layout[config or next(iter(layout))]
    if any(split.startswith("partial-") for split in splits):
        what = f"the hub has converted only a part of this set to parquet ({_some(splits)})."
        raise _bad(name, config, f"{what} Download the set and use --imagenet_dir.")
    return splits


def _open_hub(name, config):
    """{split: Dataset} of a hub repository, from the hub or its cache. No code of a repository is ever run."""
    import datasets

    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise _bad(name, None, "no such folder. Give a folder, or a hub name such as frgfm/imagenette.")
    unreachable = "offline mode" if datasets.config.HF_HUB_OFFLINE else _unreachable()
    if unreachable:
        datasets.config.HF_HUB_OFFLINE = True  # look into the cache at once, without retries
    try:
        return datasets.load_dataset(name, config)
    except Exception as error:
        if not unreachable and not (isinstance(error, RuntimeError) and "scripts are no longer" in str(error)):
            raise
        try:
            return _open_converted(name, config, local=bool(unreachable))
        except FileNotFoundError:  # not in the cache, or not wholly
            if not unreachable:
                raise
        cached = re.search(r"config\w* in the cache: (.*)", str(error))
        cached = f"; its cache has the configuration {cached[1]}" if cached else ""
        what = f"the hub cannot be reached ({unreachable}) and the set is not cached{cached}."
        raise _bad(name, config, f"{what} Connect once so that it is, {_ELSEWHERE}") from error


def _open_converted(name, config, local):
    """{split: Dataset} of the hub's parquet conversion, which there is for repositories that are loading scripts."""
    import huggingface_hub

    of_dataset = {"repo_type": "dataset", "revision": _CONVERTED}
    if not local:  # before a byte is downloaded: is the config there, and whole?
        paths = huggingface_hub.HfApi().list_repo_files(name, **of_dataset)
        _converted_files(name, [path for path in paths if path.endswith(".parquet")], config)
    wanted = "*.parquet" if config is None else f"{glob.escape(config)}/*.parquet"
    folder = huggingface_hub.snapshot_download(name, **of_dataset, allow_patterns=wanted, local_files_only=local)
    return _open_folder(name, Path(folder), config)


def _unreachable():
    """Why the hub does not answer one request, as text; None if it does. The library itself would try for minutes."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answer, limit = queue.SimpleQueue(), constants.HF_HUB_ETAG_TIMEOUT

    def ask():
        try:
            get_session().head(constants.ENDPOINT, timeout=limit)
            answer.put(None)
        except Exception as error:  # noqa: BLE001 - of whichever HTTP library there is
            answer.put(_line(error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.get(timeout=limit + 2)  # its own limit does not hold while a name is looked up
    except queue.Empty:
        return f"no answer in {limit + 2} s"


@contextlib.contextmanager
def _quiet(datasets):
    """No progress bars, and no log lines beside the error that is raised, for what is not a download."""
    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _train_and_val(name, config, splits):
    """What open_splits returns, of {split: Dataset}."""
    val_split = next((split for split in _VALIDATION if split in splits), None)
    if "train" not in splits:
        raise _bad(name, config, f"needs splits train and validation (or test), has {_some(splits)}.")
    parts, classes, digest = [], None, hashlib.sha256()
    for split in ("train", val_split) if val_split else ("train",):
        if not len(splits[split]):
            raise _bad(name, config, f"split {split} has no images. Choose another set.")
        images, labels, names = _columns(name, config, split, splits[split])
        if labels is not None and (labels < 0).any():
            labels = None
        if classes is None:
            if labels is None:
                raise _bad(name, config, f"split {split} has images without a label. Choose another set.")
            classes = list(names.values())
        if labels is not None:
            distinct, inverse = np.unique(labels, return_inverse=True)
            found = [names.get(value, value) for value in distinct.tolist()]
            if unknown := [label for label in found if label not in classes]:
                what = f"split {split} has label {unknown[0]}, which is no class of the training split"
                raise _bad(name, config, f"{what} ({_some(classes)}). Choose another set.")
            labels = np.array([classes.index(label) for label in found], dtype=np.int64)[inverse]
        _update(digest, images, labels)
        parts.append(HubImages(f"{name} {split}", images, labels))
    others = [split for split in splits if split not in ("train", val_split)]
    left_out = [f"split{'s' if others[1:] else ''} {_some(others)}"] if others else []
    return *(parts if val_split else (*parts, None)), classes, digest.hexdigest()[:16], left_out


def _columns(name, config, split, rows):
    """Of a split: images (Dataset of one column), labels as stored (int64 (n,), or None), {label: name of class}."""
    import datasets
    import pyarrow.compute as pc

    features = rows.features
    image = _pick([c for c, f in features.items() if isinstance(f, datasets.Image)], "image", "img")
    integers = [c for c in ("label", "labels") if re.match("u?int", getattr(features.get(c), "dtype", ""))]
    classed = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel)]
    label = _pick(classed or integers, "label", "labels", "fine_label")
    if image is None or (label is None and split == "train"):
        kinds = {c: f.dtype if isinstance(f, datasets.Value) else type(f).__name__ for c, f in features.items()}
        what = "Image" if image is None else "ClassLabel (nor integers named label)"
        there = _some(f"{column}: {kind}" for column, kind in kinds.items())
        raise _bad(name, config, f"split {split} has no column of type {what}, but {there}. Choose another set.")
    images = rows.select_columns(image).with_format(None).cast_column(image, datasets.Image(decode=False))
    if label is None:
        return images, None, {}
    labels = pc.fill_null(rows.data.column(label), -1).to_numpy().astype(np.int64)
    if classed:
        return images, labels, dict(enumerate(features[label].names))
    return images, labels, {value: str(value) for value in np.unique(labels).tolist()}


def _pick(columns, *preferred):
    return next((column for column in [*preferred, *columns] if column in columns), None)


def _update(digest, images, labels):
    """Add to a hash: labels, sizes of images in bytes (Arrow knows them without reading images), names of files."""
    import pyarrow.compute as pc

    (column,) = images.data.columns
    sizes = pc.binary_length(pc.struct_field(column, "bytes"))
    paths = pc.struct_field(column, "path").filter(pc.is_null(sizes)).to_pylist()
    names = "\n".join(re.split(r"[/\\]", path or "")[-1] for path in paths)
    sizes = pc.fill_null(sizes, -1).to_numpy().astype("<i8")
    labels = b"" if labels is None else labels.astype("<i8").tobytes()
    digest.update(b"%d\0" % len(sizes) + labels + b"\0" + sizes.tobytes() + b"\0" + names.encode() + b"\0")


def _explain(name, config, error, local):
    """What is wrong and the way out, for what the libraries raise."""
    text, kinds = str(error), {kind.__name__ for kind in type(error).__mro__}
    page = f"https://huggingface.co/datasets/{name}"
    if match := re.search(r"(?:Available|available configs): \[(.*?)\]", text):
        return _which_config(config, match[1])
    if local:
        return f"cannot be read ({_line(error)}). Restore the folder, or save it again."
    if "GatedRepoError" in kinds or "gated dataset" in text:
        return f"is gated. Ask for access at {page} and log in with hf auth login, {_ELSEWHERE}"
    if "RevisionNotFoundError" in kinds:
        return f"is a loading script that the hub has not converted to parquet. Choose another set, {_ELSEWHERE}"
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "HFValidationError"}:
        return f"no such folder, and no such data set on the hub or a private one. See {page}, or hf auth login."
    if kinds & {"DataFilesNotFoundError", "EmptyDatasetError"}:
        return f"has no data files. See {page}, {_ELSEWHERE}"
    return f"cannot be loaded ({_line(error)}). Try again, {_ELSEWHERE}"


def _which_config(config, there):
    what = "has several configurations" if config is None else "no such configuration"
    return f"{what}. Give --hf_config one of {there}."


def _bad(name, config, what):
    return InputError(f"--hf_dataset {name}" + (f" --hf_config {config}" if config is not None else "") + f": {what}")


def _line(error):
    """Kind and text of an error, and of the one it came from, on one line of bounded length."""
    own = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    cause = own if error.__cause__ is None else _line(error.__cause__)
    return own if cause == own else f"{own}, from {cause}"


def _some(names):
    names = list(names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
