"""Our model, checkpoints and recipes beside upstream's own code (facebookresearch/mae), run and compared.

They need a clone of upstream: at $MAE_CLONE, in mae beside the scripts, or on PYTHONPATH. It is copied, the copy is
patched with compatibility-fix.patch. Without one these tests are skipped, and nothing else shows that the two are equal.
"""

import gc
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.optim import param_groups_weight_decay
from torch import nn
from torchvision import datasets, transforms

import norms
import train as train_module
from maekit import files
from maekit.data import demo, sources
from maekit.model import upstream
from maekit.model.formats import encoder_weights, to_timm
from maekit.model.mae import MODELS, MaskedAutoencoder, build_mae
from maekit.probes.linear import lars
from maekit.settings import architectures, parser
from maekit.settings.resolution import resolve
from maekit.settings.typed import OptimSettings
from maekit.training import checkpoint, trainer
from tests.support import KIT, run, train_here

TOLERANCE = 1e-5  # float32 on the CPU
STEPS = 5
BASE = "mae_vit_base_patch16"


@pytest.fixture(scope="module", autouse=True)  # without one, nothing else is begun
def clone(tmp_path_factory):
    """A patched copy of the clone that there is."""
    found = upstream.find(os.environ.get("MAE_CLONE") or None)
    if found is None:
        reason = (
            "no clone of upstream found, EQUALITY WITH UPSTREAM WAS NOT TESTED. "
            "Run ./run_comparison.sh --clone_mae, or set MAE_CLONE to the path of a clone."
        )
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("upstream") / "mae"
    subprocess.run(["git", "clone", "--quiet", str(found.path), str(path)], check=True)
    return upstream.find(str(path)).ensure_patched()


@pytest.fixture(scope="module")
def theirs(clone):
    """Import a module of upstream's by its name. Afterwards none of them is loaded or found any more."""
    path, trusted = list(sys.path), torch.serialization.get_safe_globals()
    clone.module()
    yield importlib.import_module
    sys.path[:] = path
    torch.serialization.clear_safe_globals()  # to which upstream's util.misc adds
    torch.serialization.add_safe_globals(trusted)
    for name in list(sys.modules):
        if name.split(".")[0] in ("models_mae", "models_vit", "engine_pretrain", "util"):
            del sys.modules[name]


# The model


def pictures(n, side=224):
    """n crops of photographs, normalised, (n, 3, side, side); the corner of the first is flat, as an overexposed sky."""
    images = []
    for name in demo.PHOTOGRAPHS[:n]:
        photo = Image.open(demo.photograph(name)).convert("RGB")
        images.append(transforms.functional.to_tensor(transforms.functional.resize(photo, [side, side])))
    images = (torch.stack(images) - 0.45) / 0.225
    images[0, :, : side // 4, : side // 4] = images.max()
    return images


def noises(steps, n, patches):
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.random((steps, n, patches), dtype=np.float32))


def with_weights_that_all_matter(mae):
    """The model with tokens, biases and scales moved away from 0 and 1, so that each has its part in the numbers."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in mae.parameters():
            if p.requires_grad and (p.ndim == 1 or p.shape[:2] == (1, 1)):
                p += 0.05 * torch.randn(p.shape, generator=generator)
    return mae


class GivenNoise:
    """torch.rand in upstream's random_masking, which gets our noise instead; counts how often it is asked."""

    def __init__(self, monkeypatch):
        self.asked, self.noise = 0, None
        monkeypatch.setattr(torch, "rand", self)

    def __call__(self, *shape, device=None):
        assert shape == self.noise.shape
        self.asked += 1
        return self.noise


def trained(mae, loss_of, images, noise):
    """What five AdamW steps on the same images under other masks give; loss_of(mae, images, noise) is a forward pass."""
    optimizer = torch.optim.AdamW(param_groups_weight_decay(mae, 0.05), lr=1.5e-4, betas=(0.9, 0.95), fused=True)
    found = {"losses": []}
    mae.train()
    for step in range(STEPS):
        loss, pred, mask = loss_of(mae, images, noise[step])
        loss.backward()
        if step == 0:
            found["gradients"] = {n: p.grad.clone() for n, p in mae.named_parameters() if p.grad is not None}
            found |= {"pred": {"pred": pred.detach()}, "mask": mask}
        found["losses"].append(loss.item())
        norms.update_adaptive(mae)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found["weights"] = dict(mae.state_dict())
    return found


