"""What people and their scripts hold on to, as it was recorded in tests/frozen/recorded/: commands, helps, names of files,
columns, keys, tags, and a run that an earlier kit began. Moving code about must not change any of it.

Where a change is meant, record anew and read the difference before it is committed:

    RECORD_FROZEN=1 ./tests/run.sh tests/frozen && git diff tests/frozen/recorded

That leaves the stopped run in recorded/stopped as it is: it stands for runs that users began with an earlier kit, and a
kit that cannot go on with it loses theirs. RECORD_FROZEN=stopped records it, too.

Of a machine nothing is recorded: the kit's folder, the interpreter, the number of cores, and what is a clock or a process
in a file's name are placeholders in braces.
"""

import os

from tests.support import KIT

FROZEN = KIT / "tests/frozen/recorded"
RECORD = os.environ.get("RECORD_FROZEN", "")
WHATEVER_IS_SET = {"WANDB_PROJECT": "", "BATCH_SIZE": "", "NUM_WORKERS": "", "COLUMNS": "120"}


def told(name, text):
    """A text, and what the file in recorded/ has: two sides of an assert. To record is to write it there first."""
    file = FROZEN / name
    if RECORD:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    return text.rstrip("\n"), file.read_text(encoding="utf-8").rstrip("\n")
