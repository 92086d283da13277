#!/usr/bin/env python3
"""Train one masked autoencoder with one normalisation layer, and leave everything about it in one folder.

    python train.py --demo --norm DynamicTanh
    python train.py --imagenet_dir /data/ILSVRC --norm LayerNorm --output_dir runs/LayerNorm
    python train.py --help

The same command again goes on where it stopped. Loops over norms and seeds are run_comparison.sh's.
"""

import math
import sys
import time

from maekit import errors, runs, settings, sources
from maekit.errors import InputError


def main(argv=None):
    """Check everything that can be checked at once, then train. Returns the exit code."""
    run = settings.resolve(settings.build_parser("train.py", __doc__).parse_args(argv))
    folder = runs.RunFolder(run.output_dir)
    source = sources.open_source(run.data, run.seed)
    check_batches(run.optim, source)
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
    """The story of a run: device, data, model, norms, optimizer, epochs, what is left behind."""
    import torch
    from timm.optim import param_groups_weight_decay
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    import norms
    from maekit import checkpoint, data, figures, validation
    from maekit.device import Device
    from maekit.model import build_mae

    started = time.monotonic()
    device = Device(run.device, run.precision)
    pixels = data.Pixels(device.torch)

    # data
    workers = {"workers": run.data.num_workers, "pin": device.torch.type == "cuda"}
    batches = data.train_loader(source.train, run.model, run.optim, seed=run.seed, **workers)
    val_batches = data.val_loader(source.val, run.model, batch_size=run.optim.batch_size, **workers)
    order = batches.batch_sampler
    broken = data.BrokenImages(tqdm.write)

    # model: the same initial weights for every norm, so built as LayerNorm under the seed, then converted
    torch.manual_seed(run.seed)
    model = build_mae(
        run.model.name,
        img_size=run.model.input_size,
        decoder_type=run.model.decoder_type,
        norm_pix_loss=run.model.norm_pix_loss,
    )
    norms.convert_norms(model, run.norm.name, **run.norm.options)
    model.to(device.torch)

    # optimizer
    groups = param_groups_weight_decay(model, run.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=run.optim.lr, betas=(0.9, 0.95))

    # where to go on
    first_epoch, elapsed, start_from = 0, 0.0, None
    if folder.checkpoint.exists():
        start_from = folder.checkpoint
    elif run.resume not in ("auto", "never"):
        start_from = run.resume
    if start_from is not None:
        state = checkpoint.read(start_from)
        checkpoint.load_model(start_from, state, model)
        first_epoch = checkpoint.load_training(start_from, state, optimizer, device.scaler)
        elapsed = state.get("elapsed_s", 0.0)
        if first_epoch >= run.optim.epochs and start_from != folder.checkpoint:
            raise InputError(f"--resume {start_from}: has {first_epoch} epochs already, --epochs is {run.optim.epochs}.")
        print(f"{start_from}: goes on with epoch {first_epoch} of {run.optim.epochs}.")
    log, alphas = folder.read_log(first_epoch), folder.read_norm_alpha(first_epoch)
    folder.write_config(describe(run, source, identity, model, device))
    board = SummaryWriter(folder.tensorboard, purge_step=first_epoch)

    def checked(loader, images):
        for batch in loader:
            broken.check(images, batch)
            yield batch

    # what the validation loss of this run is to be compared with; the images and masks never change
    baselines = state.get("baselines") if start_from == folder.checkpoint else None
    if baselines is None:
        baselines = validation.baselines(
            checked(val_batches, source.val), pixels, run.model.mask_ratio, model.patch_size, run.model.norm_pix_loss
        )

    total = run.optim.epochs * order.batches * run.optim.batch_size
    bar = tqdm(total=total, initial=first_epoch * total // run.optim.epochs, unit="img", desc=run.norm.name,
               mininterval=0.5 if sys.stderr.isatty() else 10, dynamic_ncols=True)  # fmt: skip
    status = runs.RUNNING
    for epoch in range(first_epoch, run.optim.epochs):
        order.set_epoch(epoch)
        epoch_started = time.monotonic()
        train_loss, lr = train_one_epoch(
            model, checked(batches, source.train), optimizer, device, pixels, bar,
            epoch=epoch, steps=order.steps, optim=run.optim, mask_ratio=run.model.mask_ratio,
            update_adaptive=norms.update_adaptive,
        )  # fmt: skip
        epoch_time = time.monotonic() - epoch_started
        val_mse = math.nan
        if math.isfinite(train_loss):
            val_batches_checked = checked(val_batches, source.val)
            val_mse = validation.validate(model, val_batches_checked, device, pixels, run.model.mask_ratio)
        if not math.isfinite(val_mse):
            status = runs.DIVERGED
            tqdm.write(f"epoch {epoch}: loss is not finite. The run has diverged; its finite epochs are kept.")
            break

        layers = norms.norm_alphas(model)
        alphas += [{"epoch": epoch, "layer": name, "alpha": a, "saturated": s} for name, a, s in layers]
        log.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_mse": val_mse,
                "lr": lr,
                "epoch_time_s": epoch_time,
                "images_per_s": order.batches * run.optim.batch_size / epoch_time,
                "peak_memory_mb": device.peak_memory_mb(),
                **summarize_alphas(layers),
            }
        )
        spent = elapsed + time.monotonic() - started
        status = runs.FINISHED if epoch + 1 == run.optim.epochs else runs.RUNNING
        folder.write_log(log)
        folder.write_norm_alpha(alphas)
        runs.write_json(folder.trajectory, trajectory(run, log, status))
        checkpoint.save(
            folder.checkpoint, model=model, optimizer=optimizer, scaler=device.scaler, epoch=epoch, args=identity,
            elapsed_s=spent, baselines=baselines,
        )  # fmt: skip
        for name, value in log[-1].items():
            if name != "epoch" and value is not None:
                board.add_scalar(name, value, epoch)
        tqdm.write(f"epoch {epoch + 1}/{run.optim.epochs}  train {train_loss:.4f}  val {val_mse:.4f}  "
                   f"lr {lr:.2e}  {epoch_time:.1f} s")  # fmt: skip
    bar.close()
    board.close()

    quality = {}
    if status != runs.DIVERGED:
        pictures, quality = validation.reconstruct(model, val_batches.dataset, device, pixels, run.model.mask_ratio)
        with runs.atomic_write(folder.reconstructions) as f:
            import numpy

            numpy.savez_compressed(f, **pictures)
    runs.write_json(folder.trajectory, trajectory(run, log, status))
    summary = summarize(run, log, status, elapsed + time.monotonic() - started, quality, baselines, len(broken))
    figures.save(figures.loss_curve(log, summary), folder.loss_curve)
    runs.write_json(folder.summary, summary)  # last: its presence says that the run has ended
    print(f"{folder.path}: {status} after {len(log)} epochs.")


