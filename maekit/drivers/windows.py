"""What run_comparison.sh does once it has an environment, for run_comparison.bat: cmd.exe has no lists and no quoting.

    python maekit/drivers/windows.py FLAG ...

Flags, files, output and exit codes are run_comparison.sh's, which says what they mean; the tests hold one against the
other. There is no --slurm here.
"""

import os
import subprocess
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(KIT))  # started by path, so that runs keep the user's PYTHONPATH

from maekit import errors
from maekit.drivers import pool
from maekit.drivers.values import grid_values
from maekit.errors import InputError
from maekit.runs.grid import for_shell, write_grid
from maekit.settings import methods
from maekit.settings.spelling import spell

SCRIPT = "run_comparison.bat"
VALUES = {  # flag: what it sets; a value never begins with --
    "--methods": "methods", "--norms": "methods", "--norm": "methods", "--seeds": "seeds", "--seed": "seeds",
    "--output_dir": "output_dir", "--checkpoint_dir": "checkpoint_dir", "--eval": "evals", "--adyt_lambda": "lambdas",
    "--adyt_smooth": "smooths", "--jobs": "jobs", "--nproc": "nproc", "--warm": "warm", "--wandb_project": "wandb_project",
}  # fmt: skip
TEXTS = {"--finetune_flags": "finetune", "--linprobe_flags": "linprobe"}
SWITCHES = {"--control": "control", "--clone_mae": "clone_mae", "--dry_run": "dry_run", "--open": "open",
            "--wandb": "wandb", "status": "status", "--help": "help", "-h": "help", "/?": "help"}  # fmt: skip
SHARED = {  # flags of train.py that evaluations get, too
    "--imagenet_dir", "--hf_dataset", "--hf_config", "--max_images", "--num_workers", "--cache", "--model",
    "--input_size", "--device", "--precision", "--compile", "--dyt_alpha_init", "--adyt_alpha_min", "--adyt_alpha_max",
}  # fmt: skip


class Comparison:
    """What was typed, and the commands that follow from it."""

    def __init__(self, words):
        self.typed = {
            "methods": "LayerNorm DynamicTanh AdaptiveDynamicTanh",
            "seeds": "0",
            "jobs": "auto",
            "nproc": "1",
            "warm": "auto",
        }
        self.flags, self.shared, self.task_flags = [], [], {}
        left = list(words)
        while left:
            self._read(left)
        self.output_dir = self.typed.get("output_dir") or os.path.join(
            ".", "output_demo" if "--demo" in self.flags else "output_comparison"
        )
        self.analysis = ["--open"] if "open" in self.typed else []

    def _read(self, left):
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        if word in SWITCHES:
            self.typed[SWITCHES[word]] = True
        elif word in ("--demo", "--overwrite"):
            self._pass_on(word, shared=True)
        elif flag == "--slurm":
            raise InputError(f"--slurm: {SCRIPT} knows no cluster. Use run_comparison.sh there, or --jobs here.")
        elif flag in TEXTS or flag in VALUES or flag in SHARED:
            if not equals:
                if not left or (flag not in TEXTS and left[0].startswith("--")):
                    raise InputError(f"{flag}: needs a value. See {SCRIPT} --help.")
                value = left.pop(0)
            if flag in TEXTS:
                self.task_flags[TEXTS[flag]] = value.split()
            elif flag in VALUES:
                self.typed[VALUES[flag]] = value
            else:
                self._pass_on(flag, value, shared=True)
                self.typed[flag] = value
        else:
            self._pass_on(word)

    def _pass_on(self, *words, shared=False):
        self.flags += words
        self.shared += words if shared else ()

    def resolve(self):
        """Check and spell the grid. Raises InputError."""
        names = self.typed["methods"].split()
        if "control" in self.typed:
            bound = self.typed.get("--adyt_alpha_max", "2.0").split()
            names.append(f"DynamicTanh-alpha{grid_values('--adyt_alpha_max', bound)[0]}")
        self.methods = grid_values("--methods", names)
        for flag, typed in (("adyt_lambda", "lambdas"), ("adyt_smooth", "smooths")):
            values = self.typed[typed].split() if typed in self.typed else None
            if values is None:
                continue
            if len(values) == 1:
                self._pass_on(f"--{flag}", values[0], shared=True)
            else:
                self.methods = methods.vary(self.methods, flag, grid_values(f"--{flag}", values))
        self.seeds = grid_values("--seeds", self.typed["seeds"].split())
        self.evals = (
            grid_values("--eval", self.typed["evals"].replace(",", " ").split()) if "evals" in self.typed else []
        )

    def use_wandb(self):
        """Name the project of runs and analysis, if Weights & Biases is asked for."""
        if "wandb" in self.typed or "wandb_project" in self.typed:
            name = self.typed.get("wandb_project") or os.environ.get("WANDB_PROJECT") or "mae-norm-comparison"
            self._pass_on("--wandb_project", name, shared=True)
            self.analysis += ["--wandb_project", name]

    def commands(self):
        """Every run of the comparison, as words."""
        return [self._run(method, seed, "", self.flags) for seed in self.seeds for method in self.methods]

    def evaluations(self):
        """Every evaluation of their encoders, pre-trained and untrained."""
        made = []
        for task in self.evals:
            for seed in self.seeds:
                for method in self.methods:
                    start = f"{self.output_dir}/{method}/seed{seed}"
                    for part, init in ((task, start), (f"untrained_{task}", "untrained")):
                        flags = ["--task", task, "--init", init, *self.shared, *self.task_flags.get(task, [])]
                        made.append(self._run(method, seed, f"/{part}", flags))
        return made

    def _run(self, method, seed, part, flags):
        norm, options = methods.parsed(method)
        own = [word for flag, value in options.items() for word in (f"--{flag}", spell(value))]
        run = f"{method}/seed{seed}{part}"
        kept = self.typed.get("checkpoint_dir")
        kept = ["--checkpoint_dir", f"{kept}/{run}"] if kept else []
        flags = ["--norm", norm, "--seed", seed, "--output_dir", f"{self.output_dir}/{run}", *kept, *flags, *own]
        if self.typed["nproc"] == "1":
            return [sys.executable, str(KIT / "train.py"), *flags]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", self.typed["nproc"]]
        return [sys.executable, *launcher, str(KIT / "train.py"), *flags]


