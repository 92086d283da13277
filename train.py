#!/usr/bin/env python3
"""Train one masked autoencoder with one normalisation layer, or evaluate one, and leave everything about it in a folder.

The loss is reconstruction + alpha x classification; at alpha 0, the default, that is MAE. In one process, on all GPUs of a
node, and on two nodes of 8 GPUs (on each, with its --node_rank):

    python train.py --imagenet_dir /data/ILSVRC --norm DynamicTanh --output_dir runs/DynamicTanh
    torchrun --standalone --nproc_per_node 8 train.py --imagenet_dir /data/ILSVRC --norm DynamicTanh
    torchrun --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr HOST train.py --imagenet_dir /data/ILSVRC

The same command again goes on where it stopped. More to type, for a start on ten photographs:

    python train.py --demo --alpha 0.5 --probes all
    python train.py --demo --task finetune --init runs/DynamicTanh --output_dir runs/DynamicTanh/finetune
    python train.py --help

Loops over norms and seeds are run_comparison.sh's, those over alphas and learning rates run_alpha_sweep.sh's.
"""

import sys
from functools import partial

from maekit import distributed, errors, files, machine, surroundings
from maekit.model import upstream
from maekit.runs import loggers
from maekit.runs.folder import RunFolder
from maekit.runs.journal import Journal, one_line
from maekit.runs.status import DIVERGED, FINISHED, RUNNING
from maekit.settings.parser import build_parser
from maekit.settings.resolution import counted, resolve
from maekit.settings.tasks import PRETRAIN
from maekit.training import checks, failures


def main(argv=None):
    """Check everything that can be checked at once, then train. Returns the exit code."""
    typed = build_parser("train.py", __doc__).parse_args(argv)
    surroundings.settle()
    run = resolve(typed)
    from maekit.data import sources  # numpy and PIL, which --help does not need

    folder = RunFolder(run.output_dir, run.checkpoint_dir)
    clone = upstream.find(run.mae_dir) if run.task == PRETRAIN else None
    source = sources.open_source(run.data, run.seed)
    loggers.check_wandb(run.wandb_project)
    checks.check_images(run, source)
    run = counted(run, len(source.train))
    if run.dry_run:
        print(checks.size(run, source))
        return 0
    agreed = checks.agree_with_folder(run, folder)
    if agreed.data != run.data:  # as they were when the run here began
        source = sources.open_source(agreed.data, run.seed)
    run = agreed
    identity = checks.identity(run, source, clone)
    machine.let_threads_sleep()
    machine.keep_freed_memory()
    if run.device not in ("auto", "cpu") or distributed.size() > 1 or machine.may_have_gpu():
        from maekit.training.device import choose

        choose(run.device)
    distributed.start()
    fresh = run.overwrite and run.resume == "never" and not distributed.restarted()
    summary = distributed.on_main(lambda: folder.claim(identity, overwrite=run.overwrite, fresh=fresh))
    if summary is not None:
        again = " --resume never --overwrite repeats it." if run.overwrite else ""
        distributed.say(f"{folder.path}: {summary['status']} already, nothing to do.{again}")
        distributed.stop()
        return 0
    errors.each_for_itself()
    distributed.say(checks.size(run, source))
    try:
        train(run, source, folder, identity, clone)
    except BaseException as error:
        failures.note(folder, error)
        raise failures.explained(error, run) from error
    finally:
        folder.release()
    distributed.stop()
    return 0


def train(run, source, folder, identity, clone=None):
    """The story of a run: data, model, norms, where to go on, epochs, what is left behind."""
    from maekit.analysis import figures
    from maekit.data import cache
    from maekit.runs.config import describe
    from maekit.training.saving import Saver
    from maekit.training.signals import StopRequest
    from maekit.training.trainer import Trainer, progress_bar

    stored = cache.cached(source, run.data.cache, run.model.input_size, partial(distributed.say, file=sys.stderr))
    source = source if distributed.agree(int(stored is source)) else stored  # all processes read the same pixels
    task = open_task(run, source, clone)
    found = {"pixels": cache.pixels(source), "precision": task.device.precision}
    identity = distributed.on_main(lambda: folder.settle(identity, found))
    start = task.resume(folder, identity)
    task.prepare()
    own = folder if distributed.is_main() else None  # of several processes one writes
    config = describe(task, identity, clone)
    if own:
        files.write_json(folder.config, config)
    start.baselines = task.baselines() if start.baselines is None else start.baselines
    journal = Journal(task, own, start, identity)

    with loggers.Loggers(run, own, config, start.first_epoch) as journal.log:
        with (
            StopRequest() as stop,
            progress_bar(task, start) as journal.bar,
            Saver(task, folder, journal, stop) as saver,
        ):
            journal.status.write(RUNNING, start.first_epoch)  # to those who may ask it to stop, which it hears by now
            status = Trainer(task, journal, saver, journal.bar).train(start)
        measured = task.ending(folder) if status == FINISHED else {}
        broken = task.broken_images()
        if own is None:
            return
        summary = journal.finish(status, {**measured, "broken_images": broken})
        log = journal.record.log
        if log:
            figures.save(figures.run_curve(log, summary), folder.loss_curve)
        journal.log.finish(summary, folder.loss_curve if log else None)
    files.write_json(folder.summary, summary)  # last but one: its presence says that the run has ended
    journal.status.write(status, len(log))
    ending = f" after {len(log)} epochs" if log or status == DIVERGED else f", {one_line(measured)}"
    print(f"{folder.path}: {status}{ending}.")


def open_task(run, source, clone=None):
    """The Task that a run trains, its norm layers in place. clone: upstream.Clone whose model it is, None for the kit's own."""
    import norms
    from maekit.model import compiling
    from maekit.training import task

    if clone is not None:
        clone = distributed.on_main(lambda: clone.ensure_patched(distributed.say))
    opened = task.open_task(run, source, partial(build_model, run, clone), norms)
    compiling.fuse_norms(norms, opened.device.torch)
    return opened


def build_model(run, clone=None):
    """The model with its norm. Every norm starts from the same weights: built with LayerNorm under the seed first."""
    import torch

    import norms
    from maekit.model import build_mae
    from maekit.model.mae import norms_before_linear

    torch.manual_seed(run.seed)
    model = build_mae(
        run.model.name,
        img_size=run.model.input_size,
        decoder_type=run.model.decoder_type,
        norm_pix_loss=run.model.norm_pix_loss,
        pos_embed=run.model.pos_embed,
        upstream=clone.module() if clone else None,
    )
    model = norms.convert_norms(model, run.norm.name, **run.norm.arguments)
    for norm in norms_before_linear(model):
        norm.before_linear = True
    return model


if __name__ == "__main__":
    sys.exit(errors.exit_code(main))
