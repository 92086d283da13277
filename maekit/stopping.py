"""Ending a run in good order when the system asks for it, as a cluster does before it takes a node away."""

import os
import signal

from . import parallel


class StopRequest:
    """Whether SIGTERM or SIGUSR1 has come; as a context, while it listens. A second signal ends the process at once."""

    def __init__(self):
        self.name = None

    def __enter__(self):
        wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
        self.before = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if self.name is not None:
            os._exit(128 + signal.SIGTERM)
        self.name = signal.Signals(number).name

    def agreed(self):
        """The same in all processes: whether any of them was asked to stop."""
        return bool(parallel.agree(self.name is not None))
