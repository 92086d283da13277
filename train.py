#!/usr/bin/env python3
"""Train one masked autoencoder with one normalisation layer, and leave everything about it in one folder.

    python train.py --demo --norm DynamicTanh
    python train.py --imagenet_dir /data/ILSVRC --norm LayerNorm --output_dir runs/LayerNorm
    python train.py --help

The same command again goes on where it stopped. Loops over norms and seeds are run_comparison.sh's.
"""

import math
import os
import sys
import time
from dataclasses import asdict, replace

from maekit import errors, runs, settings
from maekit.errors import InputError


def main(argv=None):
    """Check everything that can be checked at once, then train. Returns the exit code."""
    run = settings.resolve(settings.build_parser("train.py", __doc__).parse_args(argv))
    from maekit import sources  # numpy and PIL, which --help does not need

    folder = runs.RunFolder(run.output_dir)
    source = sources.open_source(run.data, run.seed)
    check_batches(run.optim, source)
    if run.dry_run:
        print(
            f"{len(source.train)} training images of {len(source.classes)} classes, {len(source.val)} for validation; "
            f"{len(source.train) // run.optim.effective_batch} steps of {run.optim.effective_batch} images an epoch."
        )
        return 0
    if os.path.abspath(run.resume) == os.path.abspath(folder.checkpoint):
        if run.overwrite:
            raise InputError(f"--resume {run.resume}: --overwrite would delete it first. Copy it out of the folder.")
        run = replace(run, resume="auto")
    if run.resume == "never" and not run.overwrite and folder.checkpoint.exists():
        raise InputError(f"--resume never: {folder.path} holds a run. Choose another --output_dir, or --overwrite.")
    identity = {**run.identity(), "data": source.fingerprint}
    summary = folder.claim(identity, overwrite=run.overwrite)
    if summary is not None:
        print(f"{folder.path}: {summary['status']} already, nothing to do.")
        return 0
    train(run, source, folder, identity)
    return 0


def check_batches(optim, source):
    """Raise InputError unless the training images fill one optimizer step."""
    n = len(source.train)
    if optim.batch_size > n:
        raise InputError(f"--batch_size {optim.batch_size}: the data set has {n} training images. Use at most {n}.")
    if optim.effective_batch > n:
        raise InputError(f"--accum_iter {optim.accum_iter}: {optim.effective_batch} images a step, the data set has "
                         f"{n}. Use at most {n // optim.batch_size}.")  # fmt: skip