def without_key_bias(name, tensor):
    """qkv.bias without the keys': adding one vector to all keys changes no attention, so its gradient is what rounding
    leaves, and Adam makes whole steps of that."""
    if not name.endswith("qkv.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def difference(ours, theirs):
    """Largest ‖a - b‖ / ‖b‖ over the tensors of two dicts, and the name of that tensor."""
    assert ours.keys() == theirs.keys()
    worst = (0.0, None)
    for name, b in theirs.items():
        a, b = without_key_bias(name, ours[name]), without_key_bias(name, b)
        assert a.shape == b.shape, name
        if not torch.equal(a, b):
            assert a.isfinite().all() and b.isfinite().all(), name
            a, b = a.double(), b.double()
            worst = max(worst, (((a - b).norm() / b.norm()).item(), name))
    return worst


def compared(label, ours, expected, record_property):
    """Assert that what `trained` found for two models is equal to TOLERANCE; the largest differences are printed."""
    assert torch.equal(ours["mask"], expected["mask"])
    largest = {"loss": (max(abs(a - b) / b for a, b in zip(ours["losses"], expected["losses"])), None)}
    largest |= {part: difference(ours[part], expected[part]) for part in ("pred", "gradients", "weights")}
    for part, (value, where) in largest.items():
        record_property(part, value)
        print(f"{label}: {part} differ by {value:.1e} {where or ''}")
    assert all(value <= TOLERANCE for value, _ in largest.values()), largest
    assert all(math.isfinite(loss) for loss in ours["losses"]) and ours["losses"][-1] < ours["losses"][0]


def with_our_noise(mae, images, noise):
    return mae(images, 0.75, noise)


CASES = {
    "base": (BASE, {}, "LayerNorm"),
    "base norm_pix_loss": (BASE, {"norm_pix_loss": True}, "LayerNorm"),
    **{f"base {norm}": (BASE, {"img_size": 112}, norm) for norm in norms.NORMS if norm != "LayerNorm"},
    "large": ("mae_vit_large_patch16", {}, "LayerNorm"),
}


@pytest.mark.parametrize("case", CASES)
def test_five_steps_of_our_model_are_five_steps_of_upstreams(case, theirs, monkeypatch, record_property):
    """Loss, prediction, mask, every gradient, and the weights after five steps; upstream's masking included."""
    name, options, norm = CASES[case]
    side = options.get("img_size", 224)
    images, noise = pictures(2, side), noises(STEPS, 2, (side // 16) ** 2)

    def build(make):
        torch.manual_seed(3)
        return norms.convert_norms(make(**options), norm)

    def with_torchs_noise(mae, images, noise):
        given.noise = noise
        return mae(images, mask_ratio=0.75)

    ours = with_weights_that_all_matter(build(partial(build_mae, name)))
    other = build(getattr(theirs("models_mae"), name))
    assert type(other).__module__ == "models_mae" and not isinstance(other, MaskedAutoencoder)
    shapes = [{n: tuple(t.shape) for n, t in mae.state_dict().items()} for mae in (ours, other)]
    assert shapes[0] == shapes[1]
    other.load_state_dict(ours.state_dict())

    with monkeypatch.context() as patched:
        given = GivenNoise(patched)
        expected = trained(other, with_torchs_noise, images, noise)
        assert given.asked == STEPS
    del other  # before the other one trains, which takes as much memory
    gc.collect()
    found = trained(ours, with_our_noise, images, noise)
    assert len(found["gradients"]) == sum(p.requires_grad for p in ours.parameters())
    compared(case, found, expected, record_property)


def test_the_class_that_the_kit_trains_is_upstreams_own_to_the_last_bit(theirs, monkeypatch):
    """It takes the masks' noise from its caller and changes nothing else."""
    images, noise = pictures(2, 64), noises(1, 2, 16)[0]
    torch.manual_seed(3)
    kits = with_weights_that_all_matter(build_mae(BASE, img_size=64, upstream=theirs("models_mae")))
    own = getattr(theirs("models_mae"), BASE)(img_size=64)
    assert isinstance(kits, type(own)) and list(kits.state_dict()) == list(own.state_dict())
    own.load_state_dict(kits.state_dict())
    for norm_pix_loss in (False, True):
        for mae in (kits, own):
            mae.norm_pix_loss = norm_pix_loss
            mae.zero_grad(set_to_none=True)
        with monkeypatch.context() as patched:
            given = GivenNoise(patched)
            given.noise = noise
            expected = (*own(images), *own.forward_encoder(images, 0.5))
        found = (*kits(images, 0.75, noise), *kits.forward_encoder(images, 0.5, noise))
        assert len(found) == 6 and all(torch.equal(a, b) for a, b in zip(found, expected))
        found[0].backward()
        expected[0].backward()
        for (n, p), q in zip(kits.named_parameters(), own.parameters()):
            assert p.grad is q.grad is None or torch.equal(p.grad, q.grad), n


def test_without_noise_the_kits_class_draws_the_masks_that_upstreams_draws(theirs):
    images, found = pictures(2, 64), []
    kits = build_mae(BASE, img_size=64, upstream=theirs("models_mae"))
    own = getattr(theirs("models_mae"), BASE)(img_size=64)
    for mae in (kits, own):
        torch.manual_seed(5)
        with torch.no_grad():
            found.append(mae(images)[2])
    assert torch.equal(*found) and found[0].sum(1).tolist() == [12, 12]


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("mae_vit_demo_patch8", None),
        ("mae_vit_demo_patch8", "linear"),
        ("vit_tiny", "base-8b"),
        ("vit_tiny", "linear"),
    ],
)
def test_models_that_upstream_lacks_are_built_of_its_class_and_equal_ours(name, decoder, theirs, record_property):
    patch = architectures.MODELS[name]
    images, noise = pictures(2, 64), noises(STEPS, 2, (64 // patch) ** 2)
    both = []
    for module in (None, theirs("models_mae")):
        torch.manual_seed(3)
        both.append(build_mae(name, img_size=64, decoder_type=decoder, norm_pix_loss=True, upstream=module))
    ours, other = both
    assert isinstance(other, theirs("models_mae").MaskedAutoencoderViT)
    weights, others = ours.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[n], others[n]) for n in weights)  # of one seed
    for mae in both:
        with_weights_that_all_matter(mae)
    found, expected = (trained(mae, with_our_noise, images, noise) for mae in both)
    compared(f"{name} {decoder}", found, expected, record_property)
    pred = found["pred"]["pred"]
    assert torch.equal(ours.reconstruct(images, pred), other.reconstruct(images, pred))


@pytest.mark.parametrize("name", [name for name in MODELS if name.split("_")[2] in ("base", "large", "huge")])
def test_names_and_shapes_of_all_of_upstreams_models_are_ours(name, theirs):
    with torch.device("meta"):  # no memory, no time
        ours, other = build_mae(name), getattr(theirs("models_mae"), name)()
    for kind in ("named_parameters", "named_buffers"):
        described = [{n: (tuple(t.shape), t.requires_grad) for n, t in getattr(m, kind)()} for m in (ours, other)]
        assert described[0] == described[1]
    eps = [{n: m.eps for n, m in mae.named_modules() if isinstance(m, nn.LayerNorm)} for mae in (ours, other)]
    assert eps[0] == eps[1]


def test_initial_weights_are_drawn_as_upstreams_are(theirs):
    """Tables and constants equal, random tensors alike in spread and largest value; of tensors too small to tell, both
    are random."""
    torch.manual_seed(0)
    ours, other = build_mae(BASE).state_dict(), getattr(theirs("models_mae"), BASE)().state_dict()
    drawn = 0
    for name, b in other.items():
        a = ours[name]
        if "pos_embed" in name or b.std() == 0:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        else:
            drawn += 1
            rough = 0.02 if a.numel() > 10_000 else 0.2
            assert a.std().item() == pytest.approx(b.std().item(), rel=rough), name
            assert a.numel() < 10_000 or a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=1e-3), name
    assert drawn == 2 + 4 + 20 * 4  # tokens, patch embedding with its bias, two layers, matrices of the blocks


