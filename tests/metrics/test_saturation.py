"""Saturation, contrast and colourfulness, by hand and by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.data import Dataset
from sfumato.errors import InputError
from sfumato.metrics import Evaluator
from sfumato.metrics.saturation import colourfulness, contrast, saturated, saturation


def test_values_at_the_limits_are_counted() -> None:
    images = torch.zeros(2, 1, 2, 2)
    images[0, 0, 0] = torch.tensor([1.0, -0.99])
    images[1, 0, 0] = torch.tensor([0.97, -0.98])
    assert saturated(images).tolist() == [0.5, 0.0]


def test_contrast_and_colourfulness_are_those_of_numpy() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8)).astype(np.float64)
    images = torch.from_numpy(pixels / 127.5 - 1.0).float()
    luminance = np.tensordot([0.299, 0.587, 0.114], pixels, (0, 1))
    assert contrast(images).tolist() == pytest.approx([one.std() for one in luminance], rel=1e-4)
    red, green, blue = pixels.transpose(1, 0, 2, 3)
    a, b = red - green, 0.5 * (red + green) - blue
    expected = [np.hypot(x.std(), y.std()) + 0.3 * np.hypot(x.mean(), y.mean()) for x, y in zip(a, b, strict=True)]
    assert colourfulness(images).tolist() == pytest.approx(expected, rel=1e-4)
    assert float(colourfulness(torch.full((1, 3, 4, 4), 0.3))) == pytest.approx(0.0, abs=1e-4)
    # halves of black and white deviate by half of the range
    halves = torch.cat([torch.full((1, 1, 4, 4), -1.0), torch.full((1, 1, 4, 4), 1.0)], dim=2)
    assert float(contrast(halves)) == pytest.approx(127.5)


def test_rows_stand_beside_real_pictures() -> None:
    rng = np.random.default_rng(1)
    real = Dataset((rng.random((30, 3, 8, 8)) - 0.5).astype(np.float32), {}, "real")
    judge = Evaluator(real, spaces=("pixels",), measures=("fd", "saturation"), progress=False)
    report = judge(torch.from_numpy(np.asarray(real.images)) * 3.0)
    assert report["saturated values"].value == pytest.approx(1 - 0.98 / 1.5, abs=0.03)
    assert report["saturated values"].floor == 0.0 and report["contrast"].floor is not None
    assert report["contrast"].value > 2.0 * report["contrast"].floor
    grey = saturation(torch.zeros(4, 1, 4, 4))
    assert [row.measure for row in grey] == ["saturated values", "contrast"] and grey[0].floor is None
    with pytest.raises(InputError, match="images"):
        saturation(torch.zeros(4, 2))
    with pytest.raises(InputError, match="3 channels"):
        colourfulness(torch.zeros(4, 1, 4, 4))
