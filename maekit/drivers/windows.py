"""What run_comparison.sh does once it has an environment, for run_comparison.bat: cmd.exe has no lists and no quoting.

    python maekit/drivers/windows.py FLAG ...

Flags, files, output and exit codes are run_comparison.sh's, which says what they mean; the tests hold one against the
other. There is no --slurm here.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(KIT))  # started by path, so that runs keep the user's PYTHONPATH

from maekit import distributed, errors
from maekit.drivers import pins, pool
from maekit.drivers.check_commands import check
from maekit.drivers.values import choosing, compared, grid_values, kind_of
from maekit.errors import InputError
from maekit.runs.grid import for_shell, write_grid
from maekit.settings import methods, recipes
from maekit.settings.flags import FLAGS
from maekit.settings.probes import EVALUATIONS

SCRIPT = "run_comparison.bat"
DEFAULTS = {
    "--methods": "LayerNorm DynamicTanh AdaptiveDynamicTanh",
    "--seeds": "0",
    "--select_seeds": "",
    "--lrs": "",
    "--output_dir": "",
    "--checkpoint_dir": "",
    "--eval": "",
    "--reference": "",
    "--jobs": "auto",
    "--nproc": "1",
    "--warm": "auto",
    "--wandb_project": "",
    "--finetune_flags": "",
    "--linprobe_flags": "",
    "--knn_flags": "",
}
SAME = {"--norms": "--methods", "--norm": "--methods", "--seed": "--seeds", "-h": "--help", "/?": "--help"}
TEXTS = ("--finetune_flags", "--linprobe_flags", "--knn_flags")  # may begin with --
SWITCHES = ("--control", "--clone_mae", "--dry_run", "--open", "--wandb", "--help", "status")


class Comparison:
    """What was typed, and the commands that follow from it. typed: the script's own flags; switches: those of SWITCHES."""

    def __init__(self, words):
        self.typed, self.switches = dict(DEFAULTS), set()
        self.flags, self.shared, self.options = [], [], {}  # of train.py: of runs, of evaluations, of norms
        self.several_sizes = ""
        left = list(words)
        while left:
            self._read(left)
        self.output_dir = self.typed["--output_dir"] or os.path.join(
            ".", "output_demo" if "--demo" in self.flags else "output_comparison"
        )
        self.analysis = ["--reference", self.typed["--reference"]] if self.typed["--reference"] else []
        self.analysis += ["--open"] if "--open" in self.switches else []

    def _read(self, left):
        word = left.pop(0)
        name, equals, value = word.partition("=")
        flag = SAME.get(name, name)
        if flag in SWITCHES:
            self.switches.add(flag)
        elif flag == "--slurm":
            raise InputError(f"--slurm: {SCRIPT} knows no cluster. Use run_comparison.sh there, or --jobs here.")
        elif flag in DEFAULTS:
            self.typed[flag] = value if equals else _value(name, left)
        elif flag[2:] in FLAGS and flag.startswith("--"):
            kind = kind_of(flag[2:])
            words = [word] if kind.endswith("switch") else [flag, value if equals else _value(flag, left)]
            self._pass_on(kind, words if kind != "value" or not equals else [word])
        else:
            raise InputError(f"{word}: neither {SCRIPT} nor train.py has this flag. See {SCRIPT} --help.")

    def _pass_on(self, kind, words):
        """A flag of train.py to the runs, and to the evaluations if they get it, too."""
        if kind == "shared_option":
            self.options[words[0]] = words[1]
            if len(words[1].split()) > 1:  # a method each
                return
        if words[0] == "--max_images" and len(words[1].split()) > 1:
            self.several_sizes = words[1]
            return
        self.flags += words
        self.shared += words if kind.startswith("shared_") else ()

    def resolve(self):
        """Check and spell the grid, and the commands that it makes. Raises InputError, or exits with 2."""
        chosen = {"control": "--control" in self.switches, "reference": self.typed["--reference"]}
        self.methods = compared(self.typed["--methods"], self.options, **chosen)
        self.seeds, self.rates, self.sizes = (
            grid_values(flag, typed) if typed else []
            for flag, typed in (
                ("--seeds", self.typed["--seeds"]),
                ("--lrs", self.typed["--lrs"]),
                ("--max_images", self.several_sizes),
            )
        )
        if self.rates and (lr := next((word for word in self.flags if word.partition("=")[0] == "--lr"), None)):
            raise InputError(f"--lrs {' '.join(self.rates)}: and {lr} as well. Leave one of them out.")
        self.choosers = []
        if chosen := self.typed["--select_seeds"]:
            if not self.rates:
                raise InputError(f"--select_seeds {chosen}: there is nothing to choose. Add --lrs.")
            self.choosers = choosing(chosen, self.seeds)
            self.seeds = [*self.choosers, *self.seeds]
            self.analysis += ["--select_seeds", " ".join(self.choosers)]
        evals = self.typed["--eval"].replace(",", " ")
        self.evals = grid_values("--eval", evals) if evals else []
        check(self.commands() + self.evaluations())

    def use_wandb(self):
        """Name the project of runs and analysis, if Weights & Biases is asked for."""
        name = self.typed["--wandb_project"]
        if name or "--wandb" in self.switches:
            words = ["--wandb_project", name or os.environ.get("WANDB_PROJECT") or recipes.WANDB_PROJECT]
            self._pass_on("shared_value", words)
            self.analysis += words

    def commands(self):
        """Every run of the comparison, as words."""
        made = []
        for method, where, own in self.grid():
            rate = ["--lr", own["rate"]] if own["rate"] else []
            made.append(self._run(method, where, [*self.flags, *rate], own))
        return made

    def grid(self):
        """(method, folder, what is its own: seed, size and rate) of every run."""
        for seed in self.seeds:
            for size in self.sizes or [""]:
                for rate in self.rates or [""]:
                    for method in self.methods:
                        parts = [f"n{size}"] if size else []
                        parts += [f"lr{rate}"] if rate else []
                        where = "/".join([method, *parts, f"seed{seed}"])
                        yield method, where, {"seed": seed, "size": size, "rate": rate}

    def evaluations(self):
        """Every evaluation of their encoders, pre-trained and untrained."""
        made = []
        for task in self.evals:
            for method, where, own in self.grid():
                if own["seed"] in self.choosers:
                    continue
                kinds = [(task, f"{self.output_dir}/{where}")]
                if own["rate"] in (self.rates or [""])[:1]:  # random weights know no rate: evaluated beside the first
                    kinds.append((f"untrained_{task}", "untrained"))
                for part, init in kinds:
                    made.append(self._run(method, f"{where}/{part}", self.task_flags(task, init), own))
        return made

    def task_flags(self, name, init):
        """The flags of an evaluation, but for those of its run. name: one of EVALUATIONS."""
        task, readout = EVALUATIONS[name]
        read = [] if name == task else ["--readout", readout]
        own = self.typed.get(f"--{task}_flags", "").split()
        return ["--task", task, *read, "--init", init, *self.shared, *own]

    def _run(self, method, where, flags, own):
        norm, *options = methods.flags_of(method)[1:]
        kept = self.typed["--checkpoint_dir"]
        kept = ["--checkpoint_dir", f"{kept}/{where}"] if kept else []
        images = images_of(own["size"])
        start = ["--norm", norm, "--seed", own["seed"], "--output_dir", f"{self.output_dir}/{where}", *kept]
        flags = [*start, *images, *flags, *options]
        if self.typed["--nproc"] == "1":
            return [sys.executable, str(KIT / "train.py"), *flags]
        launcher = ["-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", self.typed["--nproc"]]
        return [sys.executable, *launcher, str(KIT / "train.py"), *flags]


