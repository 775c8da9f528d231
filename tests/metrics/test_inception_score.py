"""The inception score against torch-fidelity and where it is known."""

import importlib

import numpy as np
import pytest
import torch

from sfumato.errors import InputError
from sfumato.metrics import inception_score
from tests.metrics.fidelity import fidelity


def logits(n: int, classes: int, scale: float) -> torch.Tensor:
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(0))


def test_against_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """One split of all samples; and several, in our order."""
    metric_isc = fidelity("metric_isc")
    outputs = logits(403, 20, 3.0)
    peer = metric_isc.isc_features_to_metric(outputs, splits=1)
    found = inception_score(outputs, splits=1)
    assert found.value == pytest.approx(peer["inception_score_mean"], rel=1e-9) and found.error is None
    order = np.random.default_rng(1).permutation(403)
    module = importlib.import_module("sfumato.metrics.inception_score")
    monkeypatch.setattr(module, "permutation", lambda *_: order)
    peer = metric_isc.isc_features_to_metric(outputs[torch.from_numpy(order)], splits=10, shuffle=False)
    found = inception_score(outputs)
    assert found.value == pytest.approx(peer["inception_score_mean"], rel=1e-9)
    assert found.error == pytest.approx(peer["inception_score_std"], rel=1e-9)
    assert found.method == "standard deviation over 10 splits"


def test_probabilities_and_logits() -> None:
    outputs = logits(200, 5, 2.0)
    assert inception_score(outputs.softmax(dim=1)).value == pytest.approx(inception_score(outputs).value, rel=1e-5)


def test_known_scores() -> None:
    """Sure of one of 4 classes, equally often: 4. Of one class only: 1. Never sure: 1."""
    sure = torch.eye(4).repeat(10, 1)
    assert inception_score(sure, splits=1).value == pytest.approx(4.0, rel=1e-12)
    assert inception_score(sure[:1].repeat(40, 1), splits=4).value == pytest.approx(1.0, rel=1e-12)
    assert inception_score(torch.full((40, 4), 0.25), splits=2).value == pytest.approx(1.0, rel=1e-12)
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]).repeat(10, 1)
    assert inception_score(half, splits=1).value == pytest.approx(2.0, rel=1e-12)


def test_seed_shuffles() -> None:
    outputs = logits(100, 5, 2.0).sort(dim=0).values
    assert inception_score(outputs, seed=0) == inception_score(outputs, seed=0) != inception_score(outputs, seed=1)


@pytest.mark.usefixtures("unchecked")
def test_bad_input() -> None:
    for outputs, words in (
        (torch.zeros(99, 5), "at least 10 samples, and 99"),
        (torch.zeros(100, 1), "2 classes"),
        (torch.zeros(100), "2 classes"),
        (torch.full((100, 5), float("nan")), "NaN"),
    ):
        with pytest.raises(InputError, match=words):
            inception_score(outputs)
