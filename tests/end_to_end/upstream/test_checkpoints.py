"""Checkpoints, both ways, with upstream's own scripts."""

import math
import os
import re
import shutil
import sys
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import datasets, transforms

from maekit.model.formats import encoder_weights, to_timm
from maekit.model.mae import build_mae
from maekit.training import checkpoint
from tests.support import run, train_here
from tests.support.runs import summary
from tests.support.upstream import BASE, SHORT, TOLERANCE, pictures, trained_by

DECODER = ("decoder_", "mask_token")


@pytest.fixture(scope="module")
def script(clone, class_folders, room):
    """Run one of upstream's scripts on the class folders for an epoch: its process and the folder it wrote to."""

    def start(name, kind, *more, check=0):
        folder = room / f"upstream-{name}-{len(os.listdir(room))}"
        heads = () if name == "main_pretrain" else ("--nb_classes", "2")
        result = run(
            sys.executable,
            clone.path / f"{name}.py",
            "--model",
            kind,
            "--data_path",
            class_folders,
            "--epochs",
            "1",
            "--warmup_epochs",
            "0",
            "--batch_size",
            "4",
            "--num_workers",
            "0",
            "--no_pin_mem",
            "--device",
            "cpu",
            "--output_dir",
            folder,
            "--log_dir",
            folder,
            *heads,
            *more,
            cwd=room,
            check=check,
            timeout=600,
        )
        print(f"{name}.py {' '.join(map(str, more))}", *(result.stdout + result.stderr).splitlines()[-3:], sep="\n    ")
        return result, folder

    return start


def measured(output):
    """Top-1, top-5 and loss of the last evaluation that a script of upstream's printed."""
    return [float(number) for number in re.findall(r"\* Acc@1 (\S+) Acc@5 (\S+) loss (\S+)", output)[-1]]


@pytest.fixture(scope="module")
def upstreams(script):
    """The checkpoint of a pre-training by upstream's main_pretrain.py."""
    result, folder = script("main_pretrain", BASE)
    assert "Training time" in result.stdout
    return folder / "checkpoint-0.pth"


@pytest.fixture(scope="module")
def evaluated(upstreams, room, class_folders):
    """Evaluate upstream's checkpoint with a task of ours, once a task: the run's folder."""

    def of(task):
        folder = room / f"ours-{task}"
        rates = {
            "finetune": ("--lr", "2e-3", "--warmup_epochs", "0"),
            "linprobe": ("--lr", "1", "--warmup_epochs", "0"),
        }
        train_here(
            *SHORT,
            "--task",
            task,
            "--init",
            upstreams,
            "--imagenet_dir",
            class_folders,
            *rates.get(task, ()),
            "--output_dir",
            folder,
            check=0,
        )
        return folder

    return cache(of)


@pytest.mark.parametrize(
    ("name", "more"),
    [("main_finetune", ("--lr", "2e-3")), ("main_linprobe", ("--cls_token",))],
    ids=["finetune", "linprobe"],
)
def test_upstreams_scripts_start_from_our_checkpoint(name, more, ours, script, class_folders, tmp_path):
    checkpoint_of_ours = ours / "checkpoint.pth"
    result, folder = script(name, "vit_base_patch16", "--finetune", checkpoint_of_ours, *more)
    assert f"Load pre-trained checkpoint from: {checkpoint_of_ours}" in result.stdout
    assert "Accuracy of the network on the 8 test images" in result.stdout and "Training time" in result.stdout
    if name == "main_linprobe":  # it froze the encoder, so what it saved is what it loaded
        encoder = encoder_weights(checkpoint.read(checkpoint_of_ours)["model"])
        saved = checkpoint.read(folder / "checkpoint-0.pth")["model"]
        assert {n for n in saved if not n.startswith("head.")} == set(encoder)
        assert all(torch.equal(saved[n], value) for n, value in encoder.items())
    else:  # and back: our evaluation of what it fine-tuned
        train_here(
            *SHORT,
            "--task",
            "finetune",
            "--epochs",
            "0",
            "--init",
            folder / "checkpoint-0.pth",
            "--imagenet_dir",
            class_folders,
            "--output_dir",
            tmp_path,
            check=0,
        )
        assert_measured_alike(summary(tmp_path), result.stdout)
    shutil.rmtree(folder)


