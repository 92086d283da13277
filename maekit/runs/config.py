"""What config.json keeps of a run. No torch."""

import os
import sys
from dataclasses import asdict

from . import versions


def describe(task, identity, clone):
    """The dict of config.json. task: training.task.Task; identity: what decides its numbers; clone: upstream.Clone or None."""
    run = task.run
    parameters = dict.fromkeys([*task.network.parameters(), *task.model.parameters()])
    resolved = asdict(run)
    resolved["data"]["num_workers"] = task.loaders.how["workers"]
    return {
        "identity": identity,
        "settings": resolved,
        "command": sys.argv,
        "architecture": asdict(run.model.architecture),
        "effective_batch": run.optim.effective_batch,
        "device": str(task.device.torch),
        "hardware": task.device.describe(),
        "runs_at_a_time": int(os.environ.get("MAEKIT_RUNS_AT_A_TIME", "1")),  # of the driver, on this machine
        "model_source": clone.describe() if clone else {"source": "builtin"},
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "data": task.source.describe(),
        "versions": {"python": sys.version.split()[0], **versions.package_versions()},
        "git_commit": versions.git_commit(),
    }
