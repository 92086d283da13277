"""Progress of several runs: lines that are refreshed in place on a terminal, and elsewhere printed every minute."""

import os
import time

from maekit.surroundings import in_notebook


class Board:
    """What is said to it stays; what is shown is replaced by what is shown next. stream: where to write."""

    def __init__(self, stream):
        self.stream = stream
        moves = os.name == "posix" and os.environ.get("TERM", "dumb") != "dumb" and not in_notebook()
        self.live = moves and stream.isatty()
        self.seconds = 1 if self.live else 60
        self.lines = []
        self.shown = time.monotonic()

    def is_due(self):
        """Whether it is time to show something new."""
        return time.monotonic() - self.shown >= self.seconds

    def say(self, text):
        """Print a line, above what is shown."""
        self._write([text], self.lines)

    def show(self, lines):
        """Show lines in place of those before."""
        self.shown = time.monotonic()
        if self.live:
            self._write([], lines)
        else:
            print("\n".join(lines), file=self.stream, flush=True)

    def clear(self):
        """Take away what is shown."""
        if self.lines:
            self._write([], [])

    def _write(self, said, lines):
        up = f"\x1b[{len(self.lines)}A\r\x1b[J" if self.lines else ""
        if lines:
            width, height = os.get_terminal_size(self.stream.fileno())
            lines = [line[: max(1, width - 1)] for line in lines[: max(1, height - 1)]]  # cut: a longer one would wrap
        self.stream.write(up + "".join(f"{line}\n" for line in [*said, *lines]))
        self.stream.flush()
        self.lines = lines