# Runs

QUICK = ("--demo", "--epochs", "2", "--max_images", "128", "--batch_size", "16", "--num_workers", "0")
NORMS = ("LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh")
CLOCK = ("epoch_time_s", "images_per_s", "peak_memory_mb")


def log(folder):
    """The log without its clock columns."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in files.read_csv(folder / "log.csv")]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def trained_by(folder):
    """What config.json says of the model's source."""
    return json.loads((folder / "config.json").read_text())["model_source"]


def upstream_as_source(clone):
    return {"source": "upstream", "path": str(clone.path), "commit": clone.commit, "patched": True}


@pytest.fixture(scope="module", params=NORMS)
def two_runs(request, clone, theirs, tmp_path_factory):
    """(flags, {source: run folder}) of one norm: the same run of upstream's model and of ours."""
    root, command = tmp_path_factory.mktemp(request.param), [*QUICK, "--norm", request.param]
    folders = {"upstream": root / "upstream", "builtin": root / "builtin"}
    for source, folder in folders.items():
        place = "builtin" if source == "builtin" else clone.path
        train_here(*command, "--mae_dir", place, "--output_dir", folder, check=0)
    return command, folders


def test_a_run_of_upstreams_model_has_the_losses_of_ours(two_runs):
    _, folders = two_runs
    found, expected = (log(folders[source]) for source in ("builtin", "upstream"))
    assert len(found) == len(expected) == 2
    for ours, others in zip(found, expected):
        for name in ("train_loss", "val_mse", "lr"):
            assert ours[name] == pytest.approx(others[name], rel=1e-4, abs=0), name
    assert found[1]["train_loss"] < found[0]["train_loss"]


