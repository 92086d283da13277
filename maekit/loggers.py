"""Where epochs are logged to for looking at, beside the run folder's own files."""

from tqdm import tqdm


class TensorBoard:
    """Scalars of an epoch in a TensorBoard folder; what cannot be written is said once, and training goes on without.

    folder None: nothing is written. first_epoch: what a run before wrote from there on is dropped.
    """

    def __init__(self, folder, first_epoch):
        self.folder, self.writer = folder, None
        if folder is not None:
            self._try(self._open, first_epoch)

    def _open(self, first_epoch):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.folder, purge_step=first_epoch)

    def add(self, row):
        """Log a row of log.csv."""
        if self.writer is not None:
            self._try(self._add, row)

    def _add(self, row):
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def close(self):
        """Write what is left."""
        if self.writer is not None:
            self._try(self.writer.close)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _try(self, function, *args):
        try:
            function(*args)
        except OSError as error:
            self.writer = None
            tqdm.write(f"note: {self.folder}: {error.strerror or error}; training goes on without TensorBoard.")