def assert_measured_alike(ours, output):
    """Top-1 and loss of a summary of ours are those that upstream printed, and not those of a head without effect."""
    top1, top5, loss = measured(output)
    assert ours["acc1"] == pytest.approx(top1, abs=6e-4) and ours["acc5"] == top5 == 100
    assert ours["val_loss"] == pytest.approx(loss, abs=6e-4)  # three decimals
    assert abs(loss - math.log(2)) > 2e-3


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_upstreams_classifier_takes_exactly_our_encoder_and_computes_what_ours_does(pool, ours, theirs):
    weights = checkpoint.read(ours / "checkpoint.pth")["model"]
    vit = theirs("models_vit").vit_base_patch16(num_classes=2, global_pool=pool == "avg").eval()
    mae = build_mae(BASE)
    checkpoint.load_encoder("checkpoint.pth", {"model": weights}, mae)
    encoder = {n: t for n, t in weights.items() if not n.startswith(DECODER)}

    theirs("util.pos_embed").interpolate_pos_embed(vit, weights)
    told = vit.load_state_dict(weights, strict=False)
    head = {"head.weight", "head.bias"}
    assert set(told.missing_keys) == (head if pool == "token" else head | {"fc_norm.weight", "fc_norm.bias"})
    without = {"norm.weight", "norm.bias"} if pool == "avg" else set()
    assert {n for n in told.unexpected_keys if not n.startswith(DECODER)} == without
    state = vit.state_dict()
    assert set(state) == set(encoder) - without | set(told.missing_keys)
    assert all(torch.equal(state[n], value) for n, value in encoder.items() if n not in without)

    timms = to_timm(mae, num_classes=2, global_pool=pool).eval()
    with torch.no_grad():
        for network in (vit, timms):
            generator = torch.Generator().manual_seed(0)
            for layer in (network.head, *((network.fc_norm,) if pool == "avg" else ())):
                for p in layer.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator))
        images = pictures(2)
        expected, logits = vit(images), timms(images)
        features = timms.forward_head(timms.forward_features(images), pre_logits=True)
        pairs = [(logits, expected), (features, vit.forward_features(images))]
        if pool == "token":
            pairs.append((mae.forward_encoder(images, 0.0)[0][:, 0], pairs[1][1]))
    for a, b in pairs:
        assert ((a - b).norm() / b.norm()).item() < TOLERANCE


def test_positions_of_another_image_size_are_interpolated_as_upstream_does(theirs, capsys):
    """A model of 96 pixels, 6 x 6 patches, for 224."""
    small = build_mae(BASE, img_size=96)
    small.pos_embed.data.normal_(generator=torch.Generator().manual_seed(2))
    weights = small.state_dict()
    large = build_mae(BASE)
    checkpoint.load_encoder("small.pth", {"model": weights}, large)
    weights = {"pos_embed": weights["pos_embed"]}
    theirs("util.pos_embed").interpolate_pos_embed(theirs("models_vit").vit_base_patch16(), weights)
    assert "6 x 6 patches to 14 x 14" in capsys.readouterr().out
    torch.testing.assert_close(large.pos_embed.data, weights["pos_embed"], rtol=0, atol=1e-6)


def test_upstreams_scripts_refuse_a_checkpoint_of_another_norm(script, class_folders, room):
    folder = room / "dyt"
    train_here(
        *SHORT,
        "--mae_dir",
        "builtin",
        "--norm",
        "DynamicTanh",
        "--imagenet_dir",
        class_folders,
        "--max_images",
        "4",
        "--output_dir",
        folder,
        check=0,
    )
    for name, more in (("main_finetune", ()), ("main_linprobe", ("--cls_token",))):
        result, _ = script(name, "vit_base_patch16", "--finetune", folder / "checkpoint.pth", *more, check=1)
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("AssertionError: the checkpoint has other norm layers than LayerNorm")
        assert "blocks.0.norm1.alpha" in last
        assert "Start training" not in result.stdout
    shutil.rmtree(folder)


