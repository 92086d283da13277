"""Which labels training is given: --label_map."""

import pytest

from maekit.errors import InputError
from maekit.settings import label_map
from tests.support.commands import complaint, resolved

CLASSES = [f"n{i:02d}" for i in range(10)]


def written(tmp_path, *lines, name="labels.csv"):
    path = tmp_path / name
    path.write_text("\n".join(("class,label", *lines)) + "\n", encoding="utf-8")
    return str(path)


def test_classes_get_the_labels_of_the_file_and_others_none(tmp_path):
    known = label_map.read(written(tmp_path, "n03,dog", "n01,cat", "n07,dog", "n08,", "n09, "))
    assert known.of(CLASSES) == [-1, 0, -1, 1, -1, -1, -1, 1, -1, -1]


def test_half_is_half_of_the_classes_in_whatever_order_they_come():
    labels = label_map.read("half").of(CLASSES)
    assert sorted(labels) == [-1] * 5 + list(range(5))
    backwards = label_map.read("half").of(CLASSES[::-1])
    assert [label >= 0 for label in backwards] == [label >= 0 for label in labels[::-1]]
    assert sorted(label_map.read("half").of([f"c{i}" for i in range(1001)])) == [-1] * 501 + list(range(500))


def test_a_run_is_another_with_other_labels_and_the_same_wherever_the_file_lies(tmp_path):
    def of(*flags):
        return resolved("--demo", "--alpha", "-1", *flags).identity().get("label_map")

    (tmp_path / "elsewhere").mkdir()
    first = written(tmp_path, "n01,cat", "n02,dog")
    moved = written(tmp_path / "elsewhere", "n02,dog", "n01,cat", "n03,")
    other = written(tmp_path / "elsewhere", "n01,cat", "n03,dog", name="other.csv")
    assert of("--label_map", first) == of("--label_map", moved) != of("--label_map", other)
    assert of() is None and of("--label_map", "half") == "half"
    assert "label_map" not in resolved("--demo", "--label_map", "half").identity()  # no classifier, so nothing to it


def test_a_class_that_is_not_there_is_noticed_where_no_label_is_needed_too(tmp_path):
    flags = ("--demo", "--dry_run", "--label_map", written(tmp_path, "coffee,a", "astronut,b"))
    assert "has no class astronut. Do you mean astronaut?" in complaint(*flags)


def test_what_is_no_map_of_labels_is_said(tmp_path):
    (tmp_path / "other.csv").write_text("name;group\nn01;a\n")
    (tmp_path / "binary.csv").write_bytes(b"class,label\nn\xff\xfe,a\n")
    for value, said in {
        str(tmp_path / "none.csv"): "No such file",
        "": "No such file",
        str(tmp_path): "Is a directory",
        str(tmp_path / "other.csv"): "its first line has to be class,label",
        str(tmp_path / "binary.csv"): "is no text in UTF-8",
        written(tmp_path, "n01,a", "n01,b"): "n01 is there twice",
        written(tmp_path, "n01,a", "n02,", name="one.csv"): "has 1 labels, it needs 2 or more",
    }.items():
        assert f"--label_map {value}: " in (text := complaint("--alpha", "1", "--label_map", value)) and said in text


def test_a_class_that_is_not_there_is_named_with_the_nearest(tmp_path):
    for name, said in {"n1": "Do you mean n01?", "dog": "It has n00, n01, n02, ..."}.items():
        with pytest.raises(InputError, match="has no class") as error:
            label_map.read(written(tmp_path, "n02,a", f"{name},b")).of(CLASSES)
        assert said in str(error.value)
    with pytest.raises(InputError, match="of 3 classes, it needs 4 or more"):
        label_map.read("half").of(CLASSES[:3])
