"""k-NN: the vote, its features."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maekit.probes import knn
from maekit.probes.accuracy import percent
from tests.support.probing import CLASSES, CPU, PIXELS, val_batches


def plain_knn(features, labels, query, k, temperature):
    """One query in plain Python."""
    norm = math.sqrt(sum(q * q for q in query))
    ranked = sorted(
        (
            -sum(f * q for f, q in zip(row, query)) / norm / math.sqrt(sum(f * f for f in row)),
            label,
        )
        for row, label in zip(features, labels)
    )
    votes = Counter()
    for distance, label in ranked[:k]:
        votes[label] += math.exp(-distance / temperature)
    return max(votes, key=votes.get)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (5, 1.0), (500, 0.07)])
def test_the_nearest_neighbours_vote_by_similarity(k, temperature):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    labels = rng.integers(0, 4, 120)
    features = centres[labels] + rng.normal(size=(120, 6))
    queries = centres[rng.integers(0, 4, 50)] + 1.5 * rng.normal(size=(50, 6))
    expected = [plain_knn(features.tolist(), labels.tolist(), q, k, temperature) for q in queries.tolist()]
    tensors = (torch.tensor(features), torch.tensor(labels), torch.tensor(queries))
    assert knn.knn_predict(*tensors, 4, k, temperature).tolist() == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("known", [1000, 2**22, 2**26, 2**27])
def test_similarities_at_a_time_are_bounded_however_many_images_are_known(known, monkeypatch):
    """To 2^26, a quarter of a gigabyte, or to those of one image."""
    sizes, asked = [], iter((known, 50))

    def features(*_):
        n = next(asked)
        return {"mean": torch.zeros(1, 1).expand(n, 1)}, torch.zeros(1, dtype=torch.int64).expand(n)

    def predict(features, labels, queries, classes):
        sizes.append(len(queries))
        return torch.zeros(len(queries), dtype=torch.int64)

    monkeypatch.setattr(knn, "features_of", features)
    monkeypatch.setattr(knn, "knn_predict", predict)
    images = SimpleNamespace(dataset=range(known))
    mae = torch.nn.Identity()
    mae.cls_token = torch.zeros(1, 1, 1)
    found, _ = knn.knn_outcomes(mae, images, None, CLASSES, CPU, PIXELS, ("mean",))
    assert percent(found["mean"]) == 100
    assert sum(sizes) == 50 and (max(sizes) * known <= 2**26 or max(sizes) == 1)


def test_its_features_are_read_from_the_tokens_of_whole_images(mae, source):
    images = source.val.subset(np.arange(0, 200, 20))
    features, labels = knn.features_of(mae, val_batches(images, 4), CPU, PIXELS, knn.by_output(("cls", "mean")))
    dataset = val_batches(images).dataset
    for i in range(len(images)):
        image = PIXELS.normalize(dataset[i]["images"][None])
        with torch.no_grad():
            x = mae.patch_embed(image) + mae.pos_embed[:, 1:]
            x = torch.cat((mae.cls_token + mae.pos_embed[:, :1], x), dim=1)
            for block in mae.blocks:
                x = block(x)
        tokens = mae.norm(x)[0]
        assert torch.allclose(features["cls"][i], tokens[0], atol=1e-4)
        assert torch.allclose(features["mean"][i], tokens[1:].sum(0) / (len(tokens) - 1), atol=1e-4)
        assert labels[i] == source.val.labels[20 * i]


def test_a_validation_image_that_is_also_a_training_image_is_found(mae, source):
    """Known neighbours: queries are the training images themselves, and k-NN must know most of them again."""
    known = val_batches(source.train)
    found, truth = knn.knn_outcomes(mae, known, known, CLASSES, CPU, PIXELS, ("cls", "mean"))
    assert list(found) == ["cls", "mean"] and min(percent(outcomes) for outcomes in found.values()) > 60
    assert (truth.numpy() == source.train.labels).all()


def test_every_block_is_read_where_it_ends_and_the_output_behind_the_norm(mae, source, monkeypatch):
    """Blocks written out; where there is no room for all layers at a time, more passes give the same."""
    images = source.val.subset(np.arange(0, 200, 20))
    batches, depth = val_batches(images, 4), len(mae.blocks)
    wanted = {layer: (layer, "mean") for layer in (*range(1, depth + 1), "output")}
    features, _ = knn.features_of(mae, batches, CPU, PIXELS, wanted)
    image = PIXELS.normalize(batches.dataset[3]["images"][None])
    with torch.no_grad():
        x = torch.cat((mae.cls_token + mae.pos_embed[:, :1], mae.patch_embed(image) + mae.pos_embed[:, 1:]), dim=1)
        for i, block in enumerate(mae.blocks, start=1):
            x = block(x)
            assert torch.allclose(features[i][3], x[0, 1:].mean(0), atol=1e-4)
        assert torch.allclose(features["output"][3], mae.norm(x)[0, 1:].mean(0), atol=1e-4)
    assert not any(block._forward_hooks for block in mae.blocks)
    data = (mae, val_batches(source.val), batches, CLASSES, CPU, PIXELS, "mean")
    known = knn.outcomes_by_layer(*data)
    assert list(known) == [*range(1, depth + 1), "output"]
    assert torch.equal(known["output"], knn.knn_outcomes(*data[:-1], ("mean",))[0]["mean"])
    monkeypatch.setattr(knn, "ROOM", 1)
    assert all(torch.equal(outcomes, known[layer]) for layer, outcomes in knn.outcomes_by_layer(*data).items())
