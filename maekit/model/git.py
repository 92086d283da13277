"""git in a clone of upstream's repository, whatever this user's settings and environment say of others."""

import os
import shutil
import subprocess

from ..errors import InputError

URL = "https://github.com/facebookresearch/mae"
BUILTIN = "--mae_dir builtin for the kit's own model"
# What would make git look at another repository than the folder it is started in.
_ELSEWHERE = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
)
# Files compare by what is in them: no line ends or filters of this user's git.
_PLAIN = ("core.autocrlf=input", "core.safecrlf=false", "core.attributesFile=")


class Git:
    """git in one folder; `named`: how messages call it.

    scratch, objects: what git writes goes to the folder `scratch`; what it reads comes from the folder `objects` too.
    """

    def __init__(self, path, named, scratch=None, objects=None):
        self.path, self.named, self.options = path, named, ()
        if shutil.which("git") is None:
            raise InputError(f"{named}: git, which tells what is in it, is not installed. Install it, or {BUILTIN}.")
        self.env = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
        self.env.update(LC_ALL="C", GIT_TERMINAL_PROMPT="0")
        if scratch is not None:
            self.options = tuple(word for setting in _PLAIN for word in ("-c", setting))
            store = scratch / "objects"
            (store / "info").mkdir(parents=True)
            (store / "info" / "alternates").write_bytes(os.fsencode(objects.resolve().as_posix()) + b"\n")
            self.env.update(GIT_INDEX_FILE=str(scratch / "index"), GIT_OBJECT_DIRECTORY=str(store))
            self.env["GIT_ATTR_NOSYSTEM"] = "1"

    def line(self, *words, stdin=b""):
        """What git prints, as text without the line end. Raises InputError if it fails."""
        return self.bytes(*words, stdin=stdin).decode("utf-8", "surrogateescape").rstrip("\n")

    def bytes(self, *words, stdin=b""):
        """What git prints. Raises InputError if it fails."""
        result = self(*words, stdin=stdin)
        if result.returncode:
            why = last_line(result.stderr)
            raise InputError(f"{self.named}: git {words[0]} failed ({why}). Clone {URL} anew, or {BUILTIN}.")
        return result.stdout

    def __call__(self, *words, stdin=b""):
        """Run git: exit code, stdout in bytes, stderr as text."""
        command = ["git", *self.options, *words]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=self.path, env=self.env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                out, err = process.communicate(stdin)
            except BaseException:
                process.terminate()  # not kill: git then stops what it started and removes what it began
                process.wait()
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err.decode("utf-8", "replace"))


def last_line(stderr):
    """What git complains of: the last line that says so, else the last one."""
    lines = stderr.strip().splitlines() or [""]
    said = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (said or lines)[-1].strip().rstrip(".")
