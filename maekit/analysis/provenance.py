"""Where runs come from: how they were started, with which settings, data, versions and hardware, and how they ended."""

import shlex
from pathlib import Path

from ..errors import InputError
from ..runs import grid
from ..runs.folder import RunFolder
from ..runs.status import FAILED, FINISHED, read_status
from ..settings import identities
from ..settings.architectures import Architecture, Transformer
from ..settings.methods import OPTIONS

UNFINISHED, NEVER = "unfinished", "never started"


def command(run):
    """The command that a run of reading.load_runs repeats, as typed in the kit's folder; "" where it is not known."""
    words = run["config"].get("command") or []
    if not words:
        return ""
    processes = run["config"]["identity"].get("processes", 1)
    start = ["torchrun", "--nproc_per_node", str(processes)] if processes > 1 else ["python"]
    return grid.for_shell([*start, Path(words[0]).name, *words[1:]])


def typed(root):
    """The commands of drivers that made the runs in a folder, as typed, oldest first."""
    file = Path(root) / "typed.txt"
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []


def facts(everything):
    """What all runs were made of, [{"name", "lines"}]: a line for each value, with its number of runs if several."""
    return [
        {"name": name, "lines": _counted([read(run["config"]) for run in everything])}
        for name, read in _FACTS.items()
        if everything
    ]


def settings(everything, names):
    """{"differing": [{"name", "lines"}], "common": ...}: settings of runs by the names of their flags.

    names: what the runs are called, one each; a line of a differing setting is a value and the names that have it.
    """
    theirs = [run["config"]["identity"] for run in everything]
    differing, common = [], []
    for name in dict.fromkeys(name for identity in theirs for name in identity):
        by_value = {}
        for called, identity in zip(names, theirs):
            if name in identity or name not in OPTIONS:  # else it is nothing to that run
                by_value.setdefault(_spelled(identity.get(name, identities.before(name, identity))), []).append(called)
        if sum(map(len, by_value.values())) == len(names) and len(by_value) == 1:
            common.append({"name": f"--{name}" if name != "data" else name, "lines": list(by_value)})
            continue
        who = {value: list(dict.fromkeys(called)) for value, called in by_value.items()}
        alike = all(set(called) == set(names) for called in who.values())
        lines = [", ".join(who)] if alike else [f"{value}: {', '.join(called)}" for value, called in who.items()]
        differing.append({"name": f"--{name}" if name != "data" else name, "lines": lines})
    return {"differing": differing, "common": common}


def status(run):
    """How a run ended, one word."""
    if run["summary"]:
        return run["summary"].get("status", FINISHED)
    return _told(run["path"]).get("status", UNFINISHED)


def problems(root, everything):
    """Runs that did not end well, [(folder, status, why)]: of everything, and those that never got to a config.json."""
    found = []
    for run in everything:
        ended, told = status(run), _told(run["path"])
        if ended == FINISHED:
            continue
        epochs = len(run["log"])
        after = f"after {epochs} epoch{'s' * (epochs != 1)}"
        found.append(
            (run["path"], ended, f"{after}. {told['error']}" if ended == FAILED and "error" in told else after)
        )
    known = {run["path"].resolve() for run in everything}
    for file in sorted(Path(root).rglob("status.json")):
        told = _told(file.parent)
        if file.parent.resolve() not in known and told.get("status") == FAILED:
            known.add(file.parent.resolve())
            found.append((file.parent, FAILED, str(told.get("error", ""))))
    left = [folder for folder in _planned(root) if folder.resolve() not in known]
    return found + [(folder, NEVER, "") for folder in left if not RunFolder(folder).config.exists()]


def _planned(root):
    """Folders below root that a driver has written down to fill."""
    for name in ("commands.txt", "evaluations.txt"):
        try:
            planned = [grid.output_dir(shlex.split(line)) for line in grid.read_grid(Path(root) / name)]
        except (OSError, InputError):
            continue
        yield from (folder for folder in planned if Path(root).resolve() in folder.resolve().parents)


def _told(folder):
    return read_status(RunFolder(folder))


def _data(config):
    data = config.get("data") or {}
    said = [str(data[name]) for name in ("source", "train") if data.get(name)]
    said += [
        f"{data[n]} {what}"
        for n, what in (
            ("train_images", "training images"),
            ("val_images", "validation images"),
            ("classes", "classes"),
        )
        if n in data
    ]
    return ", ".join([*said, f"fingerprint {data.get('fingerprint')}"])


def _model(config):
    source = config.get("model_source") or {}
    source = source if isinstance(source, str) else " ".join(str(value) for value in source.values() if value)
    parameters = config.get("trainable_parameters")
    count = f", {parameters:,} trainable parameters" if parameters else ""
    model, decoder = (config["identity"].get(name) for name in ("model", "decoder_type"))
    sizes = _sizes(config.get("architecture"))
    return f"{model}{f' with decoder {decoder}' if decoder else ''} ({source}){count}{sizes}"


def _sizes(known):
    """What the names stood for in the run, in words; "" of a kit that did not write it down."""
    try:
        parts = [known[part] and Transformer(**known[part]) for part in ("encoder", "decoder")]
        return f"; {Architecture(known['patch'], *parts)}"
    except (KeyError, TypeError):
        return ""


def versions(config):
    """Of Python and the packages that decide numbers, as a config.json has them: "python 3.11.7, torch 2.10.0, ..."."""
    return ", ".join(f"{name} {version}" for name, version in (config.get("versions") or {}).items())


_FACTS = {
    "data": _data,
    "model": _model,
    "hardware": lambda config: f"{config.get('device')}: {config.get('hardware')}",
    "versions": versions,
    "commit of the kit": lambda config: str(config.get("git_commit") or "unknown"),
}


def _counted(values):
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    if len(counts) == 1:
        return list(counts)
    return [f"{value} ({n} run{'s' * (n != 1)})" for value, n in counts.items()]


def _spelled(value):
    return "none" if value is None else ("off", "on")[value] if isinstance(value, bool) else str(value)
