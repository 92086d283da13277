#!/usr/bin/env python3
"""Train one masked autoencoder with one normalisation layer, and leave everything about it in one folder.

The loss is reconstruction + alpha x classification; at alpha 0, the default, that is MAE.

    python train.py --demo --norm DynamicTanh
    python train.py --demo --alpha 0.5 --probes all
    python train.py --imagenet_dir /data/ILSVRC --norm LayerNorm --output_dir runs/LayerNorm
    python train.py --help

The same command again goes on where it stopped. Loops over norms and seeds are run_comparison.sh's, those over
alphas and learning rates run_alpha_sweep.sh's.
"""

import math
import os
import sys
import time
from dataclasses import asdict, replace

from maekit import errors, files, flags, runs, settings
from maekit.errors import InputError


def main(argv=None):
    """Check everything that can be checked at once, then train. Returns the exit code."""
    run = settings.resolve(flags.build_parser("train.py", __doc__).parse_args(argv))
    from maekit import sources  # numpy and PIL, which --help does not need

    folder = runs.RunFolder(run.output_dir, run.checkpoint_dir)
    source = sources.open_source(run.data, run.seed)
    check_batches(run.optim, source)
    check_labels(run.probes, source)
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


def check_labels(probes, source):
    """Raise InputError unless the data set has the labels that alpha and the probes need."""
    if not probes.names:
        return
    wanted = f"--alpha {probes.alpha:g}" if probes.alpha else f"--probes {' '.join(probes.names)}"
    if source.val.labels is None:
        raise InputError(f"{wanted}: the validation images in {source.val.root} have no labels. ILSVRC has them in "
                         "LOC_val_solution.csv beside Data, see README 'Data'. Or train without: --alpha 0 --probes none.")  # fmt: skip
    if len(source.classes) < 2:
        raise InputError(f"{wanted}: the data set has {len(source.classes)} class, classification needs 2 or more. "
                         "Use other data, or train without: --alpha 0 --probes none.")  # fmt: skip


def train(run, source, folder, identity):
    """The story of a run: device, data, model, optimizer, where to go on, epochs, what is left behind."""
    # Threads that spin while they wait cost a CPU that is shared several times its speed. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    import norms
    from maekit import figures, validation

    started = time.monotonic()
    training = Training(run, source)
    identity = with_precision(identity, folder, training.device)
    state = training.resume(folder, identity)
    first_epoch, elapsed, baselines = state["first_epoch"], state["elapsed_s"], state["baselines"]
    files.write_json(folder.config, describe(run, source, identity, training))
    if baselines is None:
        baselines = training.baselines()
    record = runs.Record(folder, {**trajectory_head(run), **baselines}, **state["history"])
    record.write(runs.RUNNING)

    status = runs.FINISHED
    images = len(training.batches) * run.optim.batch_size
    with (
        SummaryWriter(folder.tensorboard, purge_step=first_epoch) as board,
        tqdm(desc=run.norm.name, unit="img", total=run.optim.epochs * images, initial=first_epoch * images,
             mininterval=0.5 if sys.stderr.isatty() else 60, dynamic_ncols=True) as bar,
    ):  # fmt: skip
        for epoch in range(first_epoch, run.optim.epochs):
            row = training.measure_epoch(epoch, bar)
            if row is None:
                status = runs.DIVERGED
                bar.write(f"epoch {epoch}: the loss is not finite, the run has diverged; its finite epochs are kept.")
                break
            record.add({**row, **baselines}, norms.norm_alphas(training.mae), runs.RUNNING)
            training.save(
                folder.checkpoint, epoch=epoch, args=identity, elapsed_s=elapsed + time.monotonic() - started,
                baselines=baselines, history=record.history(),
            )  # fmt: skip
            for name, value in record.log[-1].items():
                if name != "epoch" and value is not None:
                    board.add_scalar(name, value, epoch)
            bar.write(one_line(row, run.optim.epochs))

    quality = {}
    if status == runs.FINISHED:
        pictures, quality = validation.reconstruct(
            training.mae, training.val_batches.dataset, training.device, training.pixels, run.model.mask_ratio
        )
        files.write_arrays(folder.reconstructions, pictures)
    summary = {
        "model": run.norm.name,
        "alpha": run.probes.alpha,
        "seed": run.seed,
        "status": status,
        "total_time": elapsed + time.monotonic() - started,
        **runs.summarize_log(record.log),
        **quality,
        **baselines,
        "broken_images": len(training.broken),
    }
    record.write(status)
    if record.log:
        figures.save(figures.loss_curve(record.log, summary), folder.loss_curve)
    files.write_json(folder.summary, summary)  # last: its presence says that the run has ended
    print(f"{folder.path}: {status} after {len(record.log)} epochs.")