def train(run, source, folder, identity):
    """The story of a run: device, data, model, optimizer, where to go on, epochs, what is left behind."""
    # Threads that spin while they wait cost a CPU that is shared several times its speed. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import torch
    from timm.optim import param_groups_weight_decay
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    import norms
    from maekit import checkpoint, data, figures, validation
    from maekit.device import Device

    started = time.monotonic()
    device = Device(run.device, run.precision)
    identity = with_precision(identity, folder, device)
    pixels = data.Pixels(device.torch)
    broken = data.BrokenImages(tqdm.write)
    loading = {"broken": broken, "workers": run.data.num_workers, "pin": device.torch.type == "cuda"}
    batches = data.train_batches(source.train, run.model, run.optim, seed=run.seed, **loading)
    val_batches = data.val_batches(source.val, run.model, batch_size=run.optim.batch_size, **loading)

    model = build_model(run).to(device.torch)
    groups = param_groups_weight_decay(model, run.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=run.optim.lr, betas=(0.9, 0.95), fused=device.torch.type != "mps")

    first_epoch, elapsed, baselines = resume(run, folder, model, optimizer, device.scaler)
    record = runs.Record(folder, trajectory_head(run), first_epoch)
    runs.write_json(folder.config, describe(run, source, identity, model, device))
    if baselines is None:
        baselines = validation.baselines(val_batches, pixels, model, run.model.mask_ratio)

    status = runs.FINISHED
    images = len(batches) * run.optim.batch_size
    with (
        SummaryWriter(folder.tensorboard, purge_step=first_epoch) as board,
        tqdm(desc=run.norm.name, unit="img", total=run.optim.epochs * images, initial=first_epoch * images,
             mininterval=0.5 if sys.stderr.isatty() else 60, dynamic_ncols=True) as bar,
    ):  # fmt: skip
        for epoch in range(first_epoch, run.optim.epochs):
            row = measure_epoch(model, batches, val_batches, optimizer, device, pixels, run, epoch, bar)
            if row is None:
                status = runs.DIVERGED
                bar.write(f"epoch {epoch}: the loss is not finite, the run has diverged; its finite epochs are kept.")
                break
            record.add(row, norms.norm_alphas(model), runs.RUNNING)
            elapsed_s = elapsed + time.monotonic() - started
            checkpoint.save(
                folder.checkpoint, model=model, optimizer=optimizer, scaler=device.scaler, epoch=epoch, args=identity,
                elapsed_s=elapsed_s, baselines=baselines,
            )  # fmt: skip
            for name, value in record.log[-1].items():
                if name != "epoch" and value is not None:
                    board.add_scalar(name, value, epoch)
            bar.write(f"epoch {epoch + 1}/{run.optim.epochs}: training loss {row['train_loss']:.4f}, "
                      f"validation {row['val_mse']:.4f}, {row['epoch_time_s']:.1f} s")  # fmt: skip

    quality = {}
    if status == runs.FINISHED:
        pictures, quality = validation.reconstruct(model, val_batches.dataset, device, pixels, run.model.mask_ratio)
        runs.write_arrays(folder.reconstructions, pictures)
    summary = {
        "model": run.norm.name,
        "seed": run.seed,
        "status": status,
        "total_time": elapsed + time.monotonic() - started,
        **runs.summarize_log(record.log),
        **quality,
        **baselines,
        "broken_images": len(broken),
    }
    record.write_trajectory(status)
    if record.log:
        figures.save(figures.loss_curve(record.log, summary), folder.loss_curve)
    runs.write_json(folder.summary, summary)  # last: its presence says that the run has ended
    print(f"{folder.path}: {status} after {len(record.log)} epochs.")


def with_precision(identity, folder, device):
    """The identity with the precision that `auto` came to. Raises InputError if the run so far had another."""
    stored = runs.read_json(folder.config)["identity"] if folder.config.exists() else {}
    before = stored.get("precision", device.precision)
    if before != device.precision:
        raise InputError(
            f"{folder.path}: was computed in {before} so far, this would go on in {device.precision}. Add --precision "
            f"{before} to go on, or choose another --output_dir."
        )
    return {**identity, "precision": device.precision}


def build_model(run):
    """The model with its norm. Every norm starts from the same weights: built with LayerNorm under the seed first."""
    import torch

    import norms
    from maekit.model import build_mae

    torch.manual_seed(run.seed)
    model = build_mae(
        run.model.name,
        img_size=run.model.input_size,
        decoder_type=run.model.decoder_type,
        norm_pix_loss=run.model.norm_pix_loss,
    )
    return norms.convert_norms(model, run.norm.name, **run.norm.options)


def resume(run, folder, model, optimizer, scaler):
    """Load the folder's checkpoint, or the one --resume names: (first epoch to train, seconds so far, baselines)."""
    from maekit import checkpoint

    named = None if run.resume in ("auto", "never") else run.resume
    path = folder.checkpoint if folder.checkpoint.exists() else named
    if path is None:
        return 0, 0.0, None
    state = checkpoint.read(path)
    checkpoint.load_model(path, state, model)
    first_epoch = checkpoint.load_training(path, state, optimizer, scaler)
    if path == named and first_epoch >= run.optim.epochs:
        raise InputError(f"--resume {path}: has {first_epoch} epochs already; --epochs {run.optim.epochs} adds none.")
    print(f"{path}: goes on with epoch {first_epoch} of {run.optim.epochs}.")
    own = path == folder.checkpoint
    return first_epoch, state["elapsed_s"] if own else 0.0, state["baselines"] if own else None


