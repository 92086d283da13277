"""Fine-tuning, linear probing and k-NN: upstream's recipes, on the weights they were given, and nothing lost on the way."""

import datetime
import io
import json
import math
import multiprocessing
import pickle
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from torch import nn
from tqdm import tqdm

import norms
import train as train_module
from maekit import files
from maekit.analysis import figures
from maekit.data import crops, sources, streams
from maekit.data.datasets import AugmentedImages
from maekit.model.mae import MaskedAutoencoder, Transformer
from maekit.probes.linear import GlobalBatchNorm1d, lars
from maekit.settings import methods
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.training import checkpoint
from maekit.training.finetuning import augmentation, posterize_increasing
from tests.support import train_here, write_ilsvrc

QUICK = ("--demo", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")
FINETUNE, LINPROBE, KNN = (("--task", task) for task in ("finetune", "linprobe", "knn"))
OPTIONS = {"AdaptiveDynamicTanh": ("--adyt_lambda", "0.3"), "DynamicTanh": ("--dyt_alpha_init", "0.7")}
CLASSES, DEPTH, WIDTH = 10, 4, 96  # of the demo and its encoder
CLOCK = ("epoch_time_s", "images_per_s", "peak_memory_mb")


def resolved(*flags):
    """The settings of a command."""
    return resolve(build_parser("train.py", "").parse_args([str(flag) for flag in flags]))


def open_job(*flags):
    """The job of a command, before its first step."""
    run = resolved(*flags)
    return train_module.open_job(run, sources.open_source(run.data, run.seed))


def train_epoch(job, epoch=0):
    """One epoch of a job: its log row without the clock; the weights are in job.network."""
    return job.train_one_epoch(epoch, tqdm(file=io.StringIO()))


def first_batch(job):
    job.batches.order.set_epoch(0)
    return next(iter(job.batches))


def complaint(*flags):
    """The one line that a command with bad input prints."""
    result = train_here(*flags, check=2)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def state(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def log(folder):
    """The log without its clock columns."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in files.read_csv(folder / "log.csv")]


def same(a, b):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def encoder(weights, without=()):
    """The encoder's part of a state dict, by the names of the paper's parts rather than by what is left out."""
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    return {k: v for k, v in weights.items() if k.startswith(parts) and not k.startswith(tuple(without))}


@pytest.fixture(scope="module", autouse=True)
def draw():
    """Draws a curve. The runs here do without, except one: it takes longer than they do."""
    with pytest.MonkeyPatch.context() as patch:
        save = figures.save
        patch.setattr(figures, "save", lambda figure, path: None)
        yield save


@pytest.fixture(scope="module")
def processes():
    """Starts processes quickly: they are forked from one that has imported the packages."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.tensorboard", "timm.data", "timm.optim", "matplotlib.figure"])
    return context


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """{norm: folder of its pre-training run, an epoch long}, trained when it is first asked for."""
    root = tmp_path_factory.mktemp("pretrained")

    class Folders(dict):
        def __missing__(self, norm):
            flags = ("--epochs", "1", "--norm", norm, *OPTIONS.get(norm, ()), "--probes", "knn")
            train_here(*QUICK, *flags, "--output_dir", root / norm, check=0)
            return self.setdefault(norm, root / norm)

    return Folders()


@pytest.fixture(scope="module")
def plain(pretrained):
    return pretrained["LayerNorm"]


@pytest.fixture(scope="module")
def finetuned(plain, tmp_path_factory, draw):
    """Folder of a fine-tuning run of two epochs."""
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", draw)
        train_here(*QUICK, *FINETUNE, "--init", plain, "--epochs", "2", "--output_dir", folder, check=0)
    return folder


# The recipes


@pytest.mark.parametrize(
    ("model", "epochs", "blr", "layer_decay", "drop_path"),
    [("base", 100, 5e-4, 0.65, 0.1), ("large", 50, 1e-3, 0.75, 0.2), ("huge", 50, 1e-3, 0.75, 0.3)],
)
def test_fine_tuning_is_upstreams_recipe(model, epochs, blr, layer_decay, drop_path):
    for name in (f"vit_{model}", f"mae_vit_{model}_patch{14 if model == 'huge' else 16}"):
        run = resolved(*FINETUNE, "--init", "untrained", "--model", name)
        optim, options = run.optim, run.finetune
        assert (optim.effective_batch, optim.epochs, optim.warmup_epochs) == (1024, epochs, 5)
        assert optim.lr == pytest.approx(blr * 1024 / 256) and optim.min_lr == 1e-6 and optim.weight_decay == 0.05
        assert (options.layer_decay, options.drop_path) == (layer_decay, drop_path)
        assert (options.mixup, options.cutmix, options.smoothing, options.reprob) == (0.8, 1.0, 0.1, 0.25)
        assert options.aa == "rand-m9-mstd0.5-inc1"


@pytest.mark.parametrize(("model", "epochs"), [("base", 90), ("large", 50), ("huge", 50)])
def test_linear_probing_is_upstreams_recipe(model, epochs):
    run = resolved(*LINPROBE, "--init", "untrained", "--model", f"vit_{model}")
    optim = run.optim
    assert (optim.effective_batch, optim.epochs, optim.warmup_epochs) == (16384, epochs, 10)
    assert optim.lr == pytest.approx(0.1 * 16384 / 256) and optim.weight_decay == optim.min_lr == 0
    assert run.finetune is None


def test_a_shorter_run_has_proportionally_less_warm_up_and_a_longer_one_no_more():
    def warm_up(task, *flags):
        return resolved(*task, "--init", "untrained", *flags).optim.warmup_epochs

    assert warm_up(FINETUNE, "--epochs", "10") == pytest.approx(5 * 10 / 100)
    assert warm_up(FINETUNE, "--epochs", "10", "--model", "vit_large") == pytest.approx(5 * 10 / 50)
    assert warm_up(LINPROBE, "--epochs", "9") == pytest.approx(10 * 9 / 90)
    assert warm_up(LINPROBE, "--epochs", "25", "--model", "vit_huge") == pytest.approx(10 * 25 / 50)
    assert warm_up(FINETUNE, "--epochs", "200") == 5 and warm_up(LINPROBE, "--epochs", "1000") == 10
    assert warm_up(FINETUNE, "--epochs", "10", "--warmup_epochs", "2") == 2