def images_of(size):
    """The flags of a number of images, as the grid has it; all are validated alike, unless flags after them say how."""
    return [] if size in ("", "all") else ["--max_val_images", "all", "--max_images", size]


def main(argv):
    if argv[:1] == ["--without_packages"]:
        return 0 if needs_no_packages(argv[1:]) else 1
    for name in distributed.VARIABLES:
        os.environ.pop(name, None)  # another program's, as in env.sh
    comparison = Comparison(argv)
    switches = comparison.switches
    if "--help" in switches:
        print(banner(SCRIPT), flush=True)
        return subprocess.call([sys.executable, str(KIT / "train.py"), "--help"])
    check_running_flags(comparison.typed)
    comparison.use_wandb()
    if "--clone_mae" in switches and (code := clone(dry_run="--dry_run" in switches)):
        return code
    if "status" in switches:
        return status(comparison.output_dir)
    comparison.resolve()
    if "--dry_run" in switches:
        for words in comparison.commands() + comparison.evaluations():
            print(for_shell(words))
        return 0
    if (line := torch_without_gpu()) and "--device cpu" not in " ".join(comparison.flags).replace("=", " "):
        print(line, file=sys.stderr)
    return check_data(comparison) or run(comparison, for_shell([SCRIPT, *argv]))


