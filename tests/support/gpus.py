"""A machine with a GPU, as far as nvidia-smi tells."""


def write_nvidia_smi(folder, driver, cuda="12.4", capabilities=("8.0",)):
    """Put an nvidia-smi of a driver, of the newest CUDA that it has, and of a GPU each compute capability, into a folder; one that
    fails if driver is None. Drivers below 510 know no compute capabilities."""
    numbers, known = range(len(capabilities)), driver is not None and int(driver.partition(".")[0]) >= 510
    asked = {
        "driver_version": [driver] * len(capabilities),
        "compute_cap": capabilities,
        "uuid": [f"{number}, GPU-{number}" for number in numbers],
        "index": numbers,
    }
    if not known:
        asked["compute_cap"] = ['Field "compute_cap" is not a valid field to query.']
    cases = [
        f"*{name}*) printf '%s\\n' {' '.join(repr(str(line)) for line in lines)} ;;" for name, lines in asked.items()
    ]
    lines = ["exit 9"] if driver is None else ['case "$*" in', *cases, f'*) echo "| CUDA Version: {cuda} |" ;;', "esac"]
    (folder / "nvidia-smi").write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    (folder / "nvidia-smi").chmod(0o755)