def test_what_is_typed_wins_over_the_recipe():
    typed = {"layer_decay": 0.9, "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.5, "smoothing": 0.0, "reprob": 0.5}
    flags = [part for name, value in typed.items() for part in (f"--{name}", str(value))]
    run = resolved(*FINETUNE, "--init", "untrained", "--model", "vit_huge", *flags, "--aa", "none", "--epochs", "7")
    assert {name: getattr(run.finetune, name) for name in typed} == typed and run.finetune.aa == "none"
    assert run.optim.epochs == 7
    assert resolved(*LINPROBE, "--init", "untrained", "--weight_decay", "0.1", "--blr", "1").optim.weight_decay == 0.1
    assert resolved(*LINPROBE, "--init", "untrained", "--lr", "3").optim.lr == 3


# Which run it is


def test_an_evaluation_is_of_the_network_of_the_run_it_starts_from(tmp_path):
    """Norm with its options, model and input size; what was typed wins."""
    flags = (
        "--norm",
        "adyt",
        "--adyt_lambda",
        "0.3",
        "--adyt_smooth",
        "0.8",
        "--input_size",
        "32",
        "--mask_ratio",
        "0.5",
    )
    train_here(*QUICK, *flags, "--epochs", "1", "--output_dir", tmp_path / "run", check=0)
    run = resolved("--imagenet_dir", "x", *KNN, "--init", tmp_path / "run")
    assert run.norm.name == "AdaptiveDynamicTanh"
    assert run.norm.options == {"lam": 0.3, "smooth": 0.8, "alpha_min": 0.1, "alpha_max": 2.0}
    assert (run.model.name, run.model.input_size) == ("mae_vit_demo_patch8", 32)
    run = resolved("--demo", *FINETUNE, "--init", tmp_path / "run")
    assert (run.norm.options["lam"], run.model.input_size) == (0.3, 32), "the run's settings win over --demo's"
    assert (run.optim.epochs, run.optim.lr) == (5, 1e-3), "its own settings are not the run's"
    run = resolved(*KNN, "--init", tmp_path / "run", "--input_size", "64", "--adyt_lambda", "0.2")
    assert (run.model.input_size, run.norm.options["lam"], run.norm.options["smooth"]) == (64, 0.2, 0.8)
    assert resolved("--init", tmp_path / "run").norm.name == "LayerNorm", "pre-training keeps its own"


def test_only_its_own_settings_make_its_identity():
    def identity(*flags):
        return resolved(*flags, "--init", "untrained").identity()

    pretraining = ("--alpha", "0.5", "--probes", "all", "--eval_every", "2", "--mask_ratio", "0.5", "--norm_pix_loss")
    pretraining += ("--decoder_type", "linear")
    regularisation = ("--layer_decay", "0.9", "--mixup", "0.1", "--aa", "none")
    optimisation = ("--epochs", "3", "--lr", "1", "--weight_decay", "0.3", "--batch_size", "32")
    for task in (FINETUNE, LINPROBE, KNN):
        assert identity(*task, *pretraining) == identity(*task)
        assert identity(*task, "--norm", "rms") != identity(*task) != identity(*task, "--seed", "1")
        assert (identity(*task, *regularisation) == identity(*task)) == (task != FINETUNE)
        assert (identity(*task, *optimisation) == identity(*task)) == (task == KNN)


def test_the_weights_are_part_of_the_run_and_their_path_is_not(plain, tmp_path):
    start = shutil.copytree(plain, tmp_path / "start")
    flags = (*QUICK, *KNN, "--output_dir", tmp_path / "run")
    train_here(*flags, "--init", start, check=0)
    for path in (start, start / "checkpoint.pth", plain):
        assert "finished already" in train_here(*flags, "--init", path, check=0).stdout
    weights = state(start)
    weights["model"]["cls_token"] += 1
    torch.save(weights, start / "checkpoint.pth")
    line = complaint(*flags, "--init", start)
    assert "holds a run with --init sha256:" in line and "this one has --init sha256:" in line
    assert "holds a run with --init sha256:" in complaint(*flags, "--init", "untrained")


def test_a_run_whose_checkpoint_lies_elsewhere_can_be_started_from(plain, tmp_path):
    flags = (*QUICK, "--epochs", "1", "--probes", "knn", "--output_dir", tmp_path / "run")
    train_here(*flags, "--checkpoint_dir", tmp_path / "weights", check=0)
    assert resolved(*KNN, "--init", tmp_path / "run").init == str(tmp_path / "weights/checkpoint.pth")


# The weights it evaluates


@pytest.mark.parametrize("norm", methods.NORMS)
def test_every_task_starts_from_the_encoder_of_the_checkpoint(norm, pretrained):
    theirs = encoder(state(pretrained[norm])["model"])
    flags = (*QUICK, "--init", pretrained[norm])
    assert same(encoder(open_job(*flags, *KNN).network.state_dict()), theirs)
    assert same(encoder(open_job(*flags, *LINPROBE).network.state_dict()), theirs)
    without_norm = encoder(theirs, without=("norm.",))
    job = open_job(*flags, *FINETUNE)
    assert same(encoder(job.network.state_dict()), without_norm) and len(without_norm) > 40
    fresh = norms.NORMS[norm](WIDTH, **job.run.norm.options).state_dict()
    ours = job.network.fc_norm.state_dict()
    assert same({name: ours[name].view_as(fresh[name]) for name in ours}, dict(fresh))


@pytest.mark.parametrize("norm", methods.NORMS)
def test_untrained_is_the_encoder_of_the_seed(norm):
    flags = (*QUICK, "--norm", norm, "--seed", "3", "--init", "untrained")
    theirs = encoder(train_module.build_model(resolved("--demo", "--norm", norm, "--seed", "3")).state_dict())
    torch.rand(7)  # nobody knows where the global stream is
    assert same(encoder(open_job(*flags, *KNN).network.state_dict()), theirs)
    assert same(encoder(open_job(*flags, *LINPROBE).network.state_dict()), theirs)
    assert same(encoder(open_job(*flags, *FINETUNE).network.state_dict()), encoder(theirs, without=("norm.",)))
    other = open_job(*flags, *KNN, "--seed", "4").network
    assert not torch.equal(other.cls_token, theirs["cls_token"])


def test_scrambled_weights_give_other_numbers(plain, tmp_path):
    """The same values in every tensor, in another order."""
    weights, rng = state(plain)["model"], torch.Generator().manual_seed(0)
    mixed = {k: v.flatten()[torch.randperm(v.numel(), generator=rng)].view_as(v) for k, v in weights.items()}
    torch.save({"model": mixed}, tmp_path / "scrambled.pth")
    train_here(*QUICK, *KNN, "--init", tmp_path / "scrambled.pth", "--output_dir", tmp_path / "run", check=0)
    others = [summary(plain)[name] for name in ("knn_accuracy", "untrained_knn_accuracy")]
    assert summary(tmp_path / "run")["acc1"] not in others
    for task in (FINETUNE, LINPROBE):
        losses = [train_epoch(open_job(*QUICK, *task, "--init", init)) for init in (plain, tmp_path / "scrambled.pth")]
        assert losses[0]["train_loss"] != losses[1]["train_loss"]


# k-NN


@pytest.mark.parametrize("norm", methods.NORMS)
def test_knn_of_a_run_is_its_last_knn_accuracy_and_that_of_untrained_weights_its_baseline(norm, pretrained, tmp_path):
    run = summary(pretrained[norm])
    train_here(*QUICK, *KNN, "--init", pretrained[norm], "--output_dir", tmp_path / "trained", check=0)
    flags = ("--init", "untrained", "--norm", norm, *OPTIONS.get(norm, ()))
    train_here(*QUICK, *KNN, *flags, "--output_dir", tmp_path / "untrained", check=0)
    assert summary(tmp_path / "trained")["acc1"] == run["knn_accuracy"] != run["untrained_knn_accuracy"]
    assert summary(tmp_path / "untrained")["acc1"] == run["untrained_knn_accuracy"] > 2 * 100 / CLASSES
    assert summary(tmp_path / "trained")["total_epochs"] == 0 and log(tmp_path / "trained") == []
    assert not (tmp_path / "trained/checkpoint.pth").exists() and not (tmp_path / "trained/trajectory.json").exists()


# Fine-tuning


def upstreams_layer(name, depth):
    """Layer of a parameter, 0 to depth + 1, as upstream's util/lr_decay.py has it."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
@pytest.mark.parametrize("decay", [None, 0.5])
def test_rates_fall_layer_by_layer_and_weights_alone_decay(norm, decay, pretrained):
    job = open_job(*QUICK, *FINETUNE, "--init", pretrained[norm], *(("--layer_decay", decay) if decay else ()))
    names = {id(parameter): name for name, parameter in job.network.named_parameters()}
    last = train_epoch(job)["lr"]
    seen = []
    for group in job.optimizer.param_groups:
        assert group["betas"] == (0.9, 0.999)
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            scale = (decay or 0.65) ** (DEPTH + 1 - upstreams_layer(name, DEPTH))
            assert group["lr_scale"] == pytest.approx(scale, rel=1e-12), name
            assert group["lr"] == pytest.approx(last * scale, rel=1e-12)
            decays = parameter.ndim > 1 and name not in ("cls_token", "pos_embed")
            assert group["weight_decay"] == (0.05 if decays else 0), name
    assert sorted(seen) == sorted(names.values()) and "pos_embed" in seen


def test_the_head_starts_nearly_at_zero_and_drop_path_rises_linearly(plain):
    job = open_job(*QUICK, *FINETUNE, "--init", plain, "--drop_path", "0.3")
    head = job.network.head
    assert head.weight.shape == (CLASSES, WIDTH) and head.weight.std().item() == pytest.approx(2e-5, rel=0.1)
    assert not head.bias.any() and head.weight.abs().max() < 1e-4
    other = open_job(*QUICK, *FINETUNE, "--init", plain, "--seed", "1").network.head
    assert not torch.equal(head.weight, other.weight)
    rates = [[getattr(path, "drop_prob", 0.0) for path in (b.drop_path1, b.drop_path2)] for b in job.network.blocks]
    assert np.allclose(rates, [[rate, rate] for rate in (0, 0.1, 0.2, 0.3)])


def test_patches_are_pooled_and_then_normed(pretrained):
    """Worked out from the masked autoencoder that the checkpoint is of."""
    job = open_job(*QUICK, *FINETUNE, "--init", pretrained["DynamicTanh"])
    nn.init.normal_(job.network.head.weight, generator=torch.Generator().manual_seed(0))
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mae = open_job(*QUICK, *KNN, "--init", pretrained["DynamicTanh"]).network.eval()
    mae.norm = nn.Identity()
    with torch.no_grad():
        tokens = mae.forward_encoder(images, 0.0)[0]
        pooled = tokens[:, 1:].mean(dim=1)
        expected = torch.tanh(0.7 * pooled) @ job.network.head.weight.T
        assert torch.allclose(job.network.eval()(images), expected, rtol=1e-4, atol=1e-4)


def seen_by_network(plain, *flags):
    """(images, labels) of a batch, the images and logits that the network saw, loss; with a head that has opinions."""
    job = open_job(*QUICK, *FINETUNE, "--init", plain, "--drop_path", "0", *flags)
    nn.init.normal_(job.network.head.weight, generator=torch.Generator().manual_seed(0))
    seen = []
    job.network.register_forward_hook(lambda _, inputs, logits: seen.extend((inputs[0].clone(), logits)))
    batch = first_batch(job)
    images = batch["images"].clone()
    (loss,) = job.losses(batch, 0, 0)
    return images, batch["labels"], *seen, loss.item()


def cross_entropy(logits, targets):
    """Mean of -sum(target log p) in float64, for targets (N, classes)."""
    z = logits.detach().double().numpy()
    log_p = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
    return -(targets * log_p).sum(1).mean()


def smoothed(labels, smoothing):
    return np.eye(CLASSES)[labels.numpy()] * (1 - smoothing) + smoothing / CLASSES


def test_the_loss_of_mixed_up_images_is_cross_entropy_with_labels_mixed_alike(plain):
    images, labels, network_saw, logits, loss = seen_by_network(plain, "--cutmix", "0")
    others = images.flip(0)
    share = (((network_saw - others) * (images - others)).sum() / ((images - others) ** 2).sum()).item()
    assert 0.01 < share < 0.99 and torch.allclose(network_saw, share * images + (1 - share) * others, atol=1e-4)
    targets = share * smoothed(labels, 0.1) + (1 - share) * smoothed(labels.flip(0), 0.1)
    assert loss == pytest.approx(cross_entropy(logits, targets), rel=1e-4)
    assert abs(loss - cross_entropy(logits, smoothed(labels, 0.1))) > 0.01


def test_the_loss_of_cut_and_mixed_images_counts_the_area_of_the_patch(plain):
    images, labels, network_saw, logits, loss = seen_by_network(plain, "--mixup", "0", "--smoothing", "0.2")
    changed = (network_saw != images).any(0).any(0)
    rows, columns = (changed.any(d).nonzero().flatten() for d in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    assert torch.equal(network_saw[:, :, *box], images.flip(0)[:, :, *box])
    share = 1 - len(rows) * len(columns) / 64**2
    assert 0 < share < 1
    targets = share * smoothed(labels, 0.2) + (1 - share) * smoothed(labels.flip(0), 0.2)
    assert loss == pytest.approx(cross_entropy(logits, targets), rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.1, 0])
def test_the_loss_without_mixing_is_cross_entropy_smoothed_or_plain(smoothing, plain):
    flags = ("--mixup", "0", "--cutmix", "0", "--smoothing", smoothing)
    images, labels, network_saw, logits, loss = seen_by_network(plain, *flags)
    assert torch.equal(images, network_saw)
    assert loss == pytest.approx(cross_entropy(logits, smoothed(labels, smoothing)), rel=1e-5)


def test_mixing_and_drop_path_are_decided_by_seed_epoch_and_step(plain):
    job = open_job(*QUICK, *FINETUNE, "--init", plain, "--drop_path", "0.5")
    nn.init.normal_(job.network.head.weight, generator=torch.Generator().manual_seed(0))
    batch = first_batch(job)

    def loss(epoch, i, mixing):
        job.mixup = mixing
        torch.rand(random.randrange(9))
        return job.losses({name: value.clone() for name, value in batch.items()}, epoch, i)[0].item()

    for mixing in (job.mixup, None):
        if mixing is None:
            job.criterion = nn.CrossEntropyLoss()
        values = [loss(epoch, i, mixing) for epoch, i in ((0, 0), (0, 1), (1, 0))]
        assert len(set(values)) == 3 and values == [loss(epoch, i, mixing) for epoch, i in ((0, 0), (0, 1), (1, 0))]


@pytest.fixture(scope="module")
def an_epoch(plain):
    """A weight of the first block after one epoch of the defaults."""
    job = open_job(*QUICK, *FINETUNE, "--init", plain)
    train_epoch(job)
    return job.network.blocks[0].attn.qkv.weight


@pytest.mark.parametrize(
    "flags",
    [
        ("--layer_decay", "0.9"),
        ("--drop_path", "0.5"),
        ("--mixup", "0"),
        ("--cutmix", "0"),
        ("--smoothing", "0.3"),
        ("--reprob", "0.9"),
        ("--aa", "none"),
        ("--aa", "rand-m5-mstd0.5-inc1"),
        ("--weight_decay", "0.5"),
        ("--min_lr", "1e-4"),
        ("--accum_iter", "2"),
        ("--seed", "1"),
    ],
    ids=" ".join,
)
def test_a_flag_changes_what_is_trained(flags, plain, an_epoch):
    job = open_job(*QUICK, *FINETUNE, "--init", plain, *flags)
    train_epoch(job)
    weight = job.network.blocks[0].attn.qkv.weight
    assert weight.isfinite().all() and not torch.equal(weight, an_epoch)


def test_images_are_cropped_flipped_and_normalised_where_nothing_else_is_asked_for(plain):
    job = open_job(*QUICK, *FINETUNE, "--init", plain, "--aa", "none", "--reprob", "0")
    images = first_batch(job)["images"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (images * std + mean) * 255
    assert images.shape == (16, 3, 64, 64) and torch.allclose(pixels, pixels.round(), atol=1e-3)
    assert -0.01 < pixels.min() and pixels.max() < 255.01 and pixels.std() > 20
    assert torch.allclose(job.pixels.normalize(pixels.round().byte()), images, atol=1e-4), "as in pre-training"
    erased = first_batch(open_job(*QUICK, *FINETUNE, "--init", plain, "--aa", "none", "--reprob", "0.9"))["images"]
    noisy = (erased != images).any(1).flatten(1).float().mean(1)  # share of each image
    assert (noisy > 0).sum() > 10 and noisy.max() < 0.5


def test_an_image_is_augmented_alike_in_any_process_at_any_time(plain):
    dataset = open_job(*QUICK, *FINETUNE, "--init", plain).batches.dataset
    transform = pickle.loads(pickle.dumps(dataset.transform))  # as workers get it that are not forked
    there = AugmentedImages(dataset.images, transform, 0)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for key in ((0, 5), (1, 5), (0, 6)):
        assert same(dataset[key], there[key]) and same(dataset[key], dataset[key])
    assert not torch.equal(dataset[0, 5]["images"], dataset[1, 5]["images"])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert same(before, after), "the global streams were used"


def test_a_seeded_block_has_its_own_numbers_and_leaves_the_global_streams_alone():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = draw(), draw()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    first = draw()
    with streams.seeded(streams.MIXING, 0, 1, 2):
        inside = draw()
    with pytest.raises(KeyError), streams.seeded(streams.MIXING, 0, 1, 2):
        assert draw() == inside
        raise KeyError
    assert (first, draw()) == expected
    others = []
    for key in ((streams.MIXING, 0, 2, 1), (streams.MIXING, 1, 1, 2), (streams.DROPPING, 0, 1, 2)):
        with streams.seeded(*key):
            others.append(draw())
    assert len({inside, *others}) == 4 and not {v for d in others for v in d} & set(inside)


def test_posterizing_to_no_bits_is_black_and_else_timms():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    black = posterize_increasing(image, 0)
    assert black.size == image.size and black.mode == image.mode and black.getextrema() == ((0, 0),) * 3
    for bits in range(1, 9):
        ours = posterize_increasing(image, bits)
        assert np.array_equal(ours, ImageOps.posterize(image, bits))
    augmentation(resolved("--demo", *FINETUNE, "--init", "untrained"))
    strongest = auto_augment.AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10)
    assert strongest(image).getextrema() == ((0, 0),) * 3


def test_no_epochs_validate_the_fine_tuned_classifier(finetuned, tmp_path):
    """Without training: the loss and accuracies of its own last epoch."""
    flags = (*QUICK, *FINETUNE, "--epochs", "0", "--init", finetuned, "--output_dir", tmp_path)
    result = train_here(*flags, check=0)
    found, last = summary(tmp_path), log(finetuned)[-1]
    assert {name: found[name] for name in ("val_loss", "acc1", "acc5")} == {
        name: last[name] for name in ("val_loss", "acc1", "acc5")
    }
    assert f"top-1 {last['acc1']:.1f} %" in result.stdout and found["total_epochs"] == 0
    assert not (tmp_path / "checkpoint.pth").exists()


def test_no_epochs_need_a_head_that_knows_the_classes(plain, finetuned, tmp_path):
    flags = (*QUICK, *FINETUNE, "--epochs", "0", "--output_dir", tmp_path / "run")
    for init in (plain, "untrained"):
        line = complaint(*flags, "--init", init)
        assert "has no head to classify with" in line and "Fine-tune it first" in line
    weights = state(finetuned)
    for classes in (9, 12):
        weights["model"]["head.weight"] = torch.zeros(classes, WIDTH)
        weights["model"]["head.bias"] = torch.zeros(classes)
        torch.save(weights, tmp_path / f"{classes}.pth")
    line = complaint(*flags, "--init", tmp_path / "9.pth")
    assert "its head knows 9 classes, the data set has 10" in line and "--epochs 1 or more" in line
    train_here(*flags, "--init", tmp_path / "12.pth", check=0)
    assert summary(tmp_path / "run")["val_loss"] == pytest.approx(math.log(12))
    assert "--epochs 0: must be positive" in complaint(*QUICK, *LINPROBE, "--epochs", "0", "--init", plain)


def test_a_fine_tuned_network_can_be_fine_tuned_again_with_a_new_head(finetuned):
    job = open_job(*QUICK, *FINETUNE, "--init", finetuned)
    theirs = state(finetuned)["model"]
    assert same(encoder(job.network.state_dict()), encoder(theirs))
    assert (
        job.network.head.weight.std() < 3e-5 < theirs["head.weight"].std() and (job.network.fc_norm.weight == 1).all()
    )


# Linear probing


@pytest.mark.parametrize("norm", methods.NORMS)
def test_linear_probing_moves_the_classifier_and_nothing_else(norm, pretrained, tmp_path):
    train_here(*QUICK, *LINPROBE, "--init", pretrained[norm], "--epochs", "1", "--output_dir", tmp_path, check=0)
    ours, theirs = state(tmp_path)["model"], state(pretrained[norm])["model"]
    assert same(encoder(ours), encoder(theirs)) and len(encoder(ours)) > 40
    rest = {name: value for name, value in ours.items() if name not in encoder(theirs)}
    assert rest.keys() == {f"head.0.{b}" for b in ("running_mean", "running_var", "num_batches_tracked")} | {
        "head.1.weight",
        "head.1.bias",
    }
    before = open_job(*QUICK, *LINPROBE, "--init", pretrained[norm]).network.state_dict()
    assert [name for name in rest if torch.equal(rest[name], before[name])] == []
    assert before["head.1.weight"].std().item() == pytest.approx(0.01, rel=0.1) and not before["head.1.bias"].any()
    (row,) = log(tmp_path)
    assert 1.5 < row["train_loss"] < 2.5 and row["acc1"] <= row["acc5"]


def test_its_features_are_batch_normalised_cls_tokens_of_whole_images(plain):
    job = open_job(*QUICK, *LINPROBE, "--init", plain)
    mae = open_job(*QUICK, *KNN, "--init", plain).network.eval()
    images = job.pixels.normalize(first_batch(job)["images"])
    with torch.no_grad():
        features = mae.forward_encoder(images, 0.0)[0][:, 0].double().numpy()
    weight = job.network.head[1].weight.detach().double().numpy()
    job.model.train()
    logits = job.logits(images).detach().numpy()
    normalised = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-6)
    np.testing.assert_allclose(logits, normalised @ weight.T, atol=1e-4)
    running = job.network.head[0].running_mean.numpy()
    np.testing.assert_allclose(running, 0.1 * features.mean(0), atol=1e-5)
    job.model.eval()
    variance = 0.9 + 0.1 * features.var(0, ddof=1)
    expected = (features - running) / np.sqrt(variance + 1e-6) @ weight.T
    np.testing.assert_allclose(job.logits(images).detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("from_zero", [False, True])
def test_a_step_of_lars_is_upstreams(from_zero):
    """util/lars.py, written out: trust ratio for the weight alone, momentum on the scaled gradient."""
    rng = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.zeros(4, 6) if from_zero else torch.randn(4, 6, generator=rng))
        layer.bias.copy_(torch.randn(4, generator=rng))
    optimizer = lars(layer, lr=1.0)
    w, b = layer.weight.detach().double().clone(), layer.bias.detach().double().clone()
    mu_w, mu_b = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(6):
        lr = 0.5 / (1 + step)
        layer.weight.grad, layer.bias.grad = torch.randn(4, 6, generator=rng), torch.randn(4, generator=rng)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer.step()
        g = layer.weight.grad.double()
        trust = 0.001 * w.norm() / g.norm() if w.norm() > 0 else 1
        mu_w = 0.9 * mu_w + trust * g
        mu_b = 0.9 * mu_b + layer.bias.grad.double()
        w, b = w - lr * mu_w, b - lr * mu_b
        assert torch.allclose(layer.weight.double(), w, rtol=1e-5, atol=1e-6)
        assert torch.allclose(layer.bias.double(), b, rtol=1e-5, atol=1e-6)


def test_weight_decay_is_the_weights_and_in_its_trust_ratio():
    """As in the paper, |w| / (|g| + decay |w|)."""
    layer = nn.Linear(6, 4)
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.randn(4, 6), torch.randn(4)
    lars(layer, lr=10.0, weight_decay=0.3).step()
    trust = 0.001 * w.norm() / (layer.weight.grad.norm() + 0.3 * w.norm())
    assert torch.allclose(layer.weight, w - 10 * trust * (layer.weight.grad + 0.3 * w), rtol=1e-5, atol=1e-6)
    assert torch.allclose(layer.bias, b - 10 * layer.bias.grad)


def distance(a, b):
    """Kolmogorov-Smirnov distance of two samples."""
    at = np.concatenate([a, b])
    of_a, of_b = (np.searchsorted(np.sort(sample), at, "right") / len(sample) for sample in (a, b))
    return np.abs(of_a - of_b).max()


N_BOXES = 4000
FAR = 1.95 * math.sqrt(2 / N_BOXES)  # a distance that two samples of one distribution exceed once in a thousand times


def test_areas_of_crops_are_even_where_they_fit():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.single_try_crop_box(rng, 1000, 1000, ratio=(1, 1)) for _ in range(N_BOXES)])
    areas = boxes[:, 2] * boxes[:, 3] / 1e6
    assert distance(areas, np.linspace(0.08, 1, N_BOXES)) < FAR
    assert (areas.min(), areas.max()) == (pytest.approx(0.08, abs=2e-3), pytest.approx(1, abs=2e-3))
    assert (boxes[:, 2] == boxes[:, 3]).all()


@pytest.mark.parametrize("size", [(300, 500), (500, 500), (40, 400)], ids=str)
def test_crops_are_those_of_upstreams_rule(size):
    """util/crop.py, from BYOL: one try, cut to fit; written out on Python's own random numbers."""
    height, width = size
    python = random.Random(0)

    def upstreams():
        area = height * width * python.uniform(0.08, 1.0)
        aspect = 2 ** python.uniform(math.log2(3 / 4), math.log2(4 / 3))
        w, h = min(round((area * aspect) ** 0.5), width), min(round((area / aspect) ** 0.5), height)
        return python.randint(0, height - h), python.randint(0, width - w), h, w

    theirs = np.array([upstreams() for _ in range(N_BOXES)])
    rng = np.random.default_rng(0)
    ours = np.array([crops.single_try_crop_box(rng, height, width) for _ in range(N_BOXES)])
    assert all(distance(ours[:, i], theirs[:, i]) < FAR for i in range(4))
    tries = np.array([crops.random_resized_crop_box(rng, height, width, (0.08, 1)) for _ in range(N_BOXES)])
    assert max(distance(ours[:, i], tries[:, i]) for i in range(4)) > FAR, "pre-training's rule is another"


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 9), (64, 64), (5, 400)], ids=str)
def test_crops_are_never_empty_and_never_leave_the_image(size):
    rng = np.random.default_rng(0)
    top, left, h, w = np.array([crops.single_try_crop_box(rng, *size) for _ in range(500)]).T
    assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (top + h <= size[0]).all() and (left + w <= size[1]).all()


