"""What a run was computed with: versions of packages, commit of the kit. No torch."""

import subprocess
from importlib import metadata
from pathlib import Path


def package_versions():
    """Versions of the packages that decide numbers, where installed."""
    versions = {}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-image"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_commit():
    """Commit of the kit, with "+" if files differ from it; None where there is no git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None if described.returncode == 0 else None