def train_one_epoch(model, batches, optimizer, device, pixels, bar, *, epoch, steps, optim, mask_ratio, update_adaptive):
    """One pass over the training images. Returns the mean loss, nan as soon as it is not finite, and the last lr."""
    model.train()
    loss_sum = None  # on the device: reading it waits for the device, so only when the bar is drawn
    seen, drawn = 0, time.monotonic()
    optimizer.zero_grad(set_to_none=True)
    for i, batch in enumerate(batches):
        step, part = divmod(i, optim.accum_iter)
        if part == 0:
            lr = learning_rate(epoch + step / steps, optim)
            for group in optimizer.param_groups:
                group["lr"] = lr
        images = pixels.normalize(batch["images"])
        noise = batch["noise"].to(device.torch, non_blocking=True)
        with device.autocast():
            loss, _, _ = model(images, mask_ratio, noise)
        device.scaler.scale(loss / optim.accum_iter).backward()
        if part + 1 == optim.accum_iter:
            device.scaler.unscale_(optimizer)
            update_adaptive(model)
            device.scaler.step(optimizer)
            device.scaler.update()
            optimizer.zero_grad(set_to_none=True)

        loss = loss.detach().double() if device.torch.type != "mps" else loss.detach()
        loss_sum = loss if loss_sum is None else loss_sum + loss
        seen += len(images)
        bar.update(len(images))
        if time.monotonic() - drawn > bar.mininterval:
            drawn, mean = time.monotonic(), loss_sum.item() / (i + 1)
            if not math.isfinite(mean):
                return math.nan, lr
            bar.set_postfix(epoch=epoch, loss=f"{mean:.4f}", refresh=False)
    return loss_sum.item() / (i + 1), lr


