"""When a training saves its state: after epochs, after minutes, and when the system asks it to stop."""

import time

from .. import distributed
from ..errors import Stopped
from ..runs.status import PREEMPTED

MOST_SECONDS = 60.0  # of training that may be between two checkpoints at the ends of epochs
SHARE_OF_TIME = 0.02  # that saving may take, while less than MOST_SECONDS lie between: large models, short epochs
_GO_ON, _SAVE, _STOP = range(3)


class Saver:
    """Saves a Task into its RunFolder. All processes of a run call it alike; the main one writes.

    journal: runs.journal.Journal of the run. stop: signals.StopRequest.
    """

    def __init__(self, task, folder, journal, stop):
        self.task, self.folder, self.journal, self.stop = task, folder, journal, stop
        self.saving = task.run.saving
        self.saved, self.took = time.monotonic(), 0.0  # when the last checkpoint was whole, how long it took

    def after_step(self, position, epoch, share):
        """Between two optimizer steps, at a share of an epoch from 0 to 1.

        position: function that makes the place to go on from, see Trainer.position.
        """
        self.journal.status.write_sometimes(epoch, share)
        wish = _STOP if self.stop.name else _GO_ON
        if distributed.is_main() and wish == _GO_ON and time.monotonic() - self.saved > 60 * self.saving.minutes:
            wish = _SAVE
        wish = distributed.agree(wish)
        if wish != _GO_ON:
            place = position()
            self.save(place["epoch"] - 1, place)
            if wish == _STOP:
                self.give_way(place["epoch"])

    def after_epoch(self, epoch):
        """After an epoch that was measured and recorded."""
        stop = self.stop.agreed()
        due = time.monotonic() - self.saved >= min(MOST_SECONDS, self.took / SHARE_OF_TIME)
        if stop or (due and (epoch + 1) % self.saving.epochs == 0) or epoch + 1 == self.task.epochs:
            self.save(epoch)
        if stop:
            self.give_way(epoch + 1)

    def save(self, epoch, position=None):
        """Write the checkpoint; epoch: the last finished one."""
        started = time.monotonic()
        if distributed.is_main():
            self.task.save(self.folder, epoch=epoch, position=position, **self.journal.state())
        self.saved = time.monotonic()
        self.took = self.saved - started

    def give_way(self, epoch):
        """End the run, whose state is saved. Raises Stopped."""
        self.journal.status.write(PREEMPTED, epoch)
        raise Stopped(self.stop.name or "another process of the run")
