#!/usr/bin/env python3
"""Train one masked autoencoder with one normalisation layer, or evaluate one, and leave everything about it in a folder.

The loss is reconstruction + alpha x classification; at alpha 0, the default, that is MAE.

    python train.py --demo --norm DynamicTanh
    python train.py --demo --alpha 0.5 --probes all
    python train.py --imagenet_dir /data/ILSVRC --norm LayerNorm --output_dir runs/LayerNorm
    python train.py --imagenet_dir /data/ILSVRC --task finetune --init runs/LayerNorm --output_dir runs/LayerNorm/finetune
    python train.py --help

The same command again goes on where it stopped. Loops over norms and seeds are run_comparison.sh's, those over
alphas and learning rates run_alpha_sweep.sh's.
"""

import os
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from maekit import distributed, errors, files
from maekit.data.workers import tell_of_no_dead_worker
from maekit.errors import InputError
from maekit.model import upstream
from maekit.runs import loggers, measures, versions
from maekit.runs.folder import RunFolder
from maekit.runs.record import Record, summarize_log
from maekit.runs.status import DIVERGED, FINISHED, RUNNING
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.settings.tasks import FINETUNE, KNN, LINPROBE, PRETRAIN
from maekit.training import failures

# How long OpenMP's threads spin before they sleep. Waking takes longer than many an operation of a small model, so with 1,000
# its epochs take a sixth longer; but threads that spin on a CPU with other work to do stand in its way: two runs of as many
# threads as cores side by side are 1.5 times as slow as with 1,000, and 2.6 times with 30,000. libgomp's own is 300,000.
SPIN_COUNT = "10000"


