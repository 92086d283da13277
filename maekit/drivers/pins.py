"""Which environment the drivers make beside the scripts: torch for CUDA 13, or for CUDA 12 where the driver is older.

    python maekit/drivers/pins.py FOLDER

prints three lines: the environment's name in FOLDER, the file with its pins, and why, or nothing. Needs no packages.

NVIDIA's table of minor version compatibility (docs.nvidia.com/deploy/cuda-compatibility): what is built for CUDA 13.x runs
on drivers of 580 and newer, for 12.x on those of 525 and newer (on Windows 528), 580 included.
"""

import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from maekit import machine

CUDA13 = (".venv", "requirements-frozen.txt")
CUDA12 = (".venv-cuda12", "maekit/drivers/requirements-frozen-cuda12.txt")
FOR_13, FOR_12, FOR_12_ON_WINDOWS = 580, 525, 528  # the oldest drivers
INDEX = "https://download.pytorch.org/whl/"
OWN = "PYTHON to a Python with torch from {} (docs/troubleshooting.md)"


def suited():
    """(CUDA13 or CUDA12, why) by this machine's driver and GPU; None in its place if neither runs on a GPU here."""
    driver = machine.nvidia_driver() if machine.visible_gpus() else ""  # who hides the GPUs means the CPU
    if not driver:
        amd = machine.gpu_here() == "an AMD GPU"
        return (
            None,
            f"there is an AMD GPU, and PyPI has no torch for it: set {OWN.format(INDEX + 'rocm6.4')}" if amd else "",
        )
    old = _older_gpu()
    says = f"nvidia-smi says driver {driver}" + (f" and compute capability {old[0]}.{old[1]}" if old else "")
    if _major(driver) < FOR_12:
        older = f"the kit's torch needs {FOR_12} or newer. Update the driver; --device cpu trains without the GPU"
        return None, f"{says}: {older}"
    if _major(driver) >= FOR_13 and not old:
        return CUDA13, f"{says}: pins for CUDA 13"
    if platform.machine() != "x86_64" or (old and old < (7, 0)):
        return None, f"{says}: PyPI has no torch for that on {platform.machine()}. Set {OWN.format(INDEX + 'cu126')}"
    return CUDA12, f"{says}: pins for CUDA 12"


def environment(folder):
    """(CUDA13 or CUDA12, why, what to say even if it is made already) for a folder that machines with other drivers share.

    Where that for CUDA 12 is, it is taken, as it runs on drivers for CUDA 13, too: none is made anew because another machine
    needs another, nor taken from under what runs from it.
    """
    suits, why = suited()
    if suits == CUDA12 or not Path(folder, CUDA12[0]).is_dir():
        return suits or CUDA13, why, ""
    if not suits:
        return CUDA12, "", ""
    driver = why.partition(":")[0]
    return CUDA12, "", f"{driver}, for CUDA 13; {CUDA12[0]} runs on it, too, and is taken. Remove it for {CUDA13[0]}."


def index_for_windows():
    """Where pip finds a torch that this machine's driver runs, as PyPI's for Windows uses no GPU; "" if there is none."""
    driver = machine.nvidia_driver() if machine.visible_gpus() else ""
    if not driver or _major(driver) < FOR_12_ON_WINDOWS:
        return ""
    cuda = "cu126" if _older_gpu() or _major(driver) < 570 else "cu128" if _major(driver) < FOR_13 else "cu130"
    return INDEX + cuda


def _older_gpu():
    """Compute capability of a GPU that CUDA 13 has no code for, of those from 7.0 on if there are any; None if all are newer."""
    known = machine.compute_capabilities()
    volta = [one for one in known if (7, 0) <= one < (7, 5)]
    return min(volta, default=None) or (max(known) if known and max(known) < (7, 0) else None)


def _major(driver):
    return int(driver.partition(".")[0])


if __name__ == "__main__":
    (name, file), reason, note = environment(sys.argv[1])
    if note:
        print(note, file=sys.stderr)
    print(name, file, reason, sep="\n")