def test_a_run_says_whose_model_it_trained(two_runs, clone):
    _, folders = two_runs
    assert trained_by(folders["upstream"]) == upstream_as_source(clone)
    assert trained_by(folders["builtin"]) == {"source": "builtin"}


def test_a_folder_does_not_go_on_with_the_other_source(two_runs, clone):
    command, folders = two_runs
    for source, other in (("upstream", "builtin"), ("builtin", clone.path)):
        before = (folders[source] / "checkpoint.pth").read_bytes()
        error = train_here(*command, "--mae_dir", other, "--output_dir", folders[source], check=2).stderr
        assert f"--mae_dir upstream at {clone.commit[:12]}" in error and len(error.strip().splitlines()) == 1
        assert f"--output_dir {folders[source]}: holds a run with " in error
        assert (folders[source] / "checkpoint.pth").read_bytes() == before


def test_k_nn_finds_as_much_in_upstreams_encoder_as_in_ours(two_runs, tmp_path):
    _, folders = two_runs
    found = {}
    for source, folder in folders.items():
        out = tmp_path / source
        train_here("--demo", "--task", "knn", "--init", folder, "--max_images", "128", "--num_workers", "0",
                   "--output_dir", out, check=0)  # fmt: skip
        found[source] = summary(out)["acc1"]
    assert found["upstream"] == found["builtin"] and 10 < found["upstream"] <= 100  # by chance 10


@pytest.mark.parametrize("decoder", [(), ("--decoder_type", "linear")], ids=["own decoder", "linear decoder"])
def test_alpha_and_all_probes_work_on_upstreams_model_and_say_what_they_say_on_ours(decoder, clone, theirs, tmp_path):
    command = [*QUICK, *decoder, "--alpha", "0.1", "--probes", "all"]
    logs = []
    for name, place in (("upstream", clone.path), ("builtin", "builtin")):
        train_here(*command, "--mae_dir", place, "--output_dir", tmp_path / name, check=0)
        logs.append(log(tmp_path / name))
    for ours, others in zip(*logs):
        for name in ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse"):
            assert ours[name] == pytest.approx(others[name], rel=1e-4), name
    scores = ("accuracy", "frozen_accuracy", "knn_accuracy", "untrained_frozen_accuracy", "untrained_knn_accuracy")
    for name in scores:
        assert 0 < logs[0][-1][name] < 100
        assert logs[0][-1][name] == pytest.approx(logs[1][-1][name], abs=1), name  # two of 200 images may flip