def main(argv=None):
    """Check everything that can be checked at once, then train. Returns the exit code."""
    run = resolve(build_parser("train.py", __doc__).parse_args(argv))
    from maekit.data import sources  # numpy and PIL, which --help does not need

    folder = RunFolder(run.output_dir, run.checkpoint_dir)
    clone = upstream.find(run.mae_dir) if run.task == PRETRAIN else None
    source = sources.open_source(run.data, run.seed)
    loggers.check_wandb(run.wandb_project)
    check_batches(run, source)
    check_labels(run, source)
    check_processes(source)
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
    if run.init and Path(run.init).resolve() == folder.checkpoint.resolve():
        raise InputError(f"--init {run.init}: is the run in --output_dir itself. Choose another --output_dir.")
    if run.resume == "never" and not run.overwrite and folder.checkpoint.exists():
        raise InputError(f"--resume never: {folder.path} holds a run. Choose another --output_dir, or --overwrite.")
    identity = {
        **run.identity(),
        "init": None if run.init is None else f"sha256:{files.sha256(run.init)[:16]}",
        "mae_dir": None if clone is None else f"upstream at {clone.commit[:12]}",
        "data": source.fingerprint,
    }
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch is imported
    if run.device not in ("auto", "cpu") or distributed.size() > 1:
        from maekit.training.device import choose

        choose(run.device)
    distributed.start()
    # started again by a cluster or by torchrun, it goes on
    restarts = (os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    fresh = run.overwrite and run.resume == "never" and not any(map(int, restarts))
    summary = distributed.on_main(lambda: folder.claim(identity, overwrite=run.overwrite, fresh=fresh))
    if summary is not None:
        again = " --resume never --overwrite repeats it." if run.overwrite else ""
        distributed.say(f"{folder.path}: {summary['status']} already, nothing to do.{again}")
        distributed.stop()
        return 0
    errors.each_for_itself()
    try:
        train(run, source, folder, identity, clone)
    except BaseException as error:
        tell_of_no_dead_worker()
        failures.note(folder, error)
        raise failures.explained(error, run) from error
    finally:
        folder.release()
    distributed.stop()
    return 0


def check_batches(run, source):
    """Raise InputError unless the training images fill one optimizer step."""
    n, optim = len(source.train), run.optim
    if run.task == KNN or optim.epochs == 0:
        return
    if optim.batch_size > n:
        raise InputError(f"--batch_size {optim.batch_size}: the data set has {n} training images. Use at most {n}.")
    if optim.effective_batch > n:
        raise InputError(f"--accum_iter {optim.accum_iter}: {optim.effective_batch} images a step, the data set has "
                         f"{n}. Use at most {n // optim.batch_size}.")  # fmt: skip


def check_processes(source):
    """Raise InputError if there are more processes than validation images."""
    if distributed.size() > len(source.val):
        raise InputError(
            f"{distributed.size()} processes: the data set has {len(source.val)} validation images. Use fewer."
        )


def check_labels(run, source):
    """Raise InputError unless the data set has the labels that alpha, the probes and the task need."""
    probes, evaluates = run.probes, run.task != PRETRAIN
    if not probes.names and not evaluates:
        return
    wanted = (
        f"--task {run.task}" if evaluates
        else f"--alpha {probes.alpha:g}" if probes.alpha
        else f"--probes {' '.join(probes.names)}"
    )  # fmt: skip
    without = "" if evaluates else " Or train without: --alpha 0 --probes none."
    if source.val.labels is None:
        raise InputError(f"{wanted}: the validation images in {source.val.root} have no labels. ILSVRC has them in "
                         f"LOC_val_solution.csv beside Data, see docs/data.md.{without}")  # fmt: skip
    if len(source.classes) < 2:
        raise InputError(f"{wanted}: the data set has {len(source.classes)} class, classification needs 2 or more. "
                         f"Use other data.{without}")  # fmt: skip


def train(run, source, folder, identity, clone=None):
    """The story of a run: device, data, model, optimizer, where to go on, epochs, what is left behind."""
    from maekit.analysis import figures
    from maekit.data import cache
    from maekit.runs.status import Status
    from maekit.training.signals import StopRequest

    stored = cache.cached(source, run.data.cache, run.model.input_size, say_aside)
    source = source if distributed.agree(int(stored is source)) else stored  # all processes read the same pixels
    job = open_job(run, source, clone)
    fuse_norms(job.device)
    found = {"pixels": cache.pixels(source), "precision": job.device.precision}
    identity = distributed.on_main(lambda: folder.settle(identity, found))
    state = job.resume(folder, identity)
    job.prepare()
    own = folder if distributed.is_main() else None  # of several processes one writes
    config = describe(run, source, identity, job, clone)
    if own:
        files.write_json(folder.config, config)
    if state["baselines"] is None:
        state["baselines"] = job.baselines()
    baselines = state["baselines"]
    head = {**trajectory_head(run), **baselines} if job.keeps_trajectory else None
    record = Record(own, job.columns, head, **state["history"])
    record.write(RUNNING)
    progress = Status(own, job.epochs)

    with loggers.Loggers(run, own, config, state["first_epoch"]) as log:
        with StopRequest() as stop:  # which has to listen by the time that others are told that the run is on
            progress.write(RUNNING, state["first_epoch"])
            status, keeper = fit(run, job, folder, identity, state, record, progress, log, stop)
        measured = job.ending(folder) if status == FINISHED else {}
        broken = job.count_broken()
        if own is None:
            return
        summary = {
            "model": run.norm.name,
            "task": run.task,
            "alpha": run.probes.alpha,
            "seed": run.seed,
            "status": status,
            "total_time": keeper.elapsed_s(),
            **summarize_log(record.log),
            **measured,
            **baselines,
            "broken_images": broken,
        }
        record.write(status)
        if record.log:
            figures.save(figures.run_curve(record.log, summary), folder.loss_curve)
        log.finish(summary, folder.loss_curve if record.log else None)
    files.write_json(folder.summary, summary)  # last but one: its presence says that the run has ended
    progress.write(status, len(record.log))
    ending = f" after {len(record.log)} epochs" if record.log or status == DIVERGED else f", {one_line(measured)}"
    print(f"{folder.path}: {status}{ending}.")


def fit(run, job, folder, identity, state, record, progress, log, stop):
    """The epochs of a run, from where `state` says: each is measured, recorded, logged and kept. stop: StopRequest.

    Returns (status, Keeper): FINISHED, or DIVERGED as soon as a loss is not finite.
    """
    from tqdm import tqdm

    import norms
    from maekit.training.saving import Keeper

    first_epoch, position, baselines = state["first_epoch"], state["position"], state["baselines"]
    images = len(job.batches) * run.optim.batch_size * distributed.size() if job.epochs else 0
    done = first_epoch * images + (position["batch"] * images // len(job.batches) if position else 0)
    with (
        open(os.devnull, "w") as nowhere,
        tqdm(desc=run.norm.name, unit="img", total=job.epochs * images, initial=done, dynamic_ncols=True,
             mininterval=0.5 if sys.stderr.isatty() else 60, file=sys.stderr if distributed.is_main() else nowhere) as bar,
    ):  # fmt: skip
        keeper = Keeper(
            job, folder, record, progress, stop, run.saving, state["elapsed_s"], args=identity, baselines=baselines
        )
        for epoch in range(first_epoch, job.epochs):
            row = job.measure_epoch(epoch, bar, keeper.after_step, position)
            position = None
            if row is None:
                distributed.say(
                    f"epoch {epoch}: the loss is not finite, the run has diverged; its finite epochs are kept."
                )
                return DIVERGED, keeper
            alphas = norms.norm_alphas(job.network)
            record.add({**row, **baselines}, alphas, RUNNING)
            if distributed.is_main():
                log.add(record.log[-1], alphas, job.pictures(epoch))
                bar.write(one_line(row, job.epochs))
            progress.write(RUNNING, epoch + 1, 0.0, row["images_per_s"])
            keeper.after_epoch(epoch)
    return FINISHED, keeper


def open_job(run, source, clone=None):
    """The Job of a run's task: what is trained, on the encoder of its norm. clone: upstream.Clone or None."""
    import norms

    if clone is not None:
        clone = distributed.on_main(lambda: clone.ensure_patched(distributed.say))
    build = partial(build_model, run, clone)
    if run.task == PRETRAIN:
        from maekit.training.pretraining import Pretraining

        return Pretraining(run, source, build, norms.update_adaptive)
    from maekit.training.finetuning import Finetuning
    from maekit.training.linear_probing import LinearProbing
    from maekit.training.nearest_neighbours import Knn  # timm's augmentations, which pre-training does not wait for

    kinds = {FINETUNE: Finetuning, LINPROBE: LinearProbing, KNN: Knn}
    return kinds[run.task](run, source, build(), norms.update_adaptive)


def fuse_norms(device):
    """Norm layers in one pass each way on CUDA as on a CPU; with torch's own kernels where Triton does not work."""
    if device.torch.type != "cuda":
        return
    import norms

    try:
        from maekit.model import kernels

        kernels.try_out(device.torch)
    except Exception as error:  # noqa: BLE001 - no Triton, no C compiler for it, a GPU that it does not know: its errors have no class
        distributed.say(f"norm layers: torch's own kernels, as Triton does not work here ({error}).")
    else:
        norms.FUSED["cuda"] = kernels.FUSED


def say_aside(text):
    """A line about what is no result, in the main process."""
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)


def build_model(run, clone=None):
    """The model with its norm. Every norm starts from the same weights: built with LayerNorm under the seed first.

    clone: upstream.Clone whose model it is, None for the kit's own.
    """
    import torch

    import norms
    from maekit.model.mae import build_mae

    torch.manual_seed(run.seed)
    model = build_mae(
        run.model.name,
        img_size=run.model.input_size,
        decoder_type=run.model.decoder_type,
        norm_pix_loss=run.model.norm_pix_loss,
        upstream=clone.module() if clone else None,
    )
    return norms.convert_norms(model, run.norm.name, **run.norm.options)


def one_line(row, epochs=None):
    """An epoch, or scores alone, for the terminal."""
    scores = [f"{probe} {row[name]:.1f} %" for probe, name in measures.SCORES.items() if row.get(name) is not None]
    if epochs is None:
        return ", ".join(scores)
    losses = f"training loss {row['train_loss']:.4f}, validation {row.get('val_mse', row.get('val_loss')):.4f}"
    return ", ".join([f"epoch {row['epoch'] + 1}/{epochs}: {losses}", *scores, f"{row['epoch_time_s']:.1f} s"])


def describe(run, source, identity, job, clone):
    """What config.json keeps."""
    parameters = dict.fromkeys([*job.network.parameters(), *job.model.parameters()])
    resolved = asdict(run)
    resolved["data"]["num_workers"] = job.loading["workers"]
    return {
        "identity": identity,
        "settings": resolved,
        "command": sys.argv,
        "effective_batch": run.optim.effective_batch,
        "device": str(job.device.torch),
        "hardware": job.device.describe(),
        "runs_at_a_time": int(os.environ.get("MAEKIT_RUNS_AT_A_TIME", "1")),  # of the driver, on this machine
        "model_source": clone.describe() if clone else {"source": "builtin"},
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "data": source.describe(),
        "versions": {"python": sys.version.split()[0], **versions.package_versions()},
        "git_commit": versions.git_commit(),
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
