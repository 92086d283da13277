"""Ending a run in good order when the system asks for it, as a cluster does before it takes a node away."""

import os
import signal
import time

from .. import distributed

SAME_SECONDS = 5.0  # in which signals are one request: a cluster tells every process of a job, and a launcher its own


class StopRequest:
    """Whether SIGTERM or SIGUSR1 has come; as a context, while it listens.

    A second request, SAME_SECONDS after the first or later, ends the process at once.
    """

    def __init__(self):
        self.name, self.since = None, 0.0

    def __enter__(self):
        wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
        self.before = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if self.name is None:
            self.name, self.since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self.since > SAME_SECONDS:
            os._exit(128 + signal.SIGTERM)

    def agreed(self):
        """The same in all processes: whether any of them was asked to stop."""
        return bool(distributed.agree(self.name is not None))
