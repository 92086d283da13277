"""Upstream's own model: finding, checking, patching and cloning facebookresearch/mae. Needs git, no torch.

A clone is used as upstream left it at COMMIT plus compatibility-fix.patch, so that a run's numbers are those of a known
model. What is in it is told by git alone, from HEAD and the files; its index and untracked files do not count.

python -m maekit.model.upstream [DIR]     clone it, patched, to DIR (default: mae beside the scripts)
"""

import argparse
import importlib
import os
import signal
import sys
import tempfile
import time
import types
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import errors
from ..errors import InputError
from ..files import KIT, atomic_write
from .git import BUILTIN, URL, Git, last_line

COMMIT = "efb2a8062c206524e35e47d04501ed4f544c0ae8"
PATCH = KIT / "compatibility-fix.patch"
PATIENCE = 2.0  # seconds that another process is given to finish patching, or to let go of a file


@dataclass(frozen=True)
class Clone:
    """A clone of upstream that can be used: its folder, HEAD's full commit, and whether the patch is in its files."""

    path: Path
    commit: str
    patched: bool

    def describe(self):
        """The model's source as config.json has it."""
        return {"source": "upstream", "path": str(self.path), "commit": self.commit, "patched": self.patched}

    def ensure_patched(self, say=print):
        """This clone with the patch in its files, put there if it is not yet.

        Any number of processes may do so at once. Raises InputError if the files have changed since, or cannot be
        written.
        """
        if self.patched:
            return self
        with _settled(self.path, f"--mae_dir {self.path}") as look:
            if not look.clone.patched:
                look.write_patched()
                look.compare()
                say(f"{self.path.name}: patched with {PATCH.name}, git -C {_quoted(self.path)} checkout . undoes it")
            return look.clone

    def module(self):
        """Upstream's `models_mae`, imported from this clone. Raises InputError if that fails."""
        _make_way(self.path)
        while str(self.path) in sys.path:
            sys.path.remove(str(self.path))
        sys.path.insert(0, str(self.path))
        importlib.invalidate_caches()
        try:
            return importlib.import_module("models_mae")
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise InputError(
                f"--mae_dir {self.path}: importing its models_mae.py fails ({why}). Mend that, or {BUILTIN}."
            ) from error


def find(mae_dir, kit=KIT):
    """The clone that a run uses, or None for the kit's own model. Changes nothing in it.

    mae_dir: a folder; "builtin", the kit's own model; or None: the folder mae beside the scripts if there is one, else
    the first entry of sys.path (so PYTHONPATH works) with a models_mae.py in it, else the kit's own model. A commit
    other than COMMIT, if the patch fits it, is a warning on stderr. Raises InputError if the folder cannot be used.
    """
    place, origin = _place(mae_dir, Path(kit))
    if place is None:
        return None
    with _settled(Path(os.path.abspath(place)), f"--mae_dir {place}{origin}") as look:
        if look.warning:
            print(f"warning: {look.warning}", file=sys.stderr)
        return look.clone


def clone(path=KIT / "mae", say=print):
    """Clone upstream at COMMIT, patched, into a folder that appears whole or not at all.

    A folder that is there already is only checked. Raises InputError if that or cloning fails.
    """
    path = Path(os.path.abspath(path))
    if os.path.lexists(path):
        return _checked(path, "is there already", say)
    named = f"--clone_mae {path}"
    if not path.parent.is_dir():
        raise InputError(f"{named}: there is no folder {path.parent}. Make it first.")
    say(f"cloning {URL} into {path}")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as draft:
        new = Path(draft) / path.name
        _fetch(Path(draft), new, named)
        find(str(new)).ensure_patched(say=lambda line: None)
        try:
            new.rename(path)
        except OSError:
            if not path.exists():  # else another process was faster
                raise
    return _checked(path, "is there now", say)


def _checked(path, how, say):
    found = find(str(path))
    say(f"{path}: {how}, {'patched' if found.patched else 'not yet patched'}, at commit {found.commit[:7]}")
    return found


def _fetch(draft, new, named):
    """git clone and checkout into the folder `new`, which is in `draft`."""
    for folder, *words in (
        (draft, "clone", "--quiet", "--", URL, new.name),
        (new, "checkout", "--quiet", "--detach", COMMIT),
    ):
        result = Git(folder, named)(*words)
        if result.returncode:
            raise InputError(
                f"{named}: git {words[0]} failed ({last_line(result.stderr)}). The same command tries again; without "
                f"network, copy a clone of {URL} there, or leave --clone_mae out for the kit's own model."
            )


