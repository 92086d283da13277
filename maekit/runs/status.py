"""Where a run is, for drivers to read while it trains. No torch."""

import math
import os
import socket
import time

from ..errors import InputError
from ..files import read_json, write_json

FINISHED, DIVERGED, RUNNING, PREEMPTED, FAILED = "finished", "diverged", "running", "preempted", "failed"
STATUS_SECONDS = 3.0  # between two status.json


def read_status(folder):
    """status.json of a RunFolder as a dict, {} if there is none that can be read."""
    try:
        told = read_json(folder.status)
    except (OSError, InputError):
        return {}
    return told if isinstance(told, dict) else {}


class Status:
    """Where a run is, as status.json tells drivers: {status, epoch, epochs, share, images_per_s, process, host, time}.

    folder: RunFolder, or None to write nothing.
    """

    def __init__(self, folder, epochs):
        self.folder, self.epochs = folder, epochs
        self.written = -math.inf

    def write(self, status, epoch, share=0.0, images_per_s=None):
        """share: of the epoch, 0 to 1."""
        self.written = time.monotonic()
        if self.folder is None:
            return
        known = {"status": status, "epoch": epoch, "epochs": self.epochs, "share": share, "images_per_s": images_per_s}
        try:
            write_json(
                self.folder.status,
                {**known, "process": os.getpid(), "host": socket.gethostname(), "time": time.time()},
            )
        except OSError:
            pass  # nothing depends on it; what does will meet the same error and say so

    def write_sometimes(self, *place):
        """write(RUNNING, ...) if the last time was some seconds ago."""
        if time.monotonic() - self.written > STATUS_SECONDS:
            self.write(RUNNING, *place)
