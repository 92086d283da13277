"""Upstream's recipes, which run an evaluation is, and the weights that it is of."""

import shutil

import pytest
import torch

import norms
import train as train_module
from maekit.settings import methods
from tests.support import train_here
from tests.support.commands import complaint, resolved
from tests.support.evaluation import (
    CLASSES,
    FINETUNE,
    KNN,
    LINPROBE,
    MODEL,
    OPTIONS,
    QUICK,
    WIDTH,
    encoder,
    open_job,
    train_epoch,
)
from tests.support.runs import losses, same, state, summary


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
    assert (run.model.name, run.model.input_size, run.data.crop) == (MODEL[1], 32, "shifted")
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


@pytest.mark.slow
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
    options = {name: value for name, value in job.run.norm.arguments.items() if name != "alpha_before_attention"}
    fresh = norms.NORMS[norm](WIDTH, **options).state_dict()
    ours = job.network.fc_norm.state_dict()
    assert same({name: ours[name].view_as(fresh[name]) for name in ours}, dict(fresh))


@pytest.mark.parametrize("norm", methods.NORMS)
def test_untrained_is_the_encoder_of_the_seed(norm):
    flags = (*QUICK, "--norm", norm, "--seed", "3", "--init", "untrained")
    theirs = encoder(train_module.build_model(resolved("--demo", *MODEL, "--norm", norm, "--seed", "3")).state_dict())
    torch.rand(7)  # nobody knows where the global stream is
    assert same(encoder(open_job(*flags, *KNN).network.state_dict()), theirs)
    assert same(encoder(open_job(*flags, *LINPROBE).network.state_dict()), theirs)
    assert same(encoder(open_job(*flags, *FINETUNE).network.state_dict()), encoder(theirs, without=("norm.",)))
    other = open_job(*flags, *KNN, "--seed", "4").network
    assert not torch.equal(other.cls_token, theirs["cls_token"])


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("norm", methods.NORMS)
def test_knn_of_a_run_is_its_last_knn_accuracy_and_that_of_untrained_weights_its_baseline(norm, pretrained, tmp_path):
    run = summary(pretrained[norm])
    train_here(*QUICK, *KNN, "--init", pretrained[norm], "--output_dir", tmp_path / "trained", check=0)
    flags = ("--init", "untrained", "--norm", norm, *OPTIONS.get(norm, ()))
    train_here(*QUICK, *KNN, *flags, "--output_dir", tmp_path / "untrained", check=0)
    assert summary(tmp_path / "trained")["acc1"] == run["knn_accuracy"] != run["untrained_knn_accuracy"]
    least = 2 * 100 / CLASSES if norm != "NoNorm" else 0  # whose CLS token is the same for all images before training
    assert summary(tmp_path / "untrained")["acc1"] == run["untrained_knn_accuracy"] > least
    assert summary(tmp_path / "trained")["total_epochs"] == 0 and losses(tmp_path / "trained") == []
    assert not (tmp_path / "trained/checkpoint.pth").exists() and not (tmp_path / "trained/trajectory.json").exists()