def test_a_checkpoint_of_upstreams_holds_its_arguments_as_an_object(upstreams):
    """Which torch.load(weights_only=True) alone refuses."""
    code = "import sys, torch; torch.load(sys.argv[1], weights_only=True)"
    assert "argparse.Namespace" in run(sys.executable, "-c", code, upstreams, check=1).stderr
    assert checkpoint.read(upstreams)["args"].model == BASE


@pytest.mark.parametrize("task", ["finetune", "linprobe", "knn"])
def test_a_checkpoint_of_upstreams_is_evaluated(task, evaluated):
    found = summary(evaluated(task))
    assert found["status"] == "finished" and 0 <= found["acc1"] <= 100
    assert task == "knn" or math.isfinite(found["val_loss"])


def test_k_nn_on_a_checkpoint_of_upstreams_is_k_nn_on_the_features_of_upstreams_class(
    evaluated, upstreams, class_folders, theirs
):
    """Features, images and labels by upstream's classes and torchvision's: whole images, scaled to 256, 224 cut out."""
    mae = getattr(theirs("models_mae"), BASE)().eval()
    mae.load_state_dict(checkpoint.read(upstreams)["model"])
    transform = transforms.Compose(
        [
            transforms.Resize(256, interpolation=3),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    features = {}
    for split in ("train", "val"):
        samples = list(datasets.ImageFolder(class_folders / split, transform))
        images, labels = torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
        with torch.no_grad():
            features[split] = mae.forward_encoder(images, 0.0)[0][:, 0], labels
    (known, labels), (asked, truth) = features["train"], features["val"]
    similarity = nn.functional.cosine_similarity(asked[:, None], known[None], dim=2).double().numpy()
    votes = np.stack([np.exp(similarity / 0.07)[:, labels == c].sum(1) for c in (0, 1)], axis=1)  # 8 images, k is 20
    accuracy = 100 * np.mean(votes.argmax(1) == truth.numpy())
    assert summary(evaluated("knn"))["acc1"] == pytest.approx(accuracy)


def test_pre_training_starts_from_a_checkpoint_of_upstreams(upstreams, class_folders, room):
    folder = room / "continued"
    train_here(
        *SHORT,
        "--mae_dir",
        "builtin",
        "--init",
        upstreams,
        "--lr",
        "1e-12",
        "--imagenet_dir",
        class_folders,
        "--output_dir",
        folder,
        check=0,
    )
    before, after = (checkpoint.read(path)["model"] for path in (upstreams, folder / "checkpoint.pth"))
    assert before.keys() == after.keys()
    for name, value in before.items():  # steps of 1e-12
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)
    assert trained_by(folder) == {"source": "builtin"}
    shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "task"), [("main_finetune", "finetune"), ("main_linprobe", "linprobe")])
def test_upstreams_evaluation_of_our_classifier_measures_what_we_measure(
    name, task, evaluated, script, class_folders, tmp_path
):
    """What upstream pre-trained and we fine-tuned, or probed, upstream evaluates."""
    folder = evaluated(task)
    result, _ = script(name, "vit_base_patch16", "--eval", "--resume", folder / "checkpoint.pth")
    assert "Resume checkpoint" in result.stdout and "Accuracy of the network on the 8 test images" in result.stdout
    assert_measured_alike(summary(folder), result.stdout)
    if task == "finetune":
        train_here(
            *SHORT,
            "--task",
            "finetune",
            "--epochs",
            "0",
            "--init",
            folder,
            "--imagenet_dir",
            class_folders,
            "--output_dir",
            tmp_path,
            check=0,
        )
        assert_measured_alike(summary(tmp_path), result.stdout)