def measure_epoch(model, batches, val_batches, optimizer, device, pixels, run, epoch, bar):
    """Train one epoch and validate: the epoch's row of the log, or None if a loss is not finite."""
    from maekit import validation

    started = time.monotonic()
    train_loss, lr = train_one_epoch(model, batches, optimizer, device, pixels, run, epoch, bar)
    epoch_time = time.monotonic() - started
    if not math.isfinite(train_loss):
        return None
    val_mse = validation.validate(model, val_batches, device, pixels, run.model.mask_ratio)
    if not math.isfinite(val_mse):
        return None
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "val_mse": val_mse,
        "lr": lr,
        "epoch_time_s": epoch_time,
        "images_per_s": len(batches) * run.optim.batch_size / epoch_time,
        "peak_memory_mb": device.peak_memory_mb(),
    }


def train_one_epoch(model, batches, optimizer, device, pixels, run, epoch, bar):
    """One pass over the training images. Returns the mean loss, nan as soon as it is not finite, and the last lr."""
    import norms

    model.train()
    optimizer.zero_grad(set_to_none=True)
    batches.order.set_epoch(epoch)
    accum_iter = run.optim.accum_iter
    loss_sum = 0.0  # becomes a tensor on the device; reading it waits, so only when the bar is drawn
    drawn = time.monotonic()
    for i, batch in enumerate(batches):
        if i % accum_iter == 0:
            lr = learning_rate(epoch + i / len(batches), run.optim)
            for group in optimizer.param_groups:
                group["lr"] = lr

        noise = batch["noise"].to(device.torch, non_blocking=True)
        with device.autocast():
            loss, _, _ = model(pixels.normalize(batch["images"]), run.model.mask_ratio, noise)
        device.scaler.scale(loss / accum_iter).backward()
        if (i + 1) % accum_iter == 0:
            device.scaler.unscale_(optimizer)
            norms.update_adaptive(model)
            device.scaler.step(optimizer)
            device.scaler.update()
            optimizer.zero_grad(set_to_none=True)

        loss_sum = loss_sum + loss.detach().to(device.sum_dtype)
        bar.update(len(noise))
        if time.monotonic() - drawn > bar.mininterval:
            drawn, mean = time.monotonic(), float(loss_sum) / (i + 1)
            if not math.isfinite(mean):
                return math.nan, lr
            bar.set_postfix(epoch=epoch, loss=f"{mean:.4f}", refresh=False)
    return float(loss_sum) / len(batches), lr


def learning_rate(epoch, optim):
    """Linear warm-up, then half a cosine down to min_lr, at a fractional epoch; upstream's util/lr_sched.py."""
    if epoch < optim.warmup_epochs:
        return optim.lr * epoch / optim.warmup_epochs
    progress = (epoch - optim.warmup_epochs) / (optim.epochs - optim.warmup_epochs)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def describe(run, source, identity, model, device):
    """What config.json keeps."""
    return {
        "identity": identity,
        "settings": asdict(run),
        "command": sys.argv,
        "effective_batch": run.optim.effective_batch,
        "device": str(device.torch),
        "hardware": device.describe(),
        "model_source": "builtin",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data": source.describe(),
        "versions": {"python": sys.version.split()[0], **runs.package_versions()},
        "git_commit": runs.git_commit(),
    }


def trajectory_head(run):
    """What trajectory.json says of the run as a whole."""
    return {
        "alpha": 0.0,
        "lr": run.optim.lr,
        "model": run.model.name,
        "decoder": run.model.decoder_type,
        "norm": run.norm.name,
        "seed": run.seed,
    }


if __name__ == "__main__":
    sys.exit(errors.exit_code(main))
