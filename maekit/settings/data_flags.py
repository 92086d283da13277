"""The flags on data: where images come from, how many there are, how they are cut, decoded and kept. No torch."""

from . import legal
from .flag import Flag
from .tasks import TASKS

ALL = "all"


def number_or_all(text):
    """The value of a number of images, which can be all of them."""
    return ALL if text == ALL else int(text)


number_or_all.__name__ = "whole number, or all:"  # argparse says it of other texts

DATA_FLAGS = (
    Flag(
        "imagenet_dir",
        str,
        "ILSVRC",
        "ILSVRC folder (Data/CLS-LOC/{train,val}), or one with train/ and val/",
        metavar="DIR",
        shared=True,
    ),
    Flag("demo", bool, False, "train on crops of ten photographs, with a small model", shared=True),
    Flag(
        "hf_dataset",
        str,
        None,
        "data set of the Hugging Face hub, or a folder of save_to_disk",
        metavar="NAME",
        shared=True,
    ),
    Flag("hf_config", str, None, "configuration of that data set, such as 320px", metavar="NAME", shared=True),
    Flag(
        "max_images",
        int,
        None,
        "train on an even, seeded share of N images of every class; default: all",
        metavar="N",
        legal=legal.positive,
        decides=TASKS,
        shared=True,
    ),
    Flag(
        "max_val_images",
        number_or_all,
        None,
        "validate on at most N images, an even share of all, the same for every run and seed, or on all; default: as many as "
        "--max_images says",
        metavar="N",
        legal=legal.positive_or_all,
        decides=TASKS,
        shared=True,
    ),
    Flag(
        "val_share",
        float,
        None,
        "of a data set without validation: this share of every class's training images, the same for every run, such as 0.1",
        metavar="X",
        legal=legal.inside,
        decides=TASKS,
        shared=True,
    ),
    Flag(
        "crop",
        str,
        "auto",
        "resized (random boxes, as upstream), shifted (the whole image, moved by up to an eighth and mirrored), whole "
        "(the image as it is); auto: shifted for inputs of up to 32 pixels, else resized",
        metavar="KIND",
        legal=legal.one_of("auto", "resized", "shifted", "whole"),
        decides=TASKS,
        shared=True,
    ),
    Flag(
        "num_workers",
        int,
        None,
        "processes that decode images; default: 4, at most the cores there are; 0 on a CPU whose images are in the cache",
        metavar="N",
        legal=legal.not_negative,
        shared=True,
    ),
    Flag(
        "cache",
        str,
        "auto",
        "decoded images on disk for all runs: auto (where they fit, up to 200,000), off, or a folder",
        metavar="WHERE",
        legal=legal.cache,
        shared=True,
    ),
    Flag(
        "resident",
        str,
        "auto",
        "images in memory: decoded in a GPU's, where crops are made; validation's crops; auto (where they fit), off",
        metavar="WHEN",
        legal=legal.one_of("auto", "off"),
        shared=True,
    ),
)
