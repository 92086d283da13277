"""Flags: defaults, precedence, bad values."""

import sys

import pytest

from maekit.errors import InputError
from maekit.settings import probes, recipes
from maekit.settings.flags import DEFAULTS
from maekit.settings.resolution import counted
from maekit.settings.tasks import EVALUATIONS
from tests.support import KIT, run, train
from tests.support.commands import resolved


def test_defaults_are_those_of_the_original_scripts():
    settled = resolved()
    assert (settled.model.name, settled.model.input_size, settled.model.mask_ratio) == (
        "mae_vit_base_patch16",
        224,
        0.75,
    )
    assert (settled.optim.epochs, settled.optim.batch_size) == (100, 64)
    assert (settled.optim.weight_decay, settled.optim.min_lr) == (0.05, 0)
    assert (
        settled.optim.lr == 1e-3 * 64 / 256 and settled.optim.warmup_epochs == 10 and settled.data.num_workers is None
    )
    assert settled.data.imagenet_dir == "ILSVRC" and settled.seed == 0 and settled.norm.name == "LayerNorm"
    adaptive = resolved("--norm", "adyt").norm
    assert adaptive.options == {"lam": 0.1, "smooth": 0.9, "alpha_min": 0.1, "alpha_max": 2.0}
    plain = {"alpha_init": 0.5, "alpha_before_attention": None}
    assert resolved("--norm", "dyt").norm.arguments == {**plain, "shift_init": None}
    assert resolved("--norm", "derf").norm.arguments == {**plain, "shift_init": 0.0}
    assert resolved("--norm", "derf", "--dyt_shift_init", "none").norm.arguments == {**plain, "shift_init": None}


def test_the_rate_follows_the_effective_batch_unless_typed():
    assert resolved("--batch_size", "128", "--accum_iter", "4").optim.lr == pytest.approx(1e-3 * 512 / 256)
    assert resolved("--blr", "2e-3").optim.lr == pytest.approx(2e-3 * 64 / 256)
    assert resolved("--lr", "0.5", "--blr", "2e-3").optim.lr == 0.5


@pytest.mark.parametrize(("task", "images"), [("finetune", 1024), ("linprobe", 16384)])
def test_an_evaluation_in_several_processes_has_the_recipes_images_a_step_and_rate(task, images, monkeypatch):
    flags = ("--task", task, "--init", "untrained")
    alone = resolved(*flags).optim
    for processes in (2, 8):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        optim = resolved(*flags).optim
        assert optim.effective_batch == images == alone.effective_batch and optim.lr == alone.lr
    assert resolved(*flags, "--accum_iter", "2").optim.effective_batch == alone.batch_size * 2 * 8  # as typed
    monkeypatch.setenv("WORLD_SIZE", "64")
    assert resolved(*flags).optim.accum_iter == 1


def test_warm_up_is_at_most_a_tenth_of_the_run():
    assert resolved("--epochs", "1").optim.warmup_epochs == pytest.approx(0.1)
    assert resolved("--epochs", "800").optim.warmup_epochs == 10
    assert resolved("--epochs", "20", "--warmup_epochs", "5").optim.warmup_epochs == 5


def test_what_is_typed_wins_over_the_demo():
    settled = resolved("--demo", "--epochs", "3")
    assert settled.optim.epochs == 3
    assert settled.model.name == recipes.DEMO["model"] and settled.optim.lr == recipes.DEMO["lr"]
    assert settled.data.imagenet_dir is None


@pytest.mark.parametrize(
    ("flags", "lr", "min_lr"),
    [
        (["--demo"], 4e-3, 1e-3),
        (["--demo", "--lr", "1e-4"], 1e-4, 2.5e-5),  # one of a sweep's
        (["--demo", "--min_lr", "0"], 4e-3, 0),
        (["--lr", "1e-4"], 1e-4, 0),
        (["--demo", "--task", "finetune", "--init", "untrained"], 1e-3, 1e-6),
        (["--demo", "--task", "linprobe", "--init", "untrained"], 4.0, 0),
        (["--task", "finetune", "--init", "untrained", "--lr", "1e-3"], 1e-3, 1e-6),
    ],
)
def test_the_demos_rate_ends_at_a_quarter_and_others_at_their_recipes(flags, lr, min_lr):
    assert (resolved(*flags).optim.lr, resolved(*flags).optim.min_lr) == (lr, min_lr)


