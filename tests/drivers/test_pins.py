"""Which pins a machine gets by its NVIDIA driver, and what the two frozen files have in common."""

import os
import re
import shutil

import pytest
from packaging.requirements import Requirement

from maekit.drivers import pins
from tests.support import KIT
from tests.support.environments import use
from tests.support.gpus import write_nvidia_smi

FILES = [file for _, file in (pins.CUDA13, pins.CUDA12)]


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Function that puts an nvidia-smi first on the PATH, see write_nvidia_smi; before it is called, one that finds nothing."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(driver, **more):
        write_nvidia_smi(tmp_path / "bin", driver, **more)

    put(None)
    return put


@pytest.mark.parametrize(
    "driver, capabilities, suits, why",
    [
        ("470.256.02", ["8.0"], None, "driver 470.256.02: the kit's torch needs 525 or newer. Update the driver;"),
        ("515.105.01", ["8.0"], None, "driver 515.105.01: the kit's torch needs 525 or newer. Update the driver;"),
        ("525.60.13", ["8.0"], pins.CUDA12, "driver 525.60.13: pins for CUDA 12"),
        ("575.57.08", ["8.0", "8.0"], pins.CUDA12, "driver 575.57.08: pins for CUDA 12"),
        ("580.65.06", ["7.5"], pins.CUDA13, "driver 580.65.06: pins for CUDA 13"),
        ("1000.10", ["10.0"], pins.CUDA13, "driver 1000.10: pins for CUDA 13"),
        ("580.65.06", ["7.0"], pins.CUDA12, "driver 580.65.06 and compute capability 7.0: pins for CUDA 12"),
        ("580.65.06", ["8.0", "7.0"], pins.CUDA12, "driver 580.65.06 and compute capability 7.0: pins for CUDA 12"),
        (
            "580.65.06",
            ["3.5", "8.0"],
            pins.CUDA13,
            "driver 580.65.06: pins for CUDA 13",
        ),  # the old one is for the screen
        (
            "550.54.15",
            ["6.1"],
            None,
            "driver 550.54.15 and compute capability 6.1: PyPI has no torch for that on x86_64.",
        ),
    ],
)
def test_a_driver_and_a_gpu_get_the_newest_torch_that_runs_on_them(
    driver, capabilities, suits, why, nvidia_smi, monkeypatch
):
    monkeypatch.setattr(pins.platform, "machine", lambda: "x86_64")
    nvidia_smi(driver, capabilities=capabilities)
    chosen, said = pins.suited()
    assert chosen == suits and said.startswith(f"nvidia-smi says {why}")


def test_pypi_has_torch_for_cuda_12_on_x86_64_alone(nvidia_smi, monkeypatch):
    monkeypatch.setattr(pins.platform, "machine", lambda: "aarch64")
    nvidia_smi("550.54.15")
    chosen, said = pins.suited()
    assert chosen is None and said.endswith(
        "15: PyPI has no torch for that on aarch64. Set PYTHON to a Python with torch from "
        "https://download.pytorch.org/whl/cu126 (docs/troubleshooting.md)"
    )
    nvidia_smi("580.65.06")
    assert pins.suited()[0] == pins.CUDA13
    lines = (KIT / pins.CUDA12[1]).read_text().splitlines()
    assert all("platform_machine == 'x86_64'" in line for line in lines if line.startswith("nvidia-"))


def test_who_hides_the_gpus_gets_no_pins_for_them(nvidia_smi, monkeypatch):
    nvidia_smi("550.54.15")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert pins.suited()[0] == pins.CUDA12
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert pins.suited() == (None, "")


@pytest.mark.parametrize(
    "driver, index",
    [
        ("470.256.02", ""),
        ("527.41", ""),
        ("528.33", "https://download.pytorch.org/whl/cu126"),
        ("572.16", "https://download.pytorch.org/whl/cu128"),
        ("580.88", "https://download.pytorch.org/whl/cu130"),
    ],
)
def test_the_index_for_windows_is_of_a_cuda_that_the_driver_runs(driver, index, nvidia_smi):
    nvidia_smi(driver)
    assert pins.index_for_windows() == index
    nvidia_smi(driver, capabilities=["7.0"])
    assert pins.index_for_windows() == (index and "https://download.pytorch.org/whl/cu126")
    nvidia_smi(None)
    assert pins.index_for_windows() == ""