def learning_rate(epoch, optim):
    """Linear warm-up, then half a cosine down to min_lr, at a fractional epoch; upstream's util/lr_sched.py."""
    if epoch < optim.warmup_epochs:
        return optim.lr * epoch / optim.warmup_epochs
    progress = (epoch - optim.warmup_epochs) / (optim.epochs - optim.warmup_epochs)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def describe(run, source, identity, model, device):
    """What config.json keeps."""
    from dataclasses import asdict

    return {
        "identity": identity,
        "settings": asdict(run),
        "command": sys.argv,
        "effective_batch": run.optim.effective_batch,
        "precision": device.precision,
        "device": str(device.torch),
        "hardware": device.describe(),
        "model_source": "builtin",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data": source.describe(),
        "versions": {"python": sys.version.split()[0], **runs.package_versions()},
        "git_commit": runs.git_commit(),
    }


def summarize_alphas(layers):
    """The log's columns on the norms' alphas: over layers, mean, min, max and the share that sits at a bound."""
    if not layers:
        return {}
    values = [alpha for _, alpha, _ in layers]
    bounded = [saturated for _, _, saturated in layers if saturated is not None]
    return {
        "norm_alpha_mean": sum(values) / len(values),
        "norm_alpha_min": min(values),
        "norm_alpha_max": max(values),
        "norm_alpha_saturated": sum(bounded) / len(bounded) if bounded else None,
    }


def trajectory(run, log, status):
    """What trajectory.json keeps, in the format of the original gap scripts."""
    point = {"alpha": 0.0, "lr": run.optim.lr}
    return {
        **point,
        "model": run.model.name,
        "decoder": run.model.decoder_type,
        "norm": run.norm.name,
        "seed": run.seed,
        "status": status,
        "trajectory": [{"epoch": row["epoch"], "mse": row["val_mse"], **point} for row in log],
    }


def summarize(run, log, status, total_time, quality, baselines, broken):
    """What summary.json keeps; losses are of the training images unless they say val."""
    best = min(log, key=lambda row: row["train_loss"], default=None)
    return {
        "model": run.norm.name,
        "seed": run.seed,
        "status": status,
        "total_epochs": len(log),
        "total_time": total_time,
        "avg_epoch_time": sum(row["epoch_time_s"] for row in log) / len(log) if log else None,
        "final_loss": log[-1]["train_loss"] if log else None,
        "min_loss": best and best["train_loss"],
        "min_loss_epoch": best and best["epoch"],
        "val_mse": log[-1]["val_mse"] if log else None,
        "psnr": None,
        "ssim": None,
        **quality,
        "images_per_s": sum(row["images_per_s"] for row in log) / len(log) if log else None,
        "peak_memory_mb": max((row["peak_memory_mb"] or 0 for row in log), default=None),
        "flat_colour": baselines["flat_colour"],
        "smooth_colour": baselines["smooth_colour"],
        "broken_images": broken,
    }


if __name__ == "__main__":
    sys.exit(errors.exit_code(main))
