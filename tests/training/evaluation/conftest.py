"""Pre-trained and fine-tuned runs to evaluate."""

import multiprocessing

import pytest

from tests.support import train_here
from tests.support.evaluation import FINETUNE, OPTIONS, QUICK


@pytest.fixture(scope="session")
def processes():
    """Starts processes quickly: they are forked from one that has imported the packages."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.tensorboard", "timm.data", "timm.optim", "matplotlib.figure"])
    return context


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """{norm: folder of its pre-training run, an epoch long}, trained when it is first asked for."""
    root = tmp_path_factory.mktemp("pretrained")

    class Folders(dict):
        def __missing__(self, norm):
            flags = ("--epochs", "1", "--norm", norm, *OPTIONS.get(norm, ()), "--probes", "knn")
            train_here(*QUICK, *flags, "--output_dir", root / norm, check=0)
            return self.setdefault(norm, root / norm)

    return Folders()


@pytest.fixture(scope="session")
def plain(pretrained):
    return pretrained["LayerNorm"]


@pytest.fixture(scope="session")
def finetuned(plain, tmp_path_factory):
    """Folder of a fine-tuning run of two epochs."""
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    train_here(*QUICK, *FINETUNE, "--init", plain, "--epochs", "2", "--output_dir", folder, check=0, draw=True)
    return folder