@pytest.mark.slow
class TestEnvironments:
    """Real virtual environments, as in test_environment.py: toolz 1.0.0 stands for CUDA 13, 0.12.1 for CUDA 12."""

    @pytest.mark.parametrize(
        "driver, name, version, line",
        [
            ("470.256.02", ".venv", "1.0.0", "the kit's torch needs 525 or newer"),
            ("550.54.15", ".venv-cuda12", "0.12.1", "nvidia-smi says driver 550.54.15: pins for CUDA 12\n"),
            ("580.65.06", ".venv", "1.0.0", "nvidia-smi says driver 580.65.06: pins for CUDA 13\n"),
            (None, ".venv", "1.0.0", "making"),
        ],
    )
    def test_it_is_made_from_the_pins_that_the_driver_runs(self, driver, name, version, line, kit, nvidia_smi):
        nvidia_smi(driver)
        made = use(kit)
        assert made.returncode == 0 and made.stdout == f"python: {kit}/{name}/bin/python\n", made.stderr
        assert f"Successfully installed toolz-{version}" in made.stderr and line in made.stderr
        assert made.stderr.count("nvidia-smi") == (driver is not None)
        again = use(kit)
        assert (again.stdout, again.stderr) == (made.stdout, "")

    def test_machines_with_other_drivers_share_the_folder_and_none_takes_an_environment_from_another(
        self, kit, nvidia_smi
    ):
        nvidia_smi("580.65.06")
        newer = use(kit).stdout
        before = (kit / ".venv/made-from").stat()
        nvidia_smi("550.54.15")
        older = use(kit)
        assert "making" in older.stderr and older.stdout != newer
        assert (kit / ".venv/made-from").stat() == before  # what runs from it goes on
        for driver, said in (
            (None, ""),
            (
                "580.65.06",
                "nvidia-smi says driver 580.65.06, for CUDA 13; .venv-cuda12 runs on it, too, and is taken. ",
            ),
            ("550.54.15", ""),
            ("470.256.02", ""),
        ):
            nvidia_smi(driver)
            shared = use(kit)
            assert shared.stdout == older.stdout and shared.stderr.startswith(said)
            assert shared.stderr.count("\n") == bool(said)
        shutil.rmtree(kit / ".venv-cuda12")
        nvidia_smi("580.65.06")
        assert (use(kit).stdout, use(kit).stderr) == (newer, "")

    def test_each_is_made_anew_when_its_own_pins_change(self, kit, nvidia_smi):
        nvidia_smi("550.54.15")
        use(kit)
        (kit / FILES[0]).write_text("toolz==0.12.1\n")
        assert use(kit).stderr == ""
        (kit / FILES[1]).write_text("toolz==1.0.0\n")
        nvidia_smi(None)
        assert "toolz-1.0.0" in use(kit).stderr

    def test_what_a_node_without_the_internet_cannot_install_a_login_node_without_a_gpu_does(self, kit, nvidia_smi):
        nvidia_smi("550.54.15")
        failed = use(kit, PIP_FIND_LINKS="/nowhere")
        assert failed.returncode == 2 and f"error: installing {FILES[1]} failed" in failed.stderr
        nvidia_smi(None)
        assert "toolz-0.12.1" in use(kit).stderr

    def test_on_a_login_node_an_empty_folder_says_which(self, kit, nvidia_smi):
        (kit / ".venv-cuda12").mkdir()
        assert "toolz-0.12.1" in use(kit).stderr
        nvidia_smi("550.54.15")
        assert use(kit).stderr == ""

    @pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="has an NVIDIA GPU, which comes first")
    def test_an_amd_gpu_is_told_of_and_gets_the_usual(self, kit, nvidia_smi, tmp_path):
        machine = kit / "maekit/machine.py"
        (tmp_path / "drm/card0/device").mkdir(parents=True)
        (tmp_path / "drm/card0/device/mem_info_vram_total").write_text(str(64 * 2**30))
        (tmp_path / "kfd").touch()
        text = machine.read_text().replace('"/dev/kfd"', f'"{tmp_path}/kfd"')
        machine.write_text(text.replace('"/sys/class/drm"', f'"{tmp_path}/drm"'))
        said = use(kit)
        line = "there is an AMD GPU, and PyPI has no torch for it: set PYTHON to a Python with torch from"
        way = "https://download.pytorch.org/whl/rocm6.4 (docs/troubleshooting.md)"
        assert f"{line} {way}\nmaking" in said.stderr and "toolz-1.0.0" in said.stderr


def pinned(file):
    """{package: its versions} of a frozen file: more than one where they differ by Python."""
    found = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", (KIT / file).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("file", FILES)
def test_a_frozen_file_pins_every_package_of_the_ranges_within_them_for_all_systems(file):
    versions = pinned(file)
    for line in (KIT / "requirements.txt").read_text().splitlines():
        if need := line.partition("#")[0].strip():
            need = Requirement(need)
            assert all(version in need.specifier for version in versions[need.name]), need
    assert any(name.startswith("nvidia-cublas") for name in versions) and "colorama" in versions
    assert "sys_platform == 'linux'" in (KIT / file).read_text()


def test_the_frozen_files_differ_by_torch_and_what_it_brings_along():
    ours, older = pinned(FILES[0]), pinned(FILES[1])
    of_torch = re.compile("torch|torchvision|triton|nvidia-.*|cuda-.*")
    ours, older = ({n: v for n, v in some.items() if not of_torch.fullmatch(n)} for some in (ours, older))
    assert ours == older and len(ours) > 50
    assert pinned(FILES[1])["torch"] == {"2.10.0"}  # from 2.11 on PyPI's are for CUDA 13
    cudas = [{name[-1] for name in pinned(file) if re.search("-cu1[23]$", name)} for file in FILES]
    assert cudas == [{"3"}, {"2"}]


def test_what_the_tests_install_beside_an_environment_is_in_none():
    listed = (KIT / "tests/requirements-without-theirs.txt").read_text()
    tools = set(re.findall(r"^([\w.-]+)==", listed, re.MULTILINE))
    assert {"scikit-learn", "nbclient"} <= tools and not any(tools & set(pinned(file)) for file in FILES)