def main(argv):
    comparison = Comparison(argv)
    typed = comparison.typed
    if "help" in typed:
        print(banner(SCRIPT), flush=True)
        return subprocess.call([sys.executable, str(KIT / "train.py"), "--help"])
    for flag in ("jobs", "nproc"):
        if (flag, typed[flag]) == ("jobs", "auto"):
            continue
        if not typed[flag].isdecimal() or typed[flag].startswith("0"):
            raise InputError(f"--{flag} {typed[flag]}: must be a whole number, 1 or more.")
    if typed["warm"] not in ("auto", "off"):
        raise InputError(f"--warm {typed['warm']}: must be auto or off.")
    comparison.use_wandb()
    if "clone_mae" in typed and (code := clone(dry_run="dry_run" in typed)):
        return code
    if "status" in typed:
        return status(comparison.output_dir)
    comparison.resolve()
    if "dry_run" in typed:
        for words in comparison.commands() + comparison.evaluations():
            print(for_shell(words))
        return 0
    return check(comparison) or run(comparison, for_shell([SCRIPT, *argv]))


def banner(script):
    """The comment at the top of a driver, which is its help."""
    lines = (KIT / script).read_text(encoding="utf-8").partition("\n\n")[0].splitlines()[1:]
    return "\n".join(line.removeprefix("rem").removeprefix("#").removeprefix(" ") for line in lines)


def clone(dry_run):
    """Clone upstream's MAE, patched, into mae beside the scripts. Returns the exit code."""
    words = [sys.executable, "-m", "maekit.model.upstream", str(KIT / "mae")]
    if not dry_run:
        return subprocess.call(words, env={**os.environ, "PYTHONPATH": str(KIT)})
    setting = f'set "PYTHONPATH={KIT}" & ' if os.name == "nt" else for_shell(["env", f"PYTHONPATH={KIT}"]) + " "
    print(setting + for_shell(words))
    return 0


def status(folder):
    """How far the runs of the grids in a folder are. Returns the exit code."""
    grids = [grid for name in ("commands", "evaluations") if (grid := Path(folder, f"{name}.txt")).exists()]
    if not grids:
        raise InputError(f"status: no runs were started in {folder}. See --output_dir.")
    return pool.main(["--status", *map(str, grids)])


def check(comparison):
    """What is wrong with the flags or the data is wrong for every run: said once, before the first. Returns the exit code."""
    dry_run = [sys.executable, str(KIT / "train.py"), "--dry_run"]
    code = subprocess.call([*dry_run, *comparison.flags])
    for task in comparison.evals:
        flags = ["--task", task, "--init", "untrained", *comparison.shared, *comparison.task_flags.get(task, [])]
        code = code or subprocess.call([*dry_run, *flags])
    return code


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
    running = [word for flag in ("jobs", "nproc", "warm") for word in (f"--{flag}", comparison.typed[flag])]
    return pool.main(
        [*running, *(str(folder / f"{name}.txt") for name in grids), "--", *analysis, *comparison.analysis]
    )


if __name__ == "__main__":
    sys.exit(errors.exit_code(lambda: main(sys.argv[1:])))
