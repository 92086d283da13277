"""The run folder. `maekit.runs.load_trajectories` is what other code builds on."""


def __getattr__(name):
    if name != "load_trajectories":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .trajectories import load_trajectories

    return load_trajectories
