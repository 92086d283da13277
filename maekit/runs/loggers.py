"""Where epochs are logged beside the run folder's own files: TensorBoard, and Weights & Biases if asked for.

Both take the same: add(row of log.csv, norm alphas, pictures or None) after an epoch, finish(summary, figure) at the
end. pictures: uint8 (n, H, W, 3); norm alphas: a list of numbers.
"""

import os
import uuid

from .. import files
from ..errors import InputError

# settings that tell the runs of a sweep apart, for TensorBoard's table of hyperparameters
SORTED_BY = (
    "task",
    "norm",
    "seed",
    "alpha",
    "lr",
    "epochs",
    "batch_size",
    "model",
    "decoder_type",
    "mask_ratio",
    "norm_pix_loss",
    "clip_grad",
    "ema",
    "dyt_alpha_init",
    "dyt_alpha_attn",
    "dyt_shift_init",
    "adyt_lambda",
    "adyt_smooth",
    "adyt_alpha_max",
)


class Loggers:
    """All loggers of a run as one, a context manager. Of several processes one logs: folder None is no logger."""

    def __init__(self, run, folder, config, first_epoch):
        self.loggers = []
        if folder is not None:
            self.loggers.append(TensorBoard(folder.tensorboard, config["identity"], first_epoch))
            if run.wandb_project is not None:
                self.loggers.append(WeightsAndBiases(run.wandb_project, folder, config))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for logger in self.loggers:
            logger.close()

    def add(self, row, alphas, pictures=None):
        for logger in self.loggers:
            logger.add(row, alphas, pictures)

    def finish(self, summary, figure):
        for logger in self.loggers:
            logger.finish(summary, figure)


class TensorBoard:
    """Everything in a TensorBoard folder; what cannot be written is said once, and training goes on without.

    identity: the run's settings, for the table of hyperparameters. first_epoch: what a run before wrote from there on
    is dropped.
    """

    def __init__(self, folder, identity, first_epoch):
        self.folder, self.identity, self.writer = folder, identity, None
        self._try(self._open, first_epoch)

    def _open(self, first_epoch):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.folder, purge_step=first_epoch)

    def add(self, row, alphas, pictures):
        if self.writer is not None:
            self._try(self._add, row, alphas, pictures)

    def _add(self, row, alphas, pictures):
        epoch = row["epoch"]
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(name, value, epoch)
        if alphas:
            import torch

            self.writer.add_histogram("norm_alpha", torch.tensor(alphas), epoch)
        if pictures is not None:
            self.writer.add_images("reconstructions", pictures, epoch, dataformats="NHWC")
        self.writer.flush()

    def finish(self, summary, figure):
        if self.writer is not None:
            self._try(self._finish, summary)

    def _finish(self, summary):
        from torch.utils.tensorboard.summary import hparams

        settings = {name: self.identity[name] for name in SORTED_BY if self.identity.get(name) is not None}
        results = _numbers(summary)
        for part in hparams(settings, {f"final/{name}": value for name, value in results.items()}):
            self.writer.file_writer.add_summary(part)
        for name, value in results.items():
            self.writer.add_scalar(f"final/{name}", value)

    def close(self):
        if self.writer is not None:
            self._try(self.writer.close)

    def _try(self, function, *args):
        try:
            function(*args)
        except OSError as error:
            self.writer = None
            _note(f"{self.folder}: {error.strerror or error}; training goes on without TensorBoard.")


class WeightsAndBiases:
    """The run as one of a project of Weights & Biases; started again, it goes on in the same one.

    With WANDB_MODE=offline it lies in the run's folder, for `wandb sync`. Where its service fails, it says so and
    training goes on.
    """

    def __init__(self, project, folder, config):
        import wandb

        name = os.path.join(*folder.path.resolve().parts[-2:])
        self.wandb, self.run = wandb, None
        self.run = self._try(
            lambda: wandb.init(
                project=project,
                name=name,
                id=self._own_id(folder.wandb_id),
                resume="allow",
                dir=str(folder.path),
                config=config,
                settings=wandb.Settings(silent=True),
            )
        )

    @staticmethod
    def _own_id(file):
        """What the run is called there: made up when it starts, and in its folder for when it goes on."""
        if not file.exists():
            with files.atomic_write(file) as f:
                f.write(uuid.uuid4().hex[:16].encode())
        return file.read_text(encoding="utf-8").strip()

    def add(self, row, alphas, pictures):
        logged = {name: value for name, value in row.items() if value is not None}
        if alphas:
            logged["norm_alpha"] = self.wandb.Histogram(alphas)
        if pictures is not None:
            logged["reconstructions"] = [self.wandb.Image(picture) for picture in pictures]
        if self.run:
            self._try(lambda: self.run.log(logged, step=row["epoch"]))

    def finish(self, summary, figure):
        if self.run:
            self._try(lambda: self.run.summary.update({name: v for name, v in summary.items() if v is not None}))
        if self.run and figure is not None:
            self._try(lambda: self.run.log({"loss_curve": self.wandb.Image(str(figure))}))

    def close(self):
        if self.run:
            self._try(self.run.finish)

    def _try(self, function):
        try:
            return function()
        except (OSError, self.wandb.Error) as error:
            self.run = None
            _note(f"Weights & Biases: {error}; training goes on without.")
            return None


def check_wandb(project):
    """Raise InputError, before anything is trained, if Weights & Biases is asked for and cannot be used."""
    if project is None:
        return
    try:
        import wandb
    except ImportError:
        raise InputError("--wandb: wandb is not installed. pip install wandb, or leave it out.") from None
    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    try:
        there = wandb.login()  # in a terminal it asks
    except wandb.Error:
        there = False
    if not there:
        raise InputError("--wandb: not logged in. Run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline.")


def log_analysis(project, folder):
    """One run of a project with an analysis's figures, and its tables, statistics and report as an artifact.

    folder: pathlib.Path where the analysis has written. A service that fails is told, and nothing is lost.
    """
    import wandb

    files = [file for kind in ("*.csv", "*.json", "*.html", "*.png") for file in sorted(folder.glob(kind))]
    figures = [file for file in files if file.suffix == ".png" and not file.stem.endswith("_column")]
    try:
        with wandb.init(
            project=project,
            name=f"analysis of {folder}",
            job_type="analysis",
            dir=str(folder),
            settings=wandb.Settings(silent=True),
        ) as run:
            run.log({figure.stem: wandb.Image(str(figure)) for figure in figures})
            artifact = wandb.Artifact("analysis", type="analysis")
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)
    except (OSError, wandb.Error) as error:
        print(f"note: Weights & Biases: {error}; the analysis is in {folder}.")


def _numbers(summary):
    return {name: float(v) for name, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _note(text):
    """A line that does not break a progress bar."""
    from tqdm import tqdm  # here: --help is there before the packages are

    tqdm.write(f"note: {text}")
