"""--label_map: which labels a pre-training is given, where they are not the classes of the images. No torch."""

import csv
import difflib
import hashlib
import os
from dataclasses import dataclass

from ..errors import InputError

HALF = "half"
COLUMNS = ("class", "label")


@dataclass(frozen=True)
class LabelMap:
    """A label for some of the classes, which the joint classifier is trained to tell apart. Images of the others have none.

    typed: what --label_map said. name: what tells it from others, whatever folder it lies in. labels: ((class, label), ...),
    None for half of the classes, each its own label.
    """

    typed: str
    name: str
    labels: tuple | None = None

    def of(self, classes):
        """The index of each class's label, -1 if it has none. classes: names, in their order. Raises InputError."""
        if self.labels is None:
            if len(classes) < 4:
                raise InputError(f"--label_map {HALF}: of {len(classes)} classes, it needs 4 or more. Write a file.")
            chosen = sorted(classes, key=_shuffled)[: len(classes) // 2]
            labels = {name: name for name in chosen}
        else:
            labels = dict(self.labels)
        for name in labels:
            if name not in classes:
                near = difflib.get_close_matches(name, classes, 1)
                raise InputError(
                    f"--label_map {self.typed}: the data set has no class {name}. "
                    + (f"Do you mean {near[0]}?" if near else f"It has {', '.join(classes[:3])}, ...")
                )
        order = {label: i for i, label in enumerate(sorted(set(labels.values())))}
        return [order[labels[name]] if name in labels else -1 for name in classes]


def _shuffled(name):
    """A number that is random and of the name alone: every seed and every machine has the same half."""
    return hashlib.sha256(name.encode()).hexdigest()


def read(text):
    """The LabelMap that --label_map names: half, or a CSV file with the columns class and label. Raises InputError."""
    if text == HALF:
        return LabelMap(text, HALF)
    try:
        with open(text, newline="", encoding="utf-8-sig") as f:
            content = f.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is no text in UTF-8"
        raise InputError(f"--label_map {text}: {why}. Name a CSV file with class,label, or {HALF}.") from error
    rows = csv.DictReader(content.splitlines())
    if not set(COLUMNS) <= set(rows.fieldnames or ()):
        raise InputError(f"--label_map {text}: its first line has to be {','.join(COLUMNS)}.")
    labels = {}
    for row in rows:
        name, label = ((row[column] or "").strip() for column in COLUMNS)
        if name in labels:
            raise InputError(f"--label_map {text}: {name} is there twice. Leave one of its lines out.")
        labels[name] = label
    labels = {name: label for name, label in labels.items() if label}
    if len(set(labels.values())) < 2:
        raise InputError(f"--label_map {text}: has {len(set(labels.values()))} labels, it needs 2 or more.")
    digest = hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()[:8]
    return LabelMap(text, f"{os.path.basename(text)} ({digest})", tuple(labels.items()))
