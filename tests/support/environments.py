"""Environments as the drivers make them, of one small package in place of torch and its friends."""

import os
import subprocess
import zipfile

# a driver up to where it has its environment; its argument is the kit's folder
USE = 'set -eu; KIT=$1; . "$KIT/maekit/drivers/env.sh"; use_environment; echo "python: $PYTHON"'


def write_wheels(folder):
    """toolz 1.0.0 and 0.12.1, for pip."""
    for version in ("1.0.0", "0.12.1"):
        about = f"toolz-{version}.dist-info"
        parts = {
            "toolz/__init__.py": f"__version__ = '{version}'\n",
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: toolz\nVersion: {version}\n",
            f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        with zipfile.ZipFile(folder / f"toolz-{version}-py3-none-any.whl", "w") as wheel:
            for name, text in parts.items():
                wheel.writestr(name, text)
            wheel.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in (*parts, f"{about}/RECORD")))


def without_own(**env):
    """This process's environment, but for what decides which Python a driver takes."""
    kept = {**os.environ, **env}
    for name in {"PYTHON", "CI", "PYTHONPATH"} - set(env):
        kept.pop(name, None)
    return kept


def use(kit, **env):
    """Have a kit find or make its environment."""
    return subprocess.run(
        ["bash", "-c", USE, "-", kit], env=without_own(**env), capture_output=True, text=True, check=False
    )