def test_only_settings_that_matter_to_the_norm_make_its_identity():
    assert resolved("--adyt_lambda", "0.3").identity() == resolved().identity()
    ours, theirs = (resolved("--norm", "adyt", "--adyt_lambda", x).identity() for x in ("0.3", "0.1"))
    assert ours["adyt_lambda"] == 0.3 and ours != theirs
    same = resolved("--num_workers", "1", "--output_dir", "elsewhere", "--device", "cpu").identity()
    assert same == resolved().identity()


def test_a_length_in_steps_is_as_many_on_few_images_as_on_many():
    typed = resolved("--steps", "1470", "--batch_size", "32", "--accum_iter", "2")
    lengths = {images: counted(typed, images).optim for images in (500, 9469, 64_000)}
    assert {images: optim.epochs for images, optim in lengths.items()} == {500: 210, 9469: 10, 64_000: 1}
    assert lengths[500].epochs * (500 // 64) == lengths[9469].epochs * (9469 // 64) == 1470
    warmups = [optim.warmup_epochs for optim in lengths.values()]
    assert warmups == [21, 1, 0.1]  # a tenth, though a recipe's is 10 at most
    with pytest.raises(InputError, match="--steps 1470: an epoch of the 1281167 images has 20018 steps"):
        counted(typed, 1_281_167)
    in_epochs = resolved("--epochs", "10", "--batch_size", "32", "--accum_iter", "2")
    assert counted(typed, 9469).identity() == in_epochs.identity()


def test_a_warm_up_that_was_typed_with_a_length_in_steps_is_kept_if_it_ends_before_the_run():
    typed = resolved("--steps", "1470", "--warmup_epochs", "10")
    assert counted(typed, 500).optim.warmup_epochs == 10
    with pytest.raises(
        InputError, match=r"--warmup_epochs 10: as long as the run or longer \(--steps 1470, which is 10 epochs\)"
    ):
        counted(typed, 9469)


ANOTHER = {  # flag: a value that makes another run of a pre-training, and what makes the flag one of its
    "task": ("linprobe", ["--init", "untrained"]),
    "norm": ("RMSNorm", []),
    "dyt_alpha_init": (0.7, ["--norm", "dyt"]),
    "dyt_alpha_attn": (0.7, ["--norm", "derf"]),
    "dyt_shift_init": (0.1, ["--norm", "dyt"]),
    "adyt_lambda": (0.2, ["--norm", "adyt"]),
    "adyt_smooth": (0.8, ["--norm", "adyt"]),
    "adyt_alpha_min": (0.2, ["--norm", "adyt"]),
    "adyt_alpha_max": (3.0, ["--norm", "adyt"]),
    "model": ("mae_vit_tiny_patch16", []),
    "decoder_type": ("linear", []),
    "pos_embed": ("learned", []),
    "crop": ("shifted", []),
    "input_size": (112, []),
    "mask_ratio": (0.5, []),
    "norm_pix_loss": (True, []),
    "epochs": (99, []),
    "steps": (99, []),
    "batch_size": (32, []),
    "accum_iter": (2, []),
    "lr": (1e-4, []),
    "blr": (2e-3, []),
    "min_lr": (1e-5, []),
    "warmup_epochs": (3.0, []),
    "weight_decay": (0.1, []),
    "clip_grad": (1.0, []),
    "ema": (0.99, []),
    "alpha": (0.5, []),
    "probes": ("frozen", []),
    "eval_every": (2, ["--probes", "knn"]),
    "label_map": ("half", ["--alpha", "0.5"]),
    "layers": ("all", ["--task", "knn", "--init", "untrained"]),
    "layer_decay": (0.5, ["--task", "finetune", "--init", "untrained"]),
    "drop_path": (0.2, ["--task", "finetune", "--init", "untrained"]),
    "mixup": (0.0, ["--task", "finetune", "--init", "untrained"]),
    "cutmix": (0.0, ["--task", "finetune", "--init", "untrained"]),
    "smoothing": (0.2, ["--task", "finetune", "--init", "untrained"]),
    "reprob": (0.5, ["--task", "finetune", "--init", "untrained"]),
    "aa": ("none", ["--task", "finetune", "--init", "untrained"]),
    "max_images": (500, []),
    "max_val_images": (50, []),
    "val_share": (0.2, []),
    "seed": (1, []),
    "precision": ("float32", []),
    "resume": ("weights.pth", []),
    "freeze": ("encoder", ["--init", str(KIT / "norms.py")]),
    "readout": ("mean", ["--probes", "knn"]),
    "joint_readout": ("mean", ["--probes", "joint"]),
}
NOT_ITS_OWN = {  # flag: a value that leaves the identity as it is
    # what they stand for is found out, and made part of it, when the run starts
    "init": "untrained",
    "mae_dir": "elsewhere",
    "imagenet_dir": "elsewhere",
    "hf_dataset": "a/b",
    "hf_config": ("320px", "--hf_dataset", "a/b"),
    # where and how, not what
    "num_workers": "1",
    "cache": "off",
    "resident": "off",
    "output_dir": "elsewhere",
    "checkpoint_dir": "elsewhere",
    "checkpoint_every": "2",
    "checkpoint_minutes": "1",
    "device": "cpu",
    "compile": "on",
    "grad_checkpointing": (),
    "wandb": (),
    "wandb_project": "mine",
    "overwrite": (),
    "dry_run": (),
}


@pytest.mark.parametrize("flag", ANOTHER)
def test_another_value_of_a_flag_is_another_run(flag):
    value, around = ANOTHER[flag]
    plain = resolved(*([] if flag == "task" else around)).identity()
    other = resolved(*around, f"--{flag}", *([] if value is True else [str(value)])).identity()
    assert other != plain
    if flag not in ("blr", "steps"):  # which are seen in the rate and in the epochs
        assert other[flag] == value != plain.get(flag)


@pytest.mark.parametrize("flag", NOT_ITS_OWN)
def test_where_and_how_a_run_is_computed_does_not_make_another_of_it(flag):
    value = NOT_ITS_OWN[flag]
    words = [value] if isinstance(value, str) else value
    assert resolved(f"--{flag}", *words).identity() == resolved().identity()


def test_it_is_known_of_every_flag_whether_it_makes_another_run():
    assert sorted([*ANOTHER, *NOT_ITS_OWN, "demo"]) == sorted(DEFAULTS)  # the demo is a recipe of its own


def test_runs_that_differ_in_norm_seed_or_task_have_default_folders_of_their_own():
    kinds = [
        (*norm, *seed, *task)
        for norm in ((), ("--norm", "dyt"))
        for seed in ((), ("--seed", "1"))
        for task in ((), *(("--task", name, "--init", "untrained") for name in EVALUATIONS))
    ]
    assert len({resolved(*flags).output_dir for flags in kinds}) == len(kinds) == 16
    assert resolved("--output_dir", "mine", "--seed", "1").output_dir == "mine"


def test_images_come_from_one_place():
    assert resolved("--demo").data.imagenet_dir is None
    hub = resolved("--hf_dataset", "a/b").data
    assert (hub.hf_dataset, hub.imagenet_dir) == ("a/b", None)


EVALUATE = ("--init", "untrained", "--task")


@pytest.mark.parametrize(
    "flags",
    [
        ("--probes", "frozen", "--batch_size", "1", "--accum_iter", "2"),  # a step has two images
        (*EVALUATE, "finetune", "--epochs", "0"),  # validates a classifier as it is
        (*EVALUATE, "finetune", "--batch_size", "15", "--mixup", "0", "--cutmix", "0"),  # nothing to pair
        ("--seed", str(2**63 - 1)),
        ("--adyt_alpha_min", "0", "--adyt_alpha_max", "1e-9"),
        ("--cache", "a_folder_to_be_made"),
    ],
    ids=" ".join,
)
def test_a_value_at_the_edge_of_what_can_be_is_taken(flags):
    resolved(*flags)


def test_two_processes_give_linear_probing_the_two_images_it_needs(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolved(*EVALUATE, "linprobe", "--batch_size", "1").optim.batch_size == 1


def test_a_file_is_no_cache(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=f"--cache {file}: is a file"):
        resolved("--cache", str(file))


def test_an_alpha_may_be_negative_and_have_an_exponent():
    for text in ("-0.5", "-10", "-1e-05", "-.5", "1E-5", "-2.5e+1"):
        assert resolved("--alpha", text).probes.alpha == float(text)


def test_an_alpha_brings_the_joint_probe_along():
    assert resolved().probes.names == () and resolved("--alpha", "0", "--probes", "none").probes.names == ()
    assert resolved("--alpha", "-0.1").probes.names == ("joint",)
    assert resolved("--alpha", "0.1", "--probes", "knn, frozen").probes.names == ("joint", "frozen", "knn")
    assert resolved("--probes", "all").probes.names == tuple(probes.PROBES)


def test_alpha_and_probes_make_another_run():
    plain = resolved().identity()
    for flags in (("--alpha", "0.1"), ("--probes", "frozen"), ("--probes", "knn", "--eval_every", "2")):
        assert resolved(*flags).identity() != plain
    assert resolved("--eval_every", "2").identity() == plain


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--norm", "batchnorm"], "--norm batchnorm: unknown"),
        (["--model", "resnet50"], "--model resnet50: unknown"),
        (["--model", "enc100d2h3p8"], "--model enc100d2h3p8: its width 100 must be a multiple of its 3 heads and of 4"),
        (["--model", "enc100d2h3p8"], "Try enc96d2h3 or enc108d2h3."),
        (["--model", "enc6d1h1p2"], "--model enc6d1h1p2: its width 6 must be a multiple of its 1 head and of 4"),
        (["--model", "enc2d1h1p2"], "Try enc4d1h1."),
        (["--model", "enc64d0h4p7"], "--model enc64d0h4p7: unknown"),
        (["--model", "enc64d4h4p7", "--input_size", "32"], "--input_size 32: not a multiple of the 7-pixel"),
        (["--decoder_type", "dec64d2h5"], "--decoder_type dec64d2h5: its width 64 must be a multiple of its 5 heads"),
        (["--decoder_type", "dec64d2h5"], "Try dec60d2h5 or dec80d2h5."),
        (["--pos_embed", "rope"], "--pos_embed rope: unknown. Choose from sincos, learned."),
        (["--decoder_type", "giant-8b"], "--decoder_type giant-8b: unknown"),
        (["--decoder_type", "base-0b"], "--decoder_type base-0b: unknown"),
        (["--device", "tpu"], "--device tpu: unknown"),
        (["--precision", "int8"], "--precision int8: unknown"),
        (["--input_size", "225"], "--input_size 225: not a multiple of the 16-pixel patches"),
        (["--model", "mae_vit_huge_patch14", "--input_size", "256"], "not a multiple of the 14-pixel patches"),
        (["--mask_ratio", "0"], "--mask_ratio 0.0: must be between"),
        (["--mask_ratio", "1"], "--mask_ratio 1.0: must be between"),
        (["--mask_ratio", "1.5"], "--mask_ratio 1.5: must be between"),
        (["--mask_ratio", "nan"], "--mask_ratio nan: must be between"),
        (["--mask_ratio", "0.999"], "of 196 patches 0 would be visible"),
        (["--epochs", "0"], "--epochs 0: must be positive"),
        (["--epochs", "-3"], "--epochs -3: must be positive"),
        (["--lr", "0"], "--lr 0.0: must be positive"),
        (["--lr", "nan"], "--lr nan: must be positive"),
        (["--lr", "inf"], "--lr inf: must be positive"),
        (["--blr", "-1"], "--blr -1.0: must be positive"),
        (["--batch_size", "0"], "--batch_size 0: must be positive"),
        (["--accum_iter", "0"], "--accum_iter 0: must be positive"),
        (["--max_images", "0"], "--max_images 0: must be positive"),
        (["--num_workers", "-1"], "--num_workers -1: must not be negative"),
        (["--seed", "-1"], "--seed -1: must not be negative"),
        (["--seed", str(2**64)], f"--seed {2**64}: must be below 2**63"),
        (
            ["--task", "linprobe", "--init", "untrained", "--batch_size", "1"],
            "--batch_size 1: linear probing normalises",
        ),
        (["--weight_decay", "-0.1"], "--weight_decay -0.1: must not be negative"),
        (["--min_lr", "-0.1"], "--min_lr -0.1: must not be negative"),
        (["--epochs", "10", "--warmup_epochs", "10"], "--warmup_epochs 10: as long as the run"),
        (["--steps", "0"], "--steps 0: must be positive"),
        (["--steps", "100", "--epochs", "10"], "--epochs 10 and --steps 100: choose one of them"),
        (["--adyt_alpha_min", "2", "--adyt_alpha_max", "1"], "need 0 <= min < max"),
        (["--adyt_lambda", "-0.1"], "--adyt_lambda -0.1: must be finite and not negative"),
        (["--adyt_lambda", "nan"], "--adyt_lambda nan: must be finite and not negative"),
        (["--adyt_smooth", "1"], "--adyt_smooth 1.0: must be in [0, 1)"),
        (["--adyt_smooth", "-0.1"], "--adyt_smooth -0.1: must be in [0, 1)"),
        (["--dyt_alpha_init", "0"], "--dyt_alpha_init 0.0: must be positive"),
        (["--demo", "--imagenet_dir", "x"], "--demo and --imagenet_dir x: choose one of them"),
        (["--hf_dataset", "a/b", "--imagenet_dir", "x"], "--imagenet_dir x and --hf_dataset a/b: choose one"),
        (["--hf_config", "320px"], "--hf_config 320px: is nothing without --hf_dataset"),
        (["--alpha", "nan"], "--alpha nan: must be finite"),
        (["--alpha", "-inf"], "--alpha -inf: must be finite"),
        (["--probes", "joint,linear"], "--probes joint,linear: linear is unknown"),
        (["--probes", ""], "--probes: is empty"),
        (["--probes", "all", "--batch_size", "1"], "--batch_size 1: the frozen probe normalises over the images"),
        (["--eval_every", "0"], "--eval_every 0: must be positive"),
        (["--cache", ""], "--cache: is empty"),
        (["--compile", "maybe"], "--compile maybe: unknown"),
        (["--seed", str(2**63)], f"--seed {2**63}: must be below 2**63"),
        (["--warmup_epochs", "-1"], "--warmup_epochs -1.0: must not be negative"),
        (["--adyt_alpha_min", "2", "--adyt_alpha_max", "2"], "need 0 <= min < max"),
        (["--mask_ratio", "1e-20"], "of 196 patches 196 would be visible"),
        (["--task", "finetune", "--init", "untrained", "--batch_size", "15", "--mixup", "0"], "so it must be even"),
        (["--task", "finetune", "--init", "untrained", "--batch_size", "15", "--cutmix", "0"], "so it must be even"),
    ],
    ids=" ".join,
)
def test_a_value_that_cannot_be_used_is_named(flags, says):
    with pytest.raises(InputError) as caught:
        resolved(*flags)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", [["--epochs", "ten"], ["--no_such_flag"], ["--lr"]], ids=" ".join)
def test_what_argparse_refuses_is_one_line_and_exit_code_2(flags):
    result = train(*flags, check=2)
    assert len(result.stderr.strip().splitlines()) == 1 and flags[0] in result.stderr


def test_bad_values_are_said_before_torch_is_imported():
    result = train("--norm", "x", check=2, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert "error: --norm x" in result.stderr and "torch" not in result.stderr


@pytest.mark.parametrize("script", ["train.py", "analysis.py"])
def test_help_needs_no_package(script):
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(["numpy", "PIL", "torch", "pandas", "matplotlib"]))
sys.argv = ["{script}", "--help"]
sys.path.insert(0, "")
runpy.run_path("{script}", run_name="__main__")
"""
    assert "usage" in run(sys.executable, "-c", code, check=0).stdout