def _place(mae_dir, kit):
    """Folder of the clone and, for messages, how it was found; (None, "") for the kit's own model."""
    if mae_dir == "builtin":
        return None, ""
    if mae_dir is not None:
        if not str(mae_dir):
            raise InputError(f"--mae_dir: is empty. Name a folder, or {BUILTIN}.")
        return mae_dir, ""
    if os.path.lexists(kit / "mae"):
        return kit / "mae", " (found beside the scripts)"
    for entry in sys.path:
        if os.path.isfile(os.path.join(entry, "models_mae.py")):
            return os.path.abspath(entry), " (found on PYTHONPATH)"
    return None, ""


class _Unsettled(InputError):
    """A clone that looks as if another process was patching it just now."""


@contextmanager
def _settled(path, named):
    """A _Look at a clone, taken again for up to PATIENCE while another process may be patching it."""
    _check_folder(path, named)
    deadline = time.monotonic() + PATIENCE
    with tempfile.TemporaryDirectory(prefix="maekit-") as scratch:
        look = _Look(path, named, Path(scratch))
        while True:
            try:
                look.compare()
                break
            except _Unsettled:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield look


def _check_folder(path, named):
    """Raise InputError unless the folder is a git clone of its own that holds a models_mae.py."""
    if not path.is_dir():
        kind = "is a file" if path.exists() else "no such folder"
        raise InputError(f"{named}: {kind}. Name a clone of {URL}, or {BUILTIN}.")
    if not (path / "models_mae.py").is_file():
        raise InputError(f"{named}: no models_mae.py in it. Name a clone of {URL}, or {BUILTIN}.")
    # Without a .git of its own, or with a broken one, git would answer for a repository around it, such as the kit's.
    if not (path / ".git").exists():
        raise InputError(
            f"{named}: is not a git clone (no .git in it), so nothing tells whether it was changed. "
            f"git clone {URL}, or {BUILTIN}."
        )
    result = Git(path, named)("rev-parse", "--show-prefix")
    if "dubious ownership" in result.stderr:
        raise InputError(
            f"{named}: belongs to another user, so git does not read it. If you trust it: git config --global --add "
            f"safe.directory {_quoted(path.as_posix())}. Or {BUILTIN}."
        )
    if result.returncode or result.stdout.strip():
        raise InputError(
            f"{named}: its .git is not one that git can read ({last_line(result.stderr) or 'not a repository'}). "
            f"Clone {URL} anew, or {BUILTIN}."
        )