def with_precision(identity, folder, device):
    """The identity with the precision that `auto` came to. Raises InputError if the run so far had another."""
    stored = files.read_json(folder.config)["identity"] if folder.config.exists() else {}
    before = stored.get("precision", device.precision)
    if before != device.precision:
        raise InputError(
            f"{folder.path}: was computed in {before} so far, this would go on in {device.precision}. Add --precision "
            f"{before} to go on, or choose another --output_dir."
        )
    return {**identity, "precision": device.precision}


class Training:
    """What moves while a run trains: model, optimizer, probes, batches, and one epoch of them."""

    def __init__(self, run, source):
        import torch
        from timm.optim import param_groups_weight_decay
        from tqdm import tqdm

        from maekit import data, probes
        from maekit.device import Device

        self.run, self.source = run, source
        self.device = Device(run.device, run.precision)
        self.pixels = data.Pixels(self.device.torch)
        self.broken = data.BrokenImages(tqdm.write)
        self.loading = {
            "broken": self.broken,
            "workers": run.data.num_workers,
            "pin": self.device.torch.type == "cuda",
            "with_labels": bool(run.probes.names),
        }
        self.batches = data.train_batches(source.train, run.model, run.optim, seed=run.seed, **self.loading)
        self.val_batches = data.val_batches(source.val, run.model, batch_size=run.optim.batch_size, **self.loading)

        self.classes = len(source.classes)
        self.mae = build_model(run).to(self.device.torch)
        joint = self.classes if "joint" in run.probes.names else None
        self.model = probes.JointMAE(self.mae, run.probes.alpha, joint, run.seed)
        self.frozen = None
        if "frozen" in run.probes.names:
            self.frozen = probes.FrozenProbes(self.mae, self.classes, run.seed)
        groups = param_groups_weight_decay(self.model, run.optim.weight_decay)
        fused = self.device.torch.type != "mps"
        self.optimizer = torch.optim.AdamW(groups, lr=run.optim.lr, betas=(0.9, 0.95), fused=fused)

    def resume(self, folder, identity):
        """Load the folder's checkpoint, or the one --resume names.

        Returns a dict: first_epoch to train, elapsed_s so far, baselines (None if not measured), history of the log.
        """
        from maekit import checkpoint

        fresh = {"first_epoch": 0, "elapsed_s": 0.0, "baselines": None, "history": {}}
        named = None if self.run.resume in ("auto", "never") else self.run.resume
        path = folder.checkpoint if folder.checkpoint.exists() else named
        if path is None:
            return fresh
        state = checkpoint.read(path)
        own = path == folder.checkpoint
        if own:
            if "args" not in state:
                raise InputError(
                    f"{path}: is no checkpoint of a run. Move it away; --resume {path.name} starts from it."
                )
            runs.check_identity(state["args"], identity, f"{path}: is of")
        checkpoint.load_model(path, state, self.mae)
        checkpoint.load_probes(path, state, self.model.head, self.frozen, self.run.seed)
        first_epoch = checkpoint.load_training(path, state, self.optimizer, self.device.scaler)
        if path == named and first_epoch >= self.run.optim.epochs:
            epochs = self.run.optim.epochs
            raise InputError(f"--resume {path}: has {first_epoch} epochs already; --epochs {epochs} adds none.")
        print(f"{path}: goes on with epoch {first_epoch} of {self.run.optim.epochs}.")
        if own:
            fresh |= {"history": folder.history(first_epoch)}  # of a kit whose checkpoints did not have it
            fresh |= {name: state[name] for name in fresh if name in state}
        return {**fresh, "first_epoch": first_epoch}

    def save(self, path, **extra):
        """Write the checkpoint."""
        from maekit import checkpoint

        checkpoint.save(
            path, model=self.mae, optimizer=self.optimizer, scaler=self.device.scaler,
            probes=checkpoint.probe_states(self.model.head, self.frozen), **extra,
        )  # fmt: skip

    def baselines(self):
        """What takes no training: losses of trivial predictions, and k-NN on the encoder as it was at first."""
        from maekit import validation

        known = validation.baselines(self.val_batches, self.pixels, self.mae, self.run.model.mask_ratio)
        if "knn" in self.run.probes.names:
            known["untrained_knn_accuracy"] = self.knn_accuracy(build_model(self.run).to(self.device.torch))
        return known

    def knn_accuracy(self, mae):
        """Percent of the validation images that k-NN among the training images gets right."""
        from maekit import data, probes

        known = data.val_batches(
            self.source.train, self.run.model, batch_size=self.run.optim.batch_size, keep_workers=False, **self.loading
        )
        return probes.knn_accuracy(mae, known, self.val_batches, self.classes, self.device, self.pixels)

    def measure_epoch(self, epoch, bar):
        """Train one epoch and validate: the epoch's row of the log, or None if a loss is not finite."""
        from maekit import validation

        started = time.monotonic()
        row = self.train_one_epoch(epoch, bar)
        epoch_time = time.monotonic() - started
        if not math.isfinite(row["train_loss"]):
            return None
        row |= validation.validate(
            self.model, self.val_batches, self.device, self.pixels, self.run.model.mask_ratio, self.frozen
        )
        if not math.isfinite(row["val_mse"]):
            return None
        last = epoch + 1 == self.run.optim.epochs
        if "knn" in self.run.probes.names and (last or (epoch + 1) % self.run.probes.eval_every == 0):
            row["knn_accuracy"] = self.knn_accuracy(self.mae)
        return {
            "epoch": epoch,
            **row,
            "epoch_time_s": epoch_time,
            "images_per_s": len(self.batches) * self.run.optim.batch_size / epoch_time,
            "peak_memory_mb": self.device.peak_memory_mb(),
        }

    def train_one_epoch(self, epoch, bar):
        """One pass over the training images: mean losses, train_loss nan as soon as it is not finite, and the last lr."""
        import torch

        import norms

        run, device, optimizer = self.run, self.device, self.optimizer
        self.model.train()
        optimizer.zero_grad(set_to_none=True)
        self.batches.order.set_epoch(epoch)
        sums = 0.0  # becomes a tensor on the device; reading it waits, so only when the bar is drawn
        drawn = time.monotonic()
        for i, batch in enumerate(self.batches):
            if i % run.optim.accum_iter == 0:
                at = epoch + i / len(self.batches)  # in epochs
                lr = learning_rate(at, run.optim)
                for group in optimizer.param_groups:
                    group["lr"] = lr

            images = self.pixels.normalize(batch["images"])
            noise, labels = (batch[name].to(device.torch, non_blocking=True) for name in ("noise", "labels"))
            with device.autocast():
                out = self.model(images, run.model.mask_ratio, noise, labels)
                if self.frozen:
                    self.frozen.observe(
                        self.frozen.features(out.cls_token, images, run.model.mask_ratio, noise), labels
                    )
            device.scaler.scale(out.loss / run.optim.accum_iter).backward()
            if (i + 1) % run.optim.accum_iter == 0:
                device.scaler.unscale_(optimizer)
                norms.update_adaptive(self.mae)
                device.scaler.step(optimizer)
                device.scaler.update()
                optimizer.zero_grad(set_to_none=True)
                if self.frozen:
                    self.frozen.step(at / run.optim.epochs)

            parts = [part for part in (out.loss, out.reconstruction, out.classification) if part is not None]
            sums = sums + torch.stack([part.detach().to(device.sum_dtype) for part in parts])
            bar.update(len(noise))
            if time.monotonic() - drawn > bar.mininterval:
                drawn, mean = time.monotonic(), float(sums[0]) / (i + 1)
                if not math.isfinite(mean):
                    return {"train_loss": math.nan}
                bar.set_postfix(epoch=epoch, loss=f"{mean:.4f}", refresh=False)
        means = (sums / len(self.batches)).tolist()
        return {**dict(zip(("train_loss", "train_loss_rec", "train_loss_cls"), means)), "lr": lr}


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


