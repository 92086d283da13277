"""Images of 28 and 32 pixels: cut without blur, from pictures, caches and a device's memory alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maekit.data import cache, resident, sources, streams
from maekit.data.crops import CROPS, shift
from maekit.data.datasets import TrainImages, ValImages
from maekit.settings.typed import DataSettings, ModelSettings
from maekit.training import finetuning
from tests.support.batches import write_folders
from tests.support.commands import resolved

SIDES = (28, 32)


def checkerboard(side, phase=0):
    """Black and white, pixel by pixel: whatever blurs or enlarges it makes grey of it."""
    y, x = np.mgrid[:side, :side]
    return (((x + y + phase) % 2) * 255).astype(np.uint8)


def marked(side):
    """A checkerboard that says where it is: two rows and two columns, none of them in the middle, are inverted."""
    image = checkerboard(side)
    for place in (3, side // 2 + 4):
        image[place] ^= 255
        image[:, place + 2] ^= 255
    return image


@pytest.fixture(params=SIDES)
def small(request, tmp_path):
    """(side, Source) of grey PNG images of that side; the first of each split is the marked checkerboard."""
    side = request.param
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = marked(side) if (name, i) == ("a", 0) else rng.integers(0, 256, (side, side), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return side, sources.open_source(DataSettings(str(tmp_path / "images"), None, 0), seed=0)


def expected_places(image, most):
    """{bytes of an image: (down, right, mirrored)} of all places that a shift can have, made by numpy's padding."""
    side, padded = len(image), np.pad(image, most, mode="reflect")
    found = {}
    for down in range(2 * most + 1):
        for right in range(2 * most + 1):
            seen = padded[down : down + side, right : right + side]
            found[seen.tobytes()] = (down - most, right - most, False)
            found[seen[:, ::-1].tobytes()] = (down - most, right - most, True)
    return found


