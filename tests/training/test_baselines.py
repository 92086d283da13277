"""Baselines that runs share are those that each would measure, to the last bit, and of no other run."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from maekit import files
from maekit.data import cache, sources
from maekit.probes import knn
from maekit.settings import typed
from maekit.training import baselines
from tests.support import train_here
from tests.support.commands import resolved

RUN = ("--demo", "--epochs", "1", "--max_images", "32", "--batch_size", "16", "--num_workers", "0", "--probes", "all")
NAMES = ("flat_colour", "smooth_colour", "untrained_knn_accuracy", "untrained_knn_mean_accuracy")
NAMES += ("untrained_rank_cls", "untrained_rank_mean")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(demo_dir, own_cache):
    run = resolved("--imagenet_dir", demo_dir, "--max_images", "32")
    return cache.cached(sources.open_source(run.data, run.seed), "auto", 64, print)


@pytest.fixture
def measured(monkeypatch):
    """How often an encoder was scored by k-NN."""
    scored, score = [], knn.outcomes_among
    monkeypatch.setattr(knn, "outcomes_among", lambda *args: scored.append(1) or score(*args))
    return scored


def baselines_of(folder, *flags):
    train_here(*RUN, *flags, "--output_dir", folder, check=0)
    summary = files.read_json(folder / "summary.json")
    return {name: summary[name] for name in NAMES}


def test_other_alphas_and_rates_measure_none_and_have_the_same(own_cache, measured, tmp_path):
    alone = baselines_of(tmp_path / "alone", "--alpha", "0.5", "--cache", "off")
    assert len(measured) == 2 and not own_cache.exists()  # the untrained encoder's and the trained one's
    first = baselines_of(tmp_path / "first")
    assert len(measured) == 4 and len(list(own_cache.glob("baselines-*.json"))) == 1
    for number, flags in enumerate((("--alpha", "0.5"), ("--alpha", "-10"), ("--lr", "1e-3"))):
        assert baselines_of(tmp_path / f"{number}", *flags) == first == alone
    assert len(measured) == 7, "of the trained encoders alone"


@pytest.mark.parametrize(
    "flags", [("--seed", "1"), ("--norm", "dyt"), ("--mask_ratio", "0.5"), ("--batch_size", "8"), ("--probes", "none")]
)
def test_other_runs_have_their_own(flags, own_cache, tmp_path):
    train_here(*RUN, "--output_dir", tmp_path / "a", check=0)
    train_here(*RUN, *flags, "--output_dir", tmp_path / "b", check=0)
    assert len(list(own_cache.glob("baselines-*.json"))) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"of": {}, "baselines": {"flat_colour": 0}}', '{"of": 1}'])
def test_a_file_that_is_none_is_measured_anew(content, own_cache, tmp_path):
    first = baselines_of(tmp_path / "a")
    (file,) = own_cache.glob("baselines-*.json")
    file.write_text(content)
    assert baselines_of(tmp_path / "b") == first and json.loads(file.read_text())["baselines"] == first


def test_where_nothing_can_be_written_each_measures_its_own(own_cache, measured, tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(baselines.files, "write_json", fail)
    task = SimpleNamespace()
    monkeypatch.setattr(baselines, "_place", lambda task: (tmp_path / "baselines.json", {"seed": 0}))
    assert [baselines.shared(task, lambda: {"flat_colour": 1.5}) for _ in range(2)] == [{"flat_colour": 1.5}] * 2


def test_every_setting_that_can_have_a_part_in_a_baseline_is_looked_at(source, monkeypatch):
    """Of model and norm all, whatever they will be; of the rest by name. A change of the code is another one, too."""

    def place(**changes):
        run = resolved("--demo", "--norm", "adyt")
        for name, part in changes.items():
            run = replace(run, **{name: replace(getattr(run, name), **part) if isinstance(part, dict) else part})
        device = SimpleNamespace(torch=torch.device("cpu"), describe=lambda: "a CPU", precision="float32")
        mae = baselines.MaskedAutoencoder.__new__(baselines.MaskedAutoencoder)
        return baselines._place(SimpleNamespace(run=run, source=source, device=device, mae=mae, probes={}))[0]

    plain = place()
    assert plain == place() and plain.parent == source.train.store.path.parent
    changed = {
        typed.ModelSettings: {"name": "vit_tiny", "input_size": 32, "mask_ratio": 0.5, "decoder_type": "linear"},
        typed.NormSettings: {"name": "DynamicTanh", "options": {"lam": 0.5}},
    }
    changed[typed.ModelSettings] |= {"norm_pix_loss": True, "pos_embed": "learned"}
    for kind, part in ((typed.ModelSettings, "model"), (typed.NormSettings, "norm")):
        assert set(changed[kind]) == set(kind.__dataclass_fields__)
        for name, value in changed[kind].items():
            assert place(**{part: {name: value}}) != plain, name
    assert place(seed=1) != plain and place(data={"crop": "whole"}) != plain
    monkeypatch.setattr(baselines, "_code", list)
    assert place() != plain


def test_images_that_are_not_in_a_cache_have_none_to_share(source):
    uncached = replace(source, train=source.train.images)
    assert baselines._place(SimpleNamespace(source=uncached)) == (None, None)
    assert isinstance(source.train, cache.CachedImages)
