"""The masked autoencoder. `maekit.model.build_mae` and `maekit.model.to_timm` are what other code builds on."""

_HOMES = {"build_mae": "mae", "to_timm": "formats"}


def __getattr__(name):
    """Loaded when they are asked for: torch takes seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
