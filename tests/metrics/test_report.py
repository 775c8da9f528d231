"""The evaluation as a whole: real images score like real images, copies and noise are recognized."""

import io
import json

import pytest
import torch
from rich.console import Console
from sklearn.datasets import load_digits

from sfumato.errors import InputError
from sfumato.metrics import Evaluation, evaluate, frechet_distance, table, train_classifier
from sfumato.random import permutation


@pytest.fixture(scope="module")
def sets() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """600 real images as samples, 600 for training with their labels, 597 held out."""
    found = load_digits()
    order = torch.from_numpy(permutation(1, "split", 0, 1797))
    images = torch.from_numpy(found.images).float()[order, None] / 8.0 - 1.0
    labels = torch.from_numpy(found.target).long()[order]
    return images[:600], images[600:1200], labels[600:1200], images[1200:]


@pytest.fixture(scope="module")
def real(sets: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]) -> Evaluation:
    samples, train, labels, heldout = sets
    return evaluate(samples, train, heldout, train_labels=labels)


def test_real_images_are_at_the_reference(real: Evaluation) -> None:
    assert [entry.space for entry in real.spaces] == ["pixels", "classifier"]
    for entry in real.spaces:
        assert 0.6 < entry.frechet_ratio < 1.6
        assert 0.9 < entry.neighbour_ratio < 1.1
        assert not entry.frechet_biased
    assert real.main.space == "classifier"
    assert (real.samples, real.train, real.heldout, real.seed) == (600, 600, 597, 0)


def test_numbers_are_those_of_the_parts(
    real: Evaluation, sets: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    samples, train, heldout = (sets[i].flatten(1) for i in (0, 1, 3))
    entry = real.spaces[0]
    assert entry.frechet_heldout == pytest.approx(frechet_distance(samples, heldout), rel=1e-12)
    assert entry.frechet_train == pytest.approx(frechet_distance(samples, train), rel=1e-12)
    assert entry.frechet_reference == pytest.approx(frechet_distance(train, heldout), rel=1e-12)


def test_copies_and_noise(
    sets: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    _, train, labels, heldout = sets
    classifier = train_classifier(train, labels)
    copies = evaluate(train, train, heldout, classifier=classifier)
    for entry in copies.spaces:
        assert entry.neighbour_ratio == 0.0
        assert entry.frechet_train == pytest.approx(0.0, abs=1e-9)
    noise = torch.randn(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert evaluate(noise, train, heldout, classifier=classifier).main.frechet_ratio > 10.0
    assert copies.seed is None


def test_few_images_are_marked() -> None:
    images = torch.randn(3, 20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = evaluate(images[0], images[1], images[2])
    assert result.spaces[0].frechet_biased
    assert result.accuracy is None
    assert "fewer images than features" in str(table(result).caption)


def test_dictionary_and_table(
    real: Evaluation, sets: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    there_and_back = json.loads(json.dumps(real.to_dict()))
    assert there_and_back["spaces"]["classifier"]["frechet_heldout"] == real.main.frechet_heldout
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(real))
    text = console.export_text()
    assert "Frechet to held-out" in text
    assert "FID" not in text


def test_accuracy(sets: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    samples, train, labels, _ = sets
    result = evaluate(samples, train, train[1::2] + 0.01, train_labels=labels, heldout_labels=labels[1::2])
    assert result.accuracy == pytest.approx(1.0, abs=0.01)


@pytest.mark.usefixtures("unchecked")
def test_bad_input() -> None:
    good = torch.randn(5, 1, 4, 4)
    with pytest.raises(InputError, match="heldout holds 1 image"):
        evaluate(good, good, good[:1])
    with pytest.raises(InputError, match="one image shape"):
        evaluate(torch.randn(5, 3, 4, 4), good, good)
    with pytest.raises(InputError, match="samples must be a floating-point tensor"):
        evaluate(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), good, good)
    with pytest.raises(InputError, match="samples holds NaN"):
        evaluate(good * float("inf"), good, good)