def test_a_killed_run_of_upstreams_model_goes_on_to_the_same_curve(clone, theirs, tmp_path):
    command = [*QUICK, "--epochs", "4", "--norm", "adyt", "--alpha", "0.1", "--probes", "all", "--mae_dir", clone.path]
    train_here(*command, "--output_dir", tmp_path / "whole", check=0)
    killed = tmp_path / "killed"
    words = [str(word) for word in (sys.executable, KIT / "train.py", *command, "--output_dir", killed)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (killed / "checkpoint.pth").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (killed / "summary.json").exists()
    assert "goes on with epoch" in train_here(*command, "--output_dir", killed, check=0).stdout
    assert log(killed) == log(tmp_path / "whole")
    assert trained_by(killed)["source"] == "upstream"


def test_a_clone_on_pythonpath_is_trained(clone, demo_dir, tmp_path):
    """export PYTHONPATH=$PYTHONPATH:DIR, for a kit with no mae beside the scripts."""
    kit = tmp_path / "kit"
    shutil.copytree(KIT / "maekit", kit / "maekit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "norms.py", upstream.PATCH.name):
        shutil.copy(KIT / name, kit / name)
    command = [sys.executable, kit / "train.py", "--imagenet_dir", demo_dir, "--model", "mae_vit_demo_patch8"]
    command += ["--input_size", "32", "--epochs", "1", "--max_images", "32", "--batch_size", "16", "--num_workers", "0"]
    export = 'export PYTHONPATH="$PYTHONPATH:$1"; shift; exec "$@"'
    run("bash", "-c", export, "bash", clone.path, *command, "--output_dir", "run", cwd=tmp_path, check=0)
    assert trained_by(tmp_path / "run") == upstream_as_source(clone)
    run(*command, "--output_dir", "other", cwd=tmp_path, check=0)
    assert trained_by(tmp_path / "other") == {"source": "builtin"}


# Checkpoints, both ways, with upstream's own scripts

SHORT = ("--model", BASE, "--epochs", "1", "--batch_size", "4", "--accum_iter", "1", "--num_workers", "0",
         "--device", "cpu")  # fmt: skip
DECODER = ("decoder_", "mask_token")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder for checkpoints of a gigabyte each, gone afterwards."""
    folder = tmp_path_factory.mktemp("room")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def class_folders(room):
    """Crops of two photographs as JPEGs in train/<class>/ and val/<class>/, 4 of each class in each."""
    rng = np.random.default_rng(0)
    for name in ("chelsea.png", "coffee.png"):
        photo = Image.open(demo.photograph(name)).convert("RGB")
        for i in range(8):
            folder = room / "data" / ("train", "val")[i % 2] / name.partition(".")[0]
            folder.mkdir(parents=True, exist_ok=True)
            x, y = rng.integers(photo.width - 240), rng.integers(photo.height - 200)
            photo.crop((x, y, x + 240, y + 200)).save(folder / f"{i}.jpg", quality=95)
    return room / "data"


@pytest.fixture(scope="module")
def script(clone, class_folders, room):
    """Run one of upstream's scripts on the class folders for an epoch: its process and the folder it wrote to."""

    def start(name, kind, *more, check=0):
        folder = room / f"upstream-{name}-{len(os.listdir(room))}"
        heads = () if name == "main_pretrain" else ("--nb_classes", "2")
        result = run(
            sys.executable, clone.path / f"{name}.py", "--model", kind, "--data_path", class_folders, "--epochs", "1",
            "--warmup_epochs", "0", "--batch_size", "4", "--num_workers", "0", "--no_pin_mem", "--device", "cpu",
            "--output_dir", folder, "--log_dir", folder, *heads, *more, cwd=room, check=check, timeout=600,
        )  # fmt: skip
        print(f"{name}.py {' '.join(map(str, more))}", *(result.stdout + result.stderr).splitlines()[-3:], sep="\n    ")
        return result, folder

    return start


def measured(output):
    """Top-1, top-5 and loss of the last evaluation that a script of upstream's printed."""
    return [float(number) for number in re.findall(r"\* Acc@1 (\S+) Acc@5 (\S+) loss (\S+)", output)[-1]]


@pytest.fixture(scope="module")
def ours(room, class_folders):
    """The folder of a pre-training of ours, ViT-B at 224 pixels."""
    train_here(*SHORT, "--mae_dir", "builtin", "--input_size", "224", "--imagenet_dir", class_folders, "--lr", "1e-4",
               "--output_dir", room / "ours", check=0)  # fmt: skip
    return room / "ours"


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
        train_here(*SHORT, "--task", task, "--init", upstreams, "--imagenet_dir", class_folders, *rates.get(task, ()),
                   "--output_dir", folder, check=0)  # fmt: skip
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
        train_here(*SHORT, "--task", "finetune", "--epochs", "0", "--init", folder / "checkpoint-0.pth",
                   "--imagenet_dir", class_folders, "--output_dir", tmp_path, check=0)  # fmt: skip
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
    train_here(*SHORT, "--mae_dir", "builtin", "--norm", "DynamicTanh", "--imagenet_dir", class_folders,
               "--max_images", "4", "--output_dir", folder, check=0)  # fmt: skip
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
    transform = transforms.Compose([
        transforms.Resize(256, interpolation=3), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
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
    train_here(*SHORT, "--mae_dir", "builtin", "--init", upstreams, "--lr", "1e-12", "--imagenet_dir", class_folders,
               "--output_dir", folder, check=0)  # fmt: skip
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
        train_here(*SHORT, "--task", "finetune", "--epochs", "0", "--init", folder, "--imagenet_dir", class_folders,
                   "--output_dir", tmp_path, check=0)  # fmt: skip
        assert_measured_alike(summary(tmp_path), result.stdout)


# Recipes


def settings_of(*typed):
    return resolve(parser.build_parser("train.py", "").parse_args([str(word) for word in typed]))


def test_epochs_of_our_loop_are_epochs_of_upstreams_with_accumulated_batches(theirs, monkeypatch, tmp_path):
    """Its engine, its model and a plain AdamW, on the batches and masks of ours: losses and weights, rates per step."""
    run = settings_of(
        "--demo", "--max_images", "64", "--batch_size", "8", "--accum_iter", "2", "--epochs", "3", "--num_workers", "0",
        "--warmup_epochs", "0.7", "--min_lr", "1e-5", "--device", "cpu", "--output_dir", tmp_path,
    )  # fmt: skip
    job = train_module.open_job(run, sources.open_source(run.data, run.seed))
    patch, encoder, decoder = MODELS[run.model.name]
    mae = theirs("models_mae").MaskedAutoencoderViT(
        run.model.input_size, patch, 3, encoder.width, encoder.depth, encoder.heads,
        decoder.width, decoder.depth, decoder.heads, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    mae.load_state_dict(job.network.state_dict())
    optimizer = torch.optim.AdamW(param_groups_weight_decay(mae, 0.05), lr=1.0, betas=(0.9, 0.95))
    args = SimpleNamespace(accum_iter=2, mask_ratio=0.75, lr=run.optim.lr, min_lr=1e-5, warmup_epochs=0.7, epochs=3)
    device = torch.device("cpu")
    scaler = theirs("util.misc").NativeScalerWithGradNormCount(device)

    class Loader(list):
        """The batches as upstream's engine takes them; each sets the noise that its masks are drawn from."""

        def __iter__(self):
            for batch in super().__iter__():
                given.noise = batch["noise"]
                yield job.pixels.normalize(batch["images"]), batch["labels"]

    bar = SimpleNamespace(mininterval=math.inf, update=lambda images: None)
    for epoch in range(3):
        job.batches.order.set_epoch(epoch)
        batches = Loader(job.batches)
        with monkeypatch.context() as patched:
            given = GivenNoise(patched)
            expected = theirs("engine_pretrain").train_one_epoch(
                mae, batches, optimizer, device, epoch, scaler, args=args
            )
            assert given.asked == len(batches) == 8
        row = job.train_one_epoch(epoch, bar)
        assert row["train_loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert row["lr"] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    value, where = difference(job.network.state_dict(), mae.state_dict())
    print(f"three epochs of upstream's engine: weights differ by {value:.1e} {where or ''}")
    assert value <= TOLERANCE, where


@pytest.mark.parametrize(("decay", "norm"), [(0.65, "LayerNorm"), (0.75, "LayerNorm"), (0.65, "DynamicTanh")])
def test_layer_wise_rates_are_upstreams(decay, norm, class_folders, theirs, tmp_path):
    """Share of the rate and weight decay of every parameter that our fine-tuning trains."""
    run = settings_of(
        "--task", "finetune", "--init", "untrained", "--model", "vit_tiny", "--layer_decay", decay, "--norm", norm,
        "--weight_decay", "0.07", "--batch_size", "4", "--accum_iter", "1", "--imagenet_dir", class_folders,
        "--device", "cpu", "--output_dir", tmp_path,
    )  # fmt: skip
    job = train_module.open_job(run, sources.open_source(run.data, run.seed))
    vit = theirs("models_vit").VisionTransformer(
        global_pool=True, patch_size=16, embed_dim=192, depth=12, num_heads=3, num_classes=2, norm_layer=nn.LayerNorm
    )
    norms.convert_norms(vit, norm)
    groups = theirs("util.lr_decay").param_groups_lrd(vit, 0.07, vit.no_weight_decay(), decay)

    def by_name(groups, network):
        names = {p: n for n, p in network.named_parameters()}
        return {names[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}

    found, expected = by_name(job.optimizer.param_groups, job.network), by_name(groups, vit)
    assert len(found) == len(list(job.network.parameters()))
    assert found.keys() == expected.keys()
    for name, scales in expected.items():
        assert found[name] == pytest.approx(scales, rel=1e-12), name
    assert found["cls_token"] == pytest.approx((decay**13, 0)) and found["head.weight"] == (1, 0.07)


@pytest.mark.parametrize(("warmup", "low"), [(0, 0.0), (5, 0.0), (5, 1e-6), (2.5, 1e-5)])
def test_the_rate_of_every_step_is_upstreams(warmup, low, theirs):
    optim = OptimSettings(50, 64, 1, 2.4e-3, low, warmup, 0.05)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr_scale": 0.65}, {"params": [torch.zeros(1)]}], lr=1.0)
    args = SimpleNamespace(lr=2.4e-3, min_lr=low, warmup_epochs=warmup, epochs=50)
    for epoch in np.linspace(0, 50, 201)[:-1]:
        expected = theirs("util.lr_sched").adjust_learning_rate(optimizer, epoch, args)
        assert trainer.learning_rate(epoch, optim) == pytest.approx(expected, rel=1e-12, abs=0)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.65 * expected)


def test_five_steps_of_our_lars_are_five_steps_of_upstreams(theirs):
    """Without weight decay, which linear probing has none of."""
    torch.manual_seed(0)
    ours = nn.Linear(32, 10)
    other = nn.Linear(32, 10)
    other.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    x, y = torch.randn(64, 32), torch.randint(10, (64,))
    optimizers = [
        (ours, lars(ours, lr=0.1, weight_decay=0.0)),
        (other, theirs("util.lars").LARS(other.parameters(), lr=0.1, weight_decay=0.0)),
    ]
    for step in range(STEPS):
        for layer, optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 5.0 - step  # as a schedule does
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x), y).backward()
            optimizer.step()
        for a, b in zip(ours.parameters(), other.parameters()):
            assert ((a - b).norm() / b.norm()).item() < TOLERANCE
    assert (ours.weight - start).norm() > 0.01 * start.norm()
