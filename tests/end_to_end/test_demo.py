"""What the demo teaches about probes: four runs of its 26 epochs, on half of its images in batches half as large."""

import json

import pytest

from tests.support import train_here

HALF = ("--demo", "--max_images", "500", "--batch_size", "16")


@pytest.fixture(scope="module")
def demo_run(demo_dir, tmp_path_factory):
    """Summary of a demo run by its alpha, trained when first asked for."""
    done = {}

    def run(alpha, *flags):
        if alpha not in done:
            folder = tmp_path_factory.mktemp("demo")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MAEKIT_DATA", str(demo_dir.parent))
                words = (*HALF, "--alpha", alpha, "--probes", "joint,frozen", *flags, "--output_dir", folder)
                train_here(*words, check=0)
            done[alpha] = json.loads((folder / "summary.json").read_text())
        return done[alpha]

    return run


def test_on_the_demo_the_frozen_probe_reads_an_untrained_encoder_and_one_at_alpha_a_half(demo_run):
    assert demo_run(0.5)["untrained_frozen_accuracy"] >= 60
    assert demo_run(0.5)["frozen_accuracy"] >= 60
    assert demo_run(0)["untrained_frozen_accuracy"] == demo_run(0.5)["untrained_frozen_accuracy"]


def test_on_the_demo_positive_alphas_beat_what_is_read_from_reconstruction_alone(demo_run):
    for alpha in (0.5, 0.1):
        assert demo_run(alpha)["accuracy"] > demo_run(0)["frozen_accuracy"]
        assert demo_run(alpha)["val_mse"] < 0.5


def test_at_alpha_minus_ten_the_joint_probe_names_wrong_classes_and_the_frozen_one_finds_the_right_ones(demo_run):
    """In batches of 64: in smaller ones it depends on the last bit, and on the processor with it, how wrong."""
    summary = demo_run(-10, "--batch_size", "64")
    assert summary["status"] == "finished" and summary["accuracy"] < 5 and summary["frozen_accuracy"] > 40