def test_linear_probing_crops_by_that_rule(plain):
    """Image 5 of epoch 2, from its file."""
    dataset = open_job(*QUICK, *LINPROBE, "--init", plain).batches.dataset
    with dataset.images.open(5) as file:
        image = file.convert("RGB")
    rng = np.random.default_rng((2, 0, 2, 5))  # the stream of crops, seed, epoch, image
    top, left, h, w = crops.single_try_crop_box(rng, image.height, image.width)
    box = (left, top, left + w, top + h)
    image = image.crop(box).resize((64, 64), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(dataset[2, 5]["images"].permute(1, 2, 0), image)


# Batch normalisation over processes

PARTS = (5, 11)  # images of each process


def features_of_batches():
    rng = torch.Generator().manual_seed(0)
    return [3 + torch.randn(sum(PARTS), 7, generator=rng) * (1 + i) for i in range(3)]


def normalise_part(rank, folder):
    """What one of two processes does; saves what its layer made of its parts, and the layer."""
    dist = torch.distributed
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    try:
        layer = GlobalBatchNorm1d(7)
        parts = [batch.split(PARTS)[rank] for batch in features_of_batches()]
        trained = [layer(part) for part in parts]
        evaluated = layer.eval()(parts[0])
        torch.save((trained, evaluated, layer.state_dict()), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_normalise_over_the_batches_of_both(processes, tmp_path):
    both = [processes.Process(target=normalise_part, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    whole = nn.BatchNorm1d(7, eps=1e-6, affine=False)
    expected = [whole(batch) for batch in features_of_batches()]
    evaluated = whole.eval()(features_of_batches()[0])
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for i, batch in enumerate(expected):
        assert torch.allclose(torch.cat([trained[i] for trained, _, _ in parts]), batch, atol=1e-5)
    assert torch.allclose(torch.cat([part[1] for part in parts]), evaluated, atol=1e-5)
    for _, _, layer in parts:
        assert layer.keys() == whole.state_dict().keys() and layer["num_batches_tracked"] == 3
        assert all(torch.allclose(layer[name], value, rtol=1e-5) for name, value in whole.state_dict().items())


def test_in_one_process_it_is_batch_norm_to_the_last_bit():
    ours, torchs = GlobalBatchNorm1d(7), nn.BatchNorm1d(7, eps=1e-6, affine=False)
    for batch in features_of_batches():
        assert torch.equal(ours(batch), torchs(batch))
    assert same(dict(ours.state_dict()), dict(torchs.state_dict()))
    assert torch.equal(ours.eval()(batch), torchs.eval()(batch))


# Accuracies


@pytest.mark.parametrize(
    ("task", "batch_size", "classes"), [(FINETUNE, 16, 10), (LINPROBE, 48, 10), (LINPROBE, 5, 3)], ids=str
)
def test_every_validation_image_counts_once(task, batch_size, classes, plain, ilsvrc):
    """Also those of the last, smaller batch. Image by image, by the rank of the true class; top-5 of 3 classes is all."""
    where = ("--demo", "--max_images", "64") if classes == 10 else ("--imagenet_dir", ilsvrc)
    job = open_job(
        *where, *task, "--init", plain, "--batch_size", batch_size, "--num_workers", "0", "--accum_iter", "1"
    )
    head = job.network.head if task == FINETUNE else job.network.head[1]
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    dataset = job.val_batches.dataset
    assert len(dataset) % batch_size and job.classes == classes
    ranks, losses = [], []
    job.network.eval()
    for i in range(len(dataset)):
        with torch.no_grad():
            logits = job.logits(job.pixels.normalize(dataset[i]["images"][None]))[0].double().tolist()
        label = dataset[i]["labels"]
        ranks.append(sum(value > logits[label] for value in logits))
        losses.append(math.log(sum(math.exp(value - logits[label]) for value in logits)))
    job.network.train()
    found = job.validate(0)
    assert found["acc1"] == pytest.approx(100 * np.mean([rank < 1 for rank in ranks]))
    assert found["acc5"] == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]))
    assert found["val_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert 0 < found["acc1"] < found["acc5"] and (found["acc5"] == 100) == (classes == 3)


# Nothing is lost, nothing is left to chance


@pytest.mark.parametrize("task", [FINETUNE, LINPROBE], ids=" ".join)
@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
def test_a_run_killed_in_the_middle_ends_as_the_unbroken_one(task, norm, pretrained, processes, tmp_path):
    """SIGKILL after the first epoch; the log and the last state are equal to the last bit."""
    epochs = 30 if "linprobe" in task else 5  # of a few hundredths of a second, or of some tenths
    flags = (*QUICK, *task, "--init", pretrained[norm], "--epochs", epochs, "--input_size", "32")
    train_here(*flags, "--output_dir", tmp_path / "whole", check=0)
    killed = tmp_path / "killed"
    command = [str(part) for part in (*flags, "--output_dir", killed)]
    run = processes.Process(target=train_module.main, args=(command,))
    run.start()
    while not (killed / "checkpoint.pth").exists():
        assert run.is_alive()
        time.sleep(0.005)
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    assert not (killed / "summary.json").exists()
    torch.manual_seed(5)  # where the global stream is does not matter
    assert "goes on with epoch" in train_here(*flags, "--output_dir", killed, check=0).stdout
    assert log(killed) == log(tmp_path / "whole") and len(log(killed)) == epochs
    ours, theirs = (state(folder) for folder in (killed, tmp_path / "whole"))
    assert all(same(ours[part], theirs[part]) for part in ("model", "optimizer", "epoch", "scaler", "args"))
    assert ours["optimizer"]["state"]


@pytest.mark.parametrize("task", [FINETUNE, LINPROBE], ids=" ".join)
def test_the_same_command_gives_the_same_numbers_with_and_without_workers(task, plain, tmp_path):
    flags = (*QUICK, *task, "--init", plain, "--epochs", "1")
    for workers in (0, 2):
        torch.manual_seed(workers)
        train_here(*flags, "--num_workers", workers, "--output_dir", tmp_path / str(workers), check=0)
    assert log(tmp_path / "0") == log(tmp_path / "2")
    assert same(state(tmp_path / "0")["model"], state(tmp_path / "2")["model"])


def test_a_diverging_fine_tuning_is_a_result(plain, tmp_path):
    flags = (*QUICK, *FINETUNE, "--init", plain, "--epochs", "2", "--lr", "1e30", "--output_dir", tmp_path)
    assert "diverged" in train_here(*flags, check=0).stdout
    assert summary(tmp_path)["status"] == "diverged"


# Every norm, every precision


@pytest.mark.parametrize("norm", methods.NORMS)
def test_fine_tuning_trains_every_weight_of_every_norm_and_adapts(norm, pretrained, tmp_path):
    flags = (*QUICK, *FINETUNE, "--init", pretrained[norm], "--epochs", "1", "--layer_decay", "0.9")
    train_here(*flags, "--output_dir", tmp_path, check=0)
    before, after = open_job(*flags).network.state_dict(), state(tmp_path)["model"]
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    (row,) = log(tmp_path)
    assert row["val_loss"] < math.log(CLASSES) - 0.01 and row["train_loss"] < math.log(CLASSES) + 0.01
    assert (row["norm_alpha_mean"] is not None) == ("Dynamic" in norm)
    assert checkpoint.norm_of(after) == norm == summary(tmp_path)["model"]
    adapted = len([name for name in after if name.endswith("grad_norm_smoothed")])
    assert adapted == (2 * DEPTH + 1 if norm == "AdaptiveDynamicTanh" else 0)


def test_an_evaluation_leaves_its_files(finetuned):
    """No trajectory: its epochs are no points of the reconstruction gap."""
    expected = {"config.json", "log.csv", "norm_alpha.csv", "summary.json", "checkpoint.pth", "tensorboard",
                "checkpoint.previous.pth", "status.json", "loss_curve.png", "loss_curve.pdf"}  # fmt: skip
    assert {f.name for f in finetuned.iterdir()} == expected
    found, rows = summary(finetuned), log(finetuned)
    assert found["task"] == "finetune" and found["total_epochs"] == 2 == len(rows)
    assert found["max_acc1"] == max(row["acc1"] for row in rows) and found["acc1"] == rows[-1]["acc1"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("task", [FINETUNE, LINPROBE], ids=" ".join)
def test_half_precision_trains_much_as_float32_does(task, precision, pretrained):
    flags = (*QUICK, *task, "--init", pretrained["AdaptiveDynamicTanh"])
    name = "blocks.0.attn.qkv.weight" if task == FINETUNE else "head.1.weight"
    losses, weights = {}, [open_job(*flags).network.state_dict()[name]]
    for kind in ("float32", precision):
        job = open_job(*flags, "--precision", kind)
        losses[kind] = train_epoch(job)["train_loss"]
        assert job.device.scaler.is_enabled() == (kind == "float16")
        assert all(value.dtype in (torch.float32, torch.int64) for value in job.network.state_dict().values())
        weights.append(job.network.state_dict()[name])
    assert losses[precision] == pytest.approx(losses["float32"], abs=0.05)
    fresh, full, half = weights
    assert 0 < (full - half).norm() < (full - fresh).norm(), "nearer to each other than to where both started"


def test_knn_in_half_precision_is_another_run(plain, tmp_path):
    flags = (*QUICK, *KNN, "--init", plain, "--output_dir", tmp_path)
    train_here(*flags, "--precision", "bfloat16", check=0)
    assert summary(tmp_path)["acc1"] == pytest.approx(summary(plain)["knn_accuracy"], abs=5)
    assert "--precision bfloat16" in complaint(*flags, "--precision", "float32")


# What cannot be used


@pytest.mark.parametrize("task", ["finetune", "linprobe", "knn"])
def test_weights_that_are_missing_are_one_line(task, plain, tmp_path):
    flags = (*QUICK, "--task", task, "--output_dir", tmp_path / "run")
    line = complaint(*flags)
    assert f"--task {task}: needs --init" in line and "untrained" in line
    assert f"--init {tmp_path / 'nowhere'}: no such file or folder" in complaint(*flags, "--init", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"--init {tmp_path / 'empty'}: no run in it" in complaint(*flags, "--init", tmp_path / "empty")
    (tmp_path / "begun").mkdir()
    shutil.copy(plain / "config.json", tmp_path / "begun")
    line = complaint(*flags, "--init", tmp_path / "begun")
    assert f"--init {tmp_path / 'begun'}: the run has no checkpoint yet" in line
    half = tmp_path / "begun/checkpoint.pth"
    shutil.copy(plain / "checkpoint.pth", half)
    line = complaint(*flags, "--init", tmp_path / "begun")
    assert f"the run has not ended. Finish it, or take it as it is: --init {half}." in line
    assert resolved(*flags, "--init", half).init == str(half)
    config = files.read_json(plain / "config.json")
    config["settings"]["checkpoint_dir"] = str(tmp_path / "away")
    files.write_json(tmp_path / "begun/config.json", config)
    shutil.move(half, (tmp_path / "away").mkdir() or tmp_path / "away")
    way = complaint(*flags, "--init", tmp_path / "begun").rpartition("take it as it is: ")[2].rstrip(".").split()
    assert way[:2] == ["--init", str(tmp_path / "away/checkpoint.pth")]
    assert resolved(*flags, *way).norm.name == config["identity"]["norm"] and "--input_size" in way
    assert not (tmp_path / "run").exists()


def test_a_setting_that_cannot_be_is_one_line(plain):
    line = complaint(*QUICK, *FINETUNE, "--init", plain, "--batch_size", "15")
    assert "--batch_size 15: mixup and cutmix mix pairs" in line and "--mixup 0 --cutmix 0" in line
    unmixed = ("--batch_size", "15", "--mixup", "0", "--cutmix", "0")
    assert resolved(*QUICK, *FINETUNE, "--init", plain, *unmixed).optim.batch_size == 15
    assert resolved(*QUICK, *LINPROBE, "--init", plain, "--batch_size", "15").optim.batch_size == 15
    line = complaint(*QUICK, "--task", "transfer", "--init", plain)
    assert "--task transfer: unknown" in line and "finetune, linprobe, knn" in line
    line = complaint(*QUICK, *KNN, "--init", plain, "--resume", plain / "checkpoint.pth")
    assert "is for pre-training; --task knn starts from --init" in line
    for flag, value in (("drop_path", "1"), ("smoothing", "-0.1"), ("reprob", "1.5"), ("layer_decay", "0"),
                        ("mixup", "-1"), ("cutmix", "inf")):  # fmt: skip
        assert f"--{flag} {float(value)}: must" in complaint(*QUICK, *FINETUNE, "--init", plain, f"--{flag}", value)


@pytest.mark.parametrize("policy", ["foo", "rand-n0q"])
def test_an_augmentation_that_timm_does_not_know_is_one_line(policy, plain, tmp_path):
    line = complaint(*QUICK, *FINETUNE, "--init", plain, "--aa", policy, "--output_dir", tmp_path / "run")
    assert line.startswith(f"error: --aa {policy}: timm makes no augmentation of it (")


def test_an_evaluation_does_not_take_the_folder_of_the_run_it_starts_from(plain):
    before = (plain / "summary.json").read_bytes(), (plain / "checkpoint.pth").read_bytes()
    for task in (FINETUNE, LINPROBE, KNN):
        for more in ((), ("--overwrite",)):
            line = complaint(*QUICK, *task, "--init", plain, "--output_dir", plain, *more)
            assert "is the run in --output_dir itself. Choose another --output_dir" in line
    assert before == ((plain / "summary.json").read_bytes(), (plain / "checkpoint.pth").read_bytes())


@pytest.mark.parametrize("task", ["finetune", "linprobe", "knn"])
def test_labels_are_needed(task, plain, tmp_path):
    root = write_ilsvrc(tmp_path / "ILSVRC", train_images=6, val_images=3)
    (root / "LOC_val_solution.csv").unlink()
    flags = ("--imagenet_dir", root, "--task", task, "--init", plain, "--batch_size", "2", "--accum_iter", "1")
    line = complaint(*flags, "--num_workers", "0", "--output_dir", tmp_path / "run")
    assert f"--task {task}: the validation images in {root}" in line and "LOC_val_solution.csv" in line
    assert "--alpha" not in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("patch", "sizes", "parts"),
    [
        (8, Transformer(64, 4, 2), ("cls_token is (1, 1, 64) there and (1, 1, 96) here",)),
        (8, Transformer(96, 6, 3), ("has blocks.4",)),
        (8, Transformer(96, 3, 3), ("has no blocks.3",)),
        (16, Transformer(96, 4, 3), ("patch_embed.proj.weight is (96, 3, 16, 16) there and (96, 3, 8, 8) here",)),
    ],
    ids=str,
)
@pytest.mark.parametrize("task", [FINETUNE, LINPROBE, KNN], ids=" ".join)
def test_a_checkpoint_of_another_size_is_one_line(task, patch, sizes, parts, tmp_path):
    other = MaskedAutoencoder(64, patch, sizes, Transformer(64, 1, 2))
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    line = complaint(*QUICK, *task, "--init", tmp_path / "other.pth", "--output_dir", tmp_path / "run")
    assert f"{tmp_path / 'other.pth'}: belongs to another model" in line and "--model" in line
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("task", [FINETUNE, LINPROBE, KNN], ids=" ".join)
def test_a_checkpoint_of_another_norm_is_one_line_that_names_both(task, pretrained, tmp_path):
    for theirs in methods.NORMS:
        ours = "DynamicTanh" if theirs in ("LayerNorm", "AdaptiveDynamicTanh") else "LayerNorm"
        flags = ("--init", pretrained[theirs] / "checkpoint.pth", "--norm", ours, "--output_dir", tmp_path / "run")
        line = complaint(*QUICK, *task, *flags)
        assert f"its norm layers are {theirs}, here they are {ours}" in line and "--norm" in line


def test_a_fine_tuned_network_has_no_final_norm_to_probe(finetuned, tmp_path):
    for task in (LINPROBE, KNN):
        line = complaint(*QUICK, *task, "--init", finetuned, "--output_dir", tmp_path / "run")
        assert "has no norm.weight" in line
