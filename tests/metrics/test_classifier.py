"""The classifier whose features are used: accurate, deterministic, and alone with its randomness."""

import time

import pytest
import torch
from sklearn.datasets import load_digits

from sfumato.errors import InputError
from sfumato.metrics import ClassifierFeatures, features, train_classifier
from sfumato.random import permutation


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    found = load_digits()
    order = torch.from_numpy(permutation(0, "split", 0, 1797))
    images = torch.from_numpy(found.images).float()[:, None] / 8.0 - 1.0
    return images[order], torch.from_numpy(found.target).long()[order]


@pytest.fixture(scope="module")
def classifier(digits: tuple[torch.Tensor, torch.Tensor]) -> ClassifierFeatures:
    images, labels = digits
    return train_classifier(images[797:], labels[797:], seed=0)


def accuracy(classifier: ClassifierFeatures, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of images whose most probable label is the given one."""
    found = classifier.classes[features(classifier, device="cpu").logits(images).argmax(1)]
    return float((found == labels).double().mean())


def test_digits(digits: tuple[torch.Tensor, torch.Tensor], classifier: ClassifierFeatures) -> None:
    images, labels = digits
    assert accuracy(classifier, images[:797], labels[:797]) > 0.97
    vectors = classifier(images[797:])
    assert vectors.shape == (1000, 64)
    assert not vectors.requires_grad
    assert float(vectors.double().var(dim=0, correction=0).mean()) == pytest.approx(1.0, rel=1e-4)


def test_deterministic_and_leaves_global_state(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = digits[0][:200], digits[1][:200]
    torch.manual_seed(123)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first = train_classifier(images, labels, seed=3, steps=20)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(456)
    again = train_classifier(images, labels, seed=3, steps=20)
    other = train_classifier(images, labels, seed=4, steps=20)
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))


def test_chunks(
    digits: tuple[torch.Tensor, torch.Tensor],
    classifier: ClassifierFeatures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = digits[0][:50]
    whole = classifier(images)
    monkeypatch.setattr("sfumato.metrics.classifier._CHUNK", 7)
    torch.testing.assert_close(classifier(images), whole)


@pytest.mark.parametrize("shape", [(1, 8), (3, 11), (3, 32, 32), (1, 8, 20), (2, 64, 64), (1, 1, 5)])
def test_any_size(shape: tuple[int, ...]) -> None:
    images = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([-4, 0, 7] * 4)
    extractor = train_classifier(images, labels, steps=2)
    assert extractor(images).shape == (12, 64)
    assert sum(accuracy(extractor, images, torch.full((12,), label)) for label in (-4, 0, 7)) == pytest.approx(1.0)


@pytest.mark.usefixtures("unchecked")
def test_bad_input(classifier: ClassifierFeatures) -> None:
    images, labels = torch.zeros(6, 1, 8, 8), torch.tensor([0, 1] * 3)
    with pytest.raises(InputError, match="at least two classes"):
        train_classifier(images, torch.zeros(6, dtype=torch.long))
    with pytest.raises(InputError, match="6 integers"):
        train_classifier(images, labels[:5])
    with pytest.raises(InputError, match="NaN"):
        train_classifier(images * float("nan"), labels)
    with pytest.raises(InputError, match="trained on images of shape"):
        classifier(torch.zeros(2, 3, 8, 8))


@pytest.mark.slow
def test_digits_in_four_seconds(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = digits
    start = time.perf_counter()
    train_classifier(images[797:], labels[797:])
    assert time.perf_counter() - start < 4.0
