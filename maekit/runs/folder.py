"""The run folder: what is in it, who may use it, and how it is read. No torch.

config.json            settings, data, versions, hardware
log.csv                a row per epoch
norm_alpha.csv         a row per epoch and norm layer: alpha, gradient, flat activations
trajectory.json        (mse, accuracies) per epoch, in the format of the original gap scripts
summary.json           the run in one line, once it has ended
checkpoint.pth         weights, optimizer, probes, epoch (in --checkpoint_dir, if there is one), and the one before
status.json            where the run is, for drivers: written every few seconds
output.txt             what it printed, if it ran beside others
wandb_id.txt           what Weights & Biases calls the run, if it is logged there
exports.json           where `python -m maekit.export` has put its weights
run.lock               held by the process that trains
reconstructions.npz    pictures
accuracy_by_layer.csv  of k-NN of every block, its accuracies
accuracy_by_class.csv  the last epoch's accuracies of each class of the validation images
features.npz           features of the validation images by each read-out, float16, and their labels
loss_curve.png .pdf, tensorboard/
"""

import shutil
from pathlib import Path

from ..distributed import say
from ..errors import Busy, InputError
from ..files import Damaged, draft_of, read_csv, read_json, remove_drafts
from ..locks import Lock
from ..settings import identities, start
from . import contents