def learning_rate(epoch, optim):
    """Linear warm-up, then half a cosine down to min_lr, at a fractional epoch; upstream's util/lr_sched.py."""
    if epoch < optim.warmup_epochs:
        return optim.lr * epoch / optim.warmup_epochs
    progress = (epoch - optim.warmup_epochs) / (optim.epochs - optim.warmup_epochs)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def one_line(row, epochs):
    """An epoch for the terminal."""
    scores = [f"{probe} {row[name]:.1f} %" for probe, name in runs.ACCURACIES.items() if row.get(name) is not None]
    losses = f"training loss {row['train_loss']:.4f}, validation {row['val_mse']:.4f}"
    return ", ".join([f"epoch {row['epoch'] + 1}/{epochs}: {losses}", *scores, f"{row['epoch_time_s']:.1f} s"])


def describe(run, source, identity, training):
    """What config.json keeps."""
    device, parameters = training.device, list(training.model.parameters())
    return {
        "identity": identity,
        "settings": asdict(run),
        "command": sys.argv,
        "effective_batch": run.optim.effective_batch,
        "device": str(device.torch),
        "hardware": device.describe(),
        "model_source": "builtin",
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "data": source.describe(),
        "versions": {"python": sys.version.split()[0], **runs.package_versions()},
        "git_commit": runs.git_commit(),
    }


def trajectory_head(run):
    """What trajectory.json says of the run as a whole."""
    return {
        "alpha": run.probes.alpha,
        "lr": run.optim.lr,
        "model": run.model.name,
        "decoder": run.model.decoder_type,
        "norm": run.norm.name,
        "seed": run.seed,
    }


if __name__ == "__main__":
    sys.exit(errors.exit_code(main))
