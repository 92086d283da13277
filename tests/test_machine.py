"""What train.py asks of the machine it runs on."""

import os
import platform
import sys

import pytest

from tests.support import KIT, run

KEPT = """
import sys
from maekit import machine

def resident_mb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

if sys.argv[1] == "kept":
    machine.keep_freed_memory()
made = [bytearray(b"x") * 2**20 for _ in range(300)]
before = resident_mb()
del made
print(before - resident_mb())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc alone is asked")
@pytest.mark.parametrize(
    "call, settings, returned",
    [("not", {}, True), ("kept", {}, False), ("kept", {"MALLOC_TRIM_THRESHOLD_": "131072"}, True)],
)
def test_freed_memory_is_kept_unless_the_user_says_otherwise(call, settings, returned, monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    done = run(sys.executable, "-c", KEPT, call, env=settings | {"PYTHONPATH": str(KIT)}, check=0, cold=True)
    assert (float(done.stdout) > 250) == returned, done.stdout