def _value(flag, left):
    """Take the value of a flag off the words that are left. Raises InputError if there is none."""
    if not left or (flag not in TEXTS and left[0].startswith("--")):
        raise InputError(f"{flag}: needs a value. See {SCRIPT} --help.")
    return left.pop(0)


def needs_no_packages(argv):
    """Whether any Python will do for what is typed; so it will to say what is wrong with that."""
    try:
        return not Comparison(argv).switches.isdisjoint(("--help", "--dry_run", "status"))
    except InputError:
        return True


def check_running_flags(typed):
    """Raise InputError for the first flag on how runs are run that cannot be used."""
    for flag in ("--jobs", "--nproc"):
        if (flag, typed[flag]) == ("--jobs", "auto"):
            continue
        if not typed[flag].isdecimal() or typed[flag].startswith("0"):
            raise InputError(f"{flag} {typed[flag]}: must be a whole number, 1 or more.")
    if typed["--warm"] not in ("auto", "off"):
        raise InputError(f"--warm {typed['--warm']}: must be auto or off.")


def banner(script):
    """The comment at the top of a driver, which is its help."""
    lines = (KIT / script).read_text(encoding="utf-8").partition("\n\n")[0].splitlines()[1:]
    return "\n".join(line.removeprefix("rem").removeprefix("#").removeprefix(" ") for line in lines)


def clone(dry_run):
    """Clone upstream's MAE, patched, into mae beside the scripts. Returns the exit code."""
    words = [sys.executable, "-P", "-m", "maekit.model.upstream", str(KIT / "mae")]
    if not dry_run:
        return subprocess.call(words, env={**os.environ, "PYTHONPATH": str(KIT)})
    setting = f'set "PYTHONPATH={KIT}" & ' if os.name == "nt" else for_shell(["env", f"PYTHONPATH={KIT}"]) + " "
    print(setting + for_shell(words))
    return 0


def status(folder):
    """How far the runs of the grids in a folder are. Returns the exit code."""
    grids = [grid for name in ("commands", "evaluations") if (grid := Path(folder, f"{name}.txt")).exists()]
    if not grids:
        raise InputError(
            f"status: no runs were started in {folder}. Type the options that they were started with, too."
        )
    return pool.main(["--status", *map(str, grids)])


def torch_without_gpu():
    """What to type for a torch that uses the GPU here, if torch is built for CPUs alone; "" if there is nothing to say."""
    index = pins.index_for_windows()
    torch = importlib.util.find_spec("torch") if index else None  # not imported, which takes seconds
    if not torch or re.search(r"^cuda\b.*= *'", Path(torch.origin).with_name("version.py").read_text(), re.MULTILINE):
        return ""
    install = f'"{sys.executable}" -m pip install --force-reinstall --no-deps torch torchvision --index-url {index}'
    return f"warning: there is an NVIDIA GPU, but torch is built for CPUs alone. This trains on the CPU, until you type {install}"


def check_data(comparison):
    """What is wrong with the data is wrong for every run of a number of images: said once, before the first. Returns the exit
    code."""
    checked = [[*images_of(size), *comparison.flags] for size in comparison.sizes or ("",)]
    checked += [comparison.task_flags(task, "untrained") for task in comparison.evals]
    processes = {**os.environ, "WORLD_SIZE": comparison.typed["--nproc"]}
    for flags in checked:
        if code := subprocess.call([sys.executable, str(KIT / "train.py"), "--dry_run", *flags], env=processes):
            return code
    return 0


def run(comparison, typed):
    """Write the grids down, run them, then the analysis. Returns the exit code."""
    folder, grids = Path(comparison.output_dir), {"commands": comparison.commands()}
    if comparison.evals:
        grids["evaluations"] = comparison.evaluations()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, commands in grids.items():
            write_grid(folder / f"{name}.txt", commands)
        with open(folder / "typed.txt", "a+", encoding="utf-8", errors="surrogateescape") as f:
            f.seek(0)
            if typed not in f.read().split("\n"):
                f.write(f"{typed}\n")
    except OSError as error:
        raise InputError(f"--output_dir: {folder} cannot be written. Choose another --output_dir.") from error
    analysis = [sys.executable, str(KIT / "analysis.py"), "comparison", "--output_dir", comparison.output_dir]
    running = [word for flag in ("--jobs", "--nproc", "--warm") for word in (flag, comparison.typed[flag])]
    return pool.main(
        [*running, *(str(folder / f"{name}.txt") for name in grids), "--", *analysis, *comparison.analysis]
    )


if __name__ == "__main__":
    sys.exit(errors.exit_code(lambda: main(sys.argv[1:])))