class _Look:
    """The files of a clone beside what they are before and after the patch.

    scratch: an empty folder, which gets the indices and objects that git writes for it; the clone is only read.
    """

    def __init__(self, path, named, scratch):
        self.path, self.named = path, named
        objects = Git(path, named).line("rev-parse", "--git-path", "objects")
        self.git = Git(path, named, scratch, path / objects)
        head = self.git("rev-parse", "--verify", "HEAD^{commit}")
        if head.returncode:
            raise InputError(f"{named}: has no commit ({last_line(head.stderr)}). Clone {URL} anew, or {BUILTIN}.")
        self.commit = head.stdout.decode().strip()
        before, after = self._trees()
        self.before, self.after = self._files(before), self._files(after)
        self.patch_files = sorted(
            name for name in {**self.before, **self.after} if self.before.get(name) != self.after.get(name)
        )
        self.clone = self.warning = None
        if before != self.git("rev-parse", "--verify", "--quiet", COMMIT + "^{tree}").stdout.decode().strip():
            self.warning = f"{named}: is at commit {self.commit[:7]}, {PATCH.name} was made for {COMMIT[:7]}; it fits."

    def _trees(self):
        """Trees of HEAD's files before and after the patch, which may have been committed."""
        if not PATCH.is_file():
            raise InputError(f"{PATCH}: is missing. It is part of the kit, get it back, or {BUILTIN}.")
        head = self.git.line("rev-parse", self.commit + "^{tree}")
        unpatched = None if self.commit == COMMIT else self._apply(head, "--reverse")
        if unpatched is not None:
            return unpatched, head
        patched = self._apply(head)
        if patched is not None:
            return head, patched
        if self.commit == COMMIT:
            raise InputError(
                f"{PATCH}: does not apply to upstream's commit {COMMIT[:7]}, so the file is damaged. Get "
                f"the kit's own back, or {BUILTIN}."
            )
        raise InputError(
            f"{self.named}: is at commit {self.commit[:7]}, which {PATCH.name} does not fit. "
            f"git -C {_quoted(self.path)} checkout {COMMIT}, or {BUILTIN}."
        )

    def _apply(self, tree, *options):
        """Tree with the patch applied, None if it does not apply."""
        self.git.line("read-tree", tree)
        text = PATCH.read_bytes().replace(b"\r\n", b"\n")
        if self.git("apply", "--cached", "--whitespace=nowarn", *options, "-", stdin=text).returncode:
            return None
        return self.git.line("write-tree")

    def _files(self, tree):
        return _entries(self.git.line("ls-tree", "-r", "-z", "--full-tree", tree))

    def compare(self):
        """Read the files and set self.clone.

        Raises _Unsettled if the files that the patch changes are not all before it or all after it, InputError if
        others differ.
        """
        # An index of the files of both trees, then of what the work tree has of them.
        names = {**self.before, **self.after}
        self.git.line("read-tree", "--empty")
        lines = "".join(f"100644 blob {blob}\t{name}\0" for name, blob in names.items())
        self.git.line("update-index", "-z", "--index-info", stdin=lines.encode("utf-8", "surrogateescape"))
        self.git.line("add", "--update", ".")
        found = _entries(self.git.line("ls-files", "--stage", "-z"))

        edited = sorted(n for n in names if found.get(n) not in (self.before.get(n), self.after.get(n)))
        if edited:
            some = ", ".join(edited[:3]) + (f" and {len(edited) - 3} more" if len(edited) > 3 else "")
            raise (_Unsettled if set(edited) <= set(self.patch_files) else InputError)(
                f"{self.named}: has changes other than {PATCH.name}, in {some}. "
                f"git -C {_quoted(self.path)} stash puts them aside; or commit them, or {BUILTIN}."
            )
        done = [n for n in self.patch_files if found.get(n) == self.after.get(n)]
        if done and len(done) < len(self.patch_files):
            left = next(n for n in self.patch_files if n not in done)
            raise _Unsettled(
                f"{self.named}: is half patched: {PATCH.name} is in {done[0]}, not in {left}. "
                f"git -C {_quoted(self.path)} checkout HEAD . takes it out, then start again; or {BUILTIN}."
            )
        self.clone = Clone(self.path, self.commit, patched=bool(done))

    def write_patched(self):
        """Write the files as they are after the patch, each renamed into place: a process that reads one of them, or
        patches as well, never finds it missing or in part, as it would while `git apply` runs."""
        for name in self.patch_files:
            content = self.git.bytes("cat-file", "blob", self.after[name])
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    with atomic_write(self.path / name) as f:
                        f.write(content)
                    break
                except OSError as error:  # on Windows also while another process reads the file
                    if time.monotonic() > deadline:
                        raise InputError(
                            f"{self.named}: {name} cannot be written ({error.strerror}). Allow it, or {BUILTIN}."
                        ) from error
                    time.sleep(0.1)


def _entries(listing):
    """{file name: blob} of a listing of git ls-tree -z or git ls-files --stage -z."""
    entries = (entry.partition("\t") for entry in listing.split("\0") if entry)
    return {name: max(fields.split(), key=len) for fields, _, name in entries}


def _make_way(path):
    """Have Python import the clone's `models_mae` and `util`: as a folder without an __init__.py, any other util hides it."""
    loaded = sys.modules.get("models_mae")
    if loaded is not None and Path(loaded.__file__).resolve().parent == path.resolve():
        return
    for name in list(sys.modules):
        if name.split(".")[0] in ("models_mae", "util"):
            del sys.modules[name]
    sys.modules["util"] = util = types.ModuleType("util")
    util.__path__ = [str(path / "util")]


def _quoted(path):
    """A path as both bash and cmd take it."""
    return f'"{path}"' if " " in str(path) else str(path)


def main(argv):
    """Clone. Returns the exit code."""
    parser = argparse.ArgumentParser("python -m maekit.model.upstream", description="Clone upstream's MAE, patched.")
    parser.add_argument("dir", nargs="?", default=KIT / "mae", help="default: %(default)s")
    path = parser.parse_args(argv).dir
    for name in ("SIGTERM", "SIGHUP"):  # clean up as for Ctrl-C; Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        clone(path)
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(errors.exit_code(lambda: main(sys.argv[1:])))