def test_a_checkerboard_is_moved_and_mirrored_and_stays_black_and_white(small):
    side, source = small
    places = expected_places(marked(side), side // 8)
    assert len(places) == 2 * (2 * (side // 8) + 1) ** 2
    dataset = TrainImages(source.train, side, 16, 0, crop=CROPS["shifted"])
    seen = set()
    for epoch in range(400):
        image = dataset[epoch, 0]["images"].numpy()
        assert (image[0] == image[1]).all() and (image[0] == image[2]).all()
        seen.add(places[np.ascontiguousarray(image[0]).tobytes()])  # KeyError: blurred, or moved elsewhere
    most = side // 8
    assert {down for down, _, _ in seen} == {right for _, right, _ in seen} == set(range(-most, most + 1))
    assert {mirrored for _, _, mirrored in seen} == {True, False}


def test_resizing_random_boxes_blurs_it_which_is_why_small_images_are_not_cropped(small):
    side, source = small
    dataset = TrainImages(source.train, side, 16, 0, crop=CROPS["resized"])
    image = dataset[0, 0]["images"].numpy()
    assert ((image > 20) & (image < 235)).mean() > 0.2


def test_a_whole_image_is_what_its_file_is(small):
    side, source = small
    dataset = TrainImages(source.train, side, 16, 0, crop=CROPS["whole"])
    for index in range(6):
        pixels = np.asarray(Image.open(source.train.file(index)))
        for epoch in range(3):
            np.testing.assert_array_equal(dataset[epoch, index]["images"].numpy(), np.stack([pixels] * 3))


@pytest.mark.parametrize("crop", ["shifted", "whole"])
def test_validation_images_are_whole(small, crop):
    side, source = small
    dataset = ValImages(source.val, side, 16, crop=CROPS[crop])
    for index in range(6):
        pixels = np.asarray(Image.open(source.val.file(index)))
        np.testing.assert_array_equal(dataset[index]["images"].numpy(), np.stack([pixels] * 3))


def test_a_validation_image_of_the_inputs_size_is_still_resized_for_resized_crops(small):
    """To 256/224 of it, of which the middle is taken, as with any other image."""
    side, source = small
    short = round(side * 256 / 224)
    margin = round((short - side) / 2)
    for index in range(6):
        whole = Image.open(source.val.file(index)).convert("RGB").resize((short, short), Image.BICUBIC)
        middle = np.asarray(whole)[margin : margin + side, margin : margin + side]
        found = ValImages(source.val, side, 16)[index]["images"].numpy()
        np.testing.assert_array_equal(found, middle.transpose(2, 0, 1))


@pytest.mark.parametrize("crop", ["shifted", "whole"])
@pytest.mark.parametrize("shape", [(40, 50), (30, 28), (64, 64)])
def test_larger_images_are_resized_to_the_input_before_they_are_moved(crop, shape, tmp_path):
    write_folders(tmp_path, side=40)
    file = tmp_path / "train" / "ant" / "ant_000.JPEG"
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(file.with_suffix(".png"))
    file.unlink()
    source = sources.open_source(DataSettings(str(tmp_path), None, 0), seed=0)
    image = Image.open(file.with_suffix(".png"))
    width, height = (28 if s == min(image.size) else int(28 * s / min(image.size)) for s in image.size)
    left, top = round((width - 28) / 2), round((height - 28) / 2)
    middle = np.asarray(image.resize((width, height), Image.BICUBIC).crop((left, top, left + 28, top + 28)))
    found = TrainImages(source.train, 28, 16, 0, crop=CROPS[crop])[3, 0]["images"].numpy()
    rng = streams.generator(streams.CROP, 0, 3, 0)
    down, right = rng.integers(-3, 4, 2) if crop == "shifted" else (0, 0)
    seen = np.pad(middle, ((3, 3), (3, 3), (0, 0)), mode="reflect")[3 + down : 31 + down, 3 + right : 31 + right]
    mirrored = crop == "shifted" and rng.random() < 0.5
    np.testing.assert_array_equal(found, (seen[:, ::-1] if mirrored else seen).transpose(2, 0, 1))


def test_what_lies_beyond_an_edge_is_the_image_mirrored_there():
    row = torch.arange(8).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    for right, expected in ((2, [2, 3, 4, 5, 6, 7, 6, 5]), (-2, [2, 1, 0, 1, 2, 3, 4, 5]), (0, list(range(8)))):
        for mirrored in (False, True):
            found = shift(row, torch.tensor([[0, right]]), torch.tensor([mirrored]))[0, 0, 0].tolist()
            assert found == (expected[::-1] if mirrored else expected)
            down = shift(row.transpose(2, 3), torch.tensor([[right, 0]]), torch.tensor([mirrored]))
            assert down[0, 0, :, 0].tolist() == expected


@pytest.mark.parametrize("crop", ["shifted", "whole"])
def test_a_cache_and_a_device_give_the_same_images_bit_for_bit(small, crop, tmp_path):
    side, source = small
    stored = cache.cached(source, str(tmp_path / "cache"), side, lambda line: None)
    plain = TrainImages(source.train, side, 16, 5, crop=CROPS[crop])
    boxed = TrainImages(stored.train, side, 16, 5, crop=CROPS[crop], boxes_only=True)
    there = resident.ResidentImages(stored.train.store, torch.device("cpu"))
    keys = [(epoch, index) for epoch in range(3) for index in range(6)]
    expected, samples = [plain[key] for key in keys], [boxed[key] for key in keys]
    batch = torch.utils.data.default_collate(samples)
    where = batch["index"], batch["place"], batch["mirrored"]
    found = CROPS[crop].cut_resident(there, *where, side)
    assert torch.equal(found, torch.stack([sample["images"] for sample in expected]))
    assert torch.equal(batch["noise"], torch.stack([sample["noise"] for sample in expected]))
    for key in keys:
        again = TrainImages(stored.train, side, 16, 5, crop=CROPS[crop])[key]
        assert torch.equal(again["images"], plain[key]["images"])


@pytest.mark.parametrize(
    ("flags", "crop"),
    [
        (["--input_size", "28", "--model", "enc64d4h4p7"], "shifted"),
        (["--input_size", "32", "--model", "enc64d4h4p4"], "shifted"),
        (["--input_size", "36", "--model", "enc64d4h4p4"], "resized"),
        (["--input_size", "32", "--model", "enc64d4h4p4", "--crop", "resized"], "resized"),
        (["--input_size", "64", "--model", "enc64d4h4p4", "--crop", "whole"], "whole"),
        ([], "resized"),
    ],
)
def test_inputs_of_up_to_32_pixels_are_moved_if_nothing_else_is_typed(flags, crop):
    assert resolved(*flags).data.crop == crop
    assert resolved(*flags).identity()["crop"] == crop


@pytest.mark.parametrize("crop", ["resized", "shifted", "whole"])
def test_fine_tuning_augments_small_images_without_enlarging_them(crop):
    run = resolved(
        *("--task", "finetune", "--init", "untrained", "--model", "enc64d4h4p4", "--input_size", "32"),
        *("--crop", crop, "--aa", "none", "--reprob", "0"),
    )
    transform = finetuning.augmentation(run)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (finetuning.IMAGENET_MEAN, finetuning.IMAGENET_STD))
    places, seen = expected_places(marked(32), 4), set()
    for seed in range(60):
        torch.manual_seed(seed)
        values = transform(Image.fromarray(marked(32)).convert("RGB")) * deviation + mean
        levels = np.ascontiguousarray((values[0] * 255).round().byte().numpy())
        seen.add(places.get(levels.tobytes(), "resized"))
    if crop == "resized":
        assert "resized" in seen and len(seen) <= 3
    elif crop == "whole":
        assert seen == {(0, 0, False)}
    else:
        assert "resized" not in seen and len(seen) > 30 and {mirrored for _, _, mirrored in seen} == {True, False}


def test_a_run_of_before_there_was_a_choice_goes_on_if_it_is_typed(tmp_path):
    from maekit.errors import InputError
    from maekit.settings import identities

    now = resolved("--input_size", "32", "--model", "enc64d4h4p4").identity()
    before = {name: value for name, value in now.items() if name not in ("crop", "pos_embed")}
    with pytest.raises(InputError, match="with --crop resized.*To go on with it, add --crop resized; or choose"):
        identities.check(before, now, "the folder holds")
    identities.check(before, {**now, "crop": "resized"}, "the folder holds")
    larger = resolved().identity()
    identities.check({n: v for n, v in larger.items() if n not in ("crop", "pos_embed")}, larger, "the folder holds")


def test_a_small_run_trains_on_grey_images_and_its_evaluations_see_them_as_it_did(small, tmp_path):
    import json

    import train

    side, source = small
    folder = Path(source.train.root).parent
    words = f"--imagenet_dir {folder} --cache off --num_workers 0 --device cpu --batch_size 4 --seed 1"
    network = f"--model enc16d1h2p4 --decoder_type dec16d1h2 --input_size {side} --crop whole --pos_embed learned"
    train.main(f"{words} {network} --epochs 1 --output_dir {tmp_path}/run".split())
    train.main(f"{words} --task knn --init {tmp_path}/run --output_dir {tmp_path}/run/knn".split())
    identity = json.loads((tmp_path / "run" / "knn" / "config.json").read_text())["identity"]
    assert (identity["crop"], identity["pos_embed"], identity["model"]) == ("whole", "learned", "enc16d1h2p4")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["architecture"] == {
        "patch": 4,
        "encoder": {"width": 16, "depth": 1, "heads": 2},
        "decoder": {"width": 16, "depth": 1, "heads": 2},
    }
    assert ModelSettings("enc16d1h2p4", side, 0.75, False, None).patches == (side // 4) ** 2
