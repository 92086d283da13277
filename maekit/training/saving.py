"""When a training saves its state: after epochs, after minutes, and when the system asks it to stop."""

import time
from concurrent.futures import ThreadPoolExecutor

from .. import distributed
from ..errors import Stopped
from ..runs.status import PREEMPTED
from . import checkpoint

MOST_SECONDS = 60.0  # of training that may be between two checkpoints at the ends of epochs
SHARE_OF_TIME = 0.02  # that saving may take, while less than MOST_SECONDS lie between: large models, short epochs
_GO_ON, _SAVE, _STOP = range(3)


class Saver:
    """Saves a Task into its RunFolder. All processes of a run call it alike; the main one writes.

    A copy of the state is written by a thread while the training goes on. A context: when it is left, whatever has ended the
    training, what was being written is whole. journal: runs.journal.Journal of the run. stop: signals.StopRequest.
    """

    def __init__(self, task, folder, journal, stop):
        self.task, self.folder, self.journal, self.stop = task, folder, journal, stop
        self.saving = task.run.saving
        # when the last state was taken, and how long it took until it was whole
        self.saved, self.took = time.monotonic(), 0.0
        self.thread, self.writing = ThreadPoolExecutor(1, "checkpoint"), None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.thread.shutdown()
        if kind is None:  # else what has ended the training is what is told
            self.finish()

    def after_step(self, position, epoch, share):
        """Between two optimizer steps, at a share of an epoch from 0 to 1.

        position: function that makes the place to go on from, see Trainer.position.
        """
        self.journal.status.write_sometimes(epoch, share)
        self._look()
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
        stop, last = self.stop.agreed(), epoch + 1 == self.task.epochs
        self._look()
        due = time.monotonic() - self.saved >= min(MOST_SECONDS, self.took / SHARE_OF_TIME) and self.writing is None
        if stop or last or (due and (epoch + 1) % self.saving.epochs == 0):
            self.save(epoch)
        if last:
            self.finish()
        if stop:
            self.give_way(epoch + 1)

    def save(self, epoch, position=None):
        """Have the state of now written, after the one before; epoch: the last finished one."""
        self.finish()
        self.saved = time.monotonic()
        if distributed.is_main():
            state = self.task.state(epoch=epoch, position=position, **self.journal.state())
            self.writing = self.thread.submit(self._write, checkpoint.copied(state), self.saved)

    def _write(self, state, since):
        checkpoint.write(self.folder, state)
        self.took = time.monotonic() - since

    def finish(self):
        """Wait until what is being written is whole. Raises what the writing has met, a full disk say."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _look(self):
        """Notice it if the writing has ended, and how."""
        if self.writing is not None and self.writing.done():
            self.finish()

    def give_way(self, epoch):
        """End the run, whose state is saved. Raises Stopped."""
        self.finish()
        self.journal.status.write(PREEMPTED, epoch)
        raise Stopped(self.stop.name or "another process of the run")