class RunFolder:
    """One run's folder. Creating the object touches nothing; `claim` decides whether the run may use it.

    checkpoint_dir: where the checkpoint lies, the folder itself if None.
    """

    def __init__(self, path, checkpoint_dir=None):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.log = self.path / "log.csv"
        self.norm_alpha = self.path / "norm_alpha.csv"
        self.trajectory = self.path / "trajectory.json"
        self.summary = self.path / "summary.json"
        self.checkpoint = Path(checkpoint_dir or path) / "checkpoint.pth"
        self.previous_checkpoint = self.checkpoint.with_name("checkpoint.previous.pth")
        self.damaged_checkpoint = self.checkpoint.with_name("checkpoint.damaged.pth")
        self.status = self.path / "status.json"
        self.lock = self.path / "run.lock"
        self.output = self.path / "output.txt"
        self._held = Lock(self.lock)
        self.reconstructions = self.path / "reconstructions.npz"
        self.by_layer = self.path / "accuracy_by_layer.csv"
        self.by_class = self.path / "accuracy_by_class.csv"
        self.features = self.path / "features.npz"
        self.loss_curve = self.path / "loss_curve.png"
        self.tensorboard = self.path / "tensorboard"
        self.wandb_id = self.path / "wandb_id.txt"
        self.exports = self.path / "exports.json"

    def claim(self, identity, *, overwrite=False, fresh=False):
        """Make the folder this run's own and return the summary of the run if it has ended already, else None.

        identity: everything that decides the run's numbers, as a flat dict. Raises InputError if the folder cannot
        be written, or holds a run of another identity; `overwrite` deletes that run, with `fresh` one of the same
        identity as well, and only files of ours. Raises Busy if another process is training there; until `release` no
        other can.
        """
        _make_writable(self.status, "--output_dir")
        if self.checkpoint.parent != self.path:
            _make_writable(self.checkpoint, "--checkpoint_dir")
        summary = None if overwrite else self._ended(identity)
        if summary is not None:
            return summary
        if not self._held.acquire():
            raise Busy(f"{self.path}: {self._held.holder()} is training it.")
        goes_on = False
        try:
            remove_drafts(self._written())
            if overwrite and (self._is_other(identity) or fresh):
                self.clear()
            elif self.identity() is None:
                if not overwrite:
                    self._look_for_checkpoint()
                self.wandb_id.unlink(missing_ok=True)  # of another run, perhaps, that never came to a checkpoint
            summary = self._ended(identity)  # by now, perhaps
            goes_on = summary is None
        finally:
            if not goes_on:
                self.release()
        return summary

    def _look_for_checkpoint(self):
        """Say of a run here that has no checkpoint what of it is trained again; raise InputError if it was kept elsewhere."""
        epochs = len(read_csv(self.log)) if self.config.exists() and self.log.exists() else 0
        if not epochs:
            return
        places = start.checkpoints_of(self.path, read_json(self.config))
        elsewhere = [place for place in places if place.parent != self.path] or places
        if found := next((place for place in places if place.exists()), None):
            what = f"its checkpoint is in {found.parent}. Add --checkpoint_dir {found.parent} to go on"
        elif self.checkpoint.resolve() not in [place.resolve() for place in elsewhere]:
            what = f"its checkpoint was kept in {elsewhere[-1].parent}, which has none. Copy it to {self.checkpoint} to go on"
        else:
            lost = "its 1 epoch is" if epochs == 1 else f"its {epochs} epochs are"
            say(f"{self.path}: no checkpoint in {self.checkpoint.parent}, so {lost} trained again.")
            return
        raise InputError(f"--output_dir {self.path}: {what}, or --overwrite to train it anew.")

    def settle(self, identity, found):
        """The identity of the claimed run with what the machine decided, `found`: its precision, and what its pixels
        are.

        Raises InputError if what the run has done so far was done otherwise.
        """
        if wrong := identities.unsettled(self.identity(), found):
            raise InputError(f"{self.path}: {wrong}")
        return {**identity, **found}

    def release(self):
        """Let other processes have the folder."""
        self._held.release()

    def identity(self):
        """What decided the numbers of the run that is here, None if there is none. Raises InputError.

        A run that left no state behind, one that was out of memory say, binds nobody.
        """
        if not self.config.exists():
            return None
        config = read_json(self.config)
        stored = config.get("identity") if isinstance(config, dict) else None
        if not isinstance(stored, dict):
            raise InputError(f"{self.config}: is not of a run. Move it away, or choose another --output_dir.")
        contents.check_identity(self.config, stored)
        return stored if any(f.exists() for f in (self.checkpoint, self.previous_checkpoint, self.summary)) else None

    def _is_other(self, identity):
        """Whether what is here is damaged, or of another run than this one; of a checkpoint alone see read_newest."""
        try:
            stored = self.identity()
            contents.read_summary(self.summary)
        except Damaged:
            return True
        return stored is not None and identities.difference(stored, identity) is not None

    def _ended(self, identity):
        stored = self.identity()
        if stored is None:
            return None
        identities.check(stored, identity, f"--output_dir {self.path}: holds")
        return contents.read_summary(self.summary)

    def history(self, first_epoch):
        """Rows of log.csv and norm_alpha.csv of the epochs before one, as Record takes them."""
        parts = {"log": read_csv(self.log), "alphas": read_csv(self.norm_alpha)}
        return {name: [row for row in rows if row["epoch"] < first_epoch] for name, rows in parts.items()}

    def exported(self):
        """What exports.json has, [{to, folder, file, weights, ema, date, pushed}]; [] without one, or with a damaged one."""
        try:
            known = read_json(self.exports)
        except (OSError, Damaged):
            return []
        known = known if isinstance(known, list) else []
        return [e for e in known if isinstance(e, dict) and all(isinstance(e.get(n), str) for n in ("folder", "file"))]

    def clear(self):
        """Delete the files of a run, and nothing else that may be in the folder."""
        for file in self._written():
            file.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)

    def _written(self):
        """The files that a training process writes."""
        return (
            self.summary,
            self.status,
            self.config,
            self.checkpoint,
            self.previous_checkpoint,
            self.damaged_checkpoint,
            self.log,
            self.norm_alpha,
            self.trajectory,
            self.wandb_id,
            self.exports,
            self.reconstructions,
            self.by_layer,
            self.by_class,
            self.features,
            self.loss_curve,
            self.loss_curve.with_suffix(".pdf"),
        )


def _make_writable(path, flag):
    """Create the folder of a file if need be and write in it. Raises InputError naming the flag."""
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag} {folder}: is a file. Choose another {flag}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(draft_of(path), "wb"):  # what remove_drafts knows
            pass
        draft_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {folder}: cannot be written ({error.strerror}). Choose another {flag}.") from error
