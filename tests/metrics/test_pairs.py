"""Measures of pairs against scikit-image, SciPy, Pillow and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from sfumato.conditioning.low_resolution import scale_down
from sfumato.errors import InputError, SfumatoWarning
from sfumato.metrics import pairs


def images(*shape: int, noise: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth images in [-1, 1] and the same with noise of another strength in each."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=shape)
    for axis in range(2, len(shape)):
        smooth = ndimage.gaussian_filter1d(smooth, 2.0, axis=axis)
    truth = np.clip(smooth / smooth.std() * 0.5, -1.0, 1.0)
    strength = noise * (1.0 + np.arange(shape[0])).reshape(-1, *[1] * (len(shape) - 1))
    output = np.clip(truth + strength * rng.normal(size=shape), -1.0, 1.0)
    return torch.from_numpy(output), torch.from_numpy(truth)


def skimage_ssim(x: Tensor, y: Tensor) -> float:
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    first, second = ((values.numpy() + 1.0) / 2.0 for values in (x, y))
    return float(structural_similarity(first, second, channel_axis=0, **settings))


def luma(x: Tensor) -> Tensor:
    """Y of scikit-image's ``rgb2ycbcr``, from 16 to 235, as values in [-1, 1]."""
    return torch.from_numpy(rgb2ycbcr(((x + 1.0) / 2.0).numpy(), channel_axis=1))[:, :1] / 127.5 - 1.0


def test_psnr_of_a_constant_offset() -> None:
    truth = torch.rand(3, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    offsets = torch.tensor([0.02, 0.2, 0.002], dtype=torch.float64)
    found = pairs.psnr(truth + offsets[:, None, None, None], truth)
    torch.testing.assert_close(found, torch.tensor([40.0, 20.0, 60.0], dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 1, 13, 17), (3, 3, 31, 12), (2, 2, 40), (5, 3, 1, 1), (6, 2)])
def test_psnr_against_scikit_image(shape: tuple[int, ...]) -> None:
    output, truth = images(*shape)
    expected = [
        peak_signal_noise_ratio(y.numpy(), x.numpy(), data_range=2.0) for x, y in zip(output, truth, strict=True)
    ]
    assert pairs.psnr(output, truth).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", [(3, 1, 13, 17), (2, 3, 31, 12), (2, 3, 11, 11), (2, 2, 40)])
def test_ssim_against_scikit_image(shape: tuple[int, ...]) -> None:
    output, truth = images(*shape)
    expected = [skimage_ssim(x, y) for x, y in zip(output, truth, strict=True)]
    found = pairs.ssim(output, truth)
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx(expected, abs=1e-10)
    assert pairs.ssim(output.float(), truth.float()).tolist() == pytest.approx(expected, abs=1e-6)
    assert min(expected) < 0.9, "images that differ"


@pytest.mark.parametrize("measure", [pairs.psnr, pairs.ssim])
def test_luma_border_and_rounding(measure: Callable[..., Tensor]) -> None:
    output, truth = images(2, 3, 21, 24)
    torch.testing.assert_close(
        measure(output, truth, channel="y"), measure(luma(output), luma(truth)), rtol=1e-12, atol=0
    )
    cut = [values[:, :, 4:-4, 4:-4] for values in (output, truth)]
    torch.testing.assert_close(measure(output, truth, border=4), measure(*cut))
    as_bytes = [np.rint((values.numpy() + 1.0) * 127.5) / 127.5 - 1.0 for values in (output, truth)]
    by_hand = measure(*map(torch.from_numpy, as_bytes))
    torch.testing.assert_close(measure(output, truth, rounded=True), by_hand)
    assert not torch.allclose(measure(output, truth), by_hand, rtol=1e-9)


def test_luma_of_white_and_black_is_235_and_16() -> None:
    white, black = torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)
    expected = -20.0 * math.log10(219.0 / 255.0)
    assert float(pairs.psnr(white, black, channel="y")) == pytest.approx(expected, abs=1e-4)
    assert float(pairs.psnr(white, black)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 161, 167), (2, 1, 176, 200), (1, 2, 185)])
def test_ms_ssim_against_scikit_image_at_each_scale(shape: tuple[int, ...]) -> None:
    """With a huge K1 the luminance of scikit-image's SSIM is 1, and what is left is contrast times structure."""
    output, truth = images(*shape)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for index, found in enumerate(pairs.ms_ssim(output, truth).tolist()):
        channels = []
        for channel in range(shape[1]):
            x, y = ((values[index, channel].numpy() + 1.0) / 2.0 for values in (output, truth))
            product = 1.0
            for scale, weight in enumerate(weights):
                k1 = 0.01 if scale == 4 else 1e6
                product *= structural_similarity(x, y, K1=k1, **settings) ** weight
                for axis in range(x.ndim):  # the mean of a pixel and the next, every second one
                    x, y = (ndimage.correlate1d(v, [0.5, 0.5], axis, mode="reflect", origin=-1) for v in (x, y))
                    x, y = (np.take(v, range(0, v.shape[axis], 2), axis) for v in (x, y))
            channels.append(product)
        assert found == pytest.approx(np.mean(channels), abs=1e-9)
        assert 0.2 < found < 0.99


def test_identical_pictures_and_opposite_ones() -> None:
    _, truth = images(2, 1, 161, 161)
    assert pairs.psnr(truth, truth).tolist() == [math.inf, math.inf]
    assert pairs.ssim(truth, truth).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert pairs.ms_ssim(truth, truth).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert pairs.ms_ssim(-truth, truth).tolist() == [0.0, 0.0]
    assert pairs.colour_error(truth, truth).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("measure", [pairs.psnr, pairs.ssim, pairs.colour_error])
def test_a_picture_does_not_depend_on_the_others(
    measure: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, truth = images(5, 3, 14, 12)
    whole = measure(output, truth)
    for index in range(5):
        assert torch.equal(measure(output[index : index + 1], truth[index : index + 1]), whole[index : index + 1])
    monkeypatch.setattr(pairs, "_CHUNK", 1100)  # two images at a time
    assert torch.equal(measure(output, truth), whole)


def test_colour_error_is_the_distance_of_the_means() -> None:
    _, truth = images(2, 3, 8, 8)
    shift = torch.tensor([[3.0, 0.0, -4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)[:, :, None, None] / 127.5
    ripple = torch.tensor([0.05, -0.05], dtype=torch.float64).repeat(4)
    found = pairs.colour_error(truth * 0.5 + shift + ripple, truth * 0.5)
    torch.testing.assert_close(found, torch.tensor([5.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)


def test_consistency_against_pillow() -> None:
    """The MSE on [0, 1] times 1e5 of images that Pillow scales down; its bicubic interpolation is ours."""
    output, truth = (values.float() for values in images(3, 1, 32, 48, noise=0.05))
    low = np.stack(
        [Image.fromarray(x.numpy()).resize((12, 8), Image.Resampling.BICUBIC) for x in truth[:, 0]]  # type: ignore[misc]
    )[:, None]
    made = np.stack(
        [Image.fromarray(x.numpy()).resize((12, 8), Image.Resampling.BICUBIC) for x in output[:, 0]]  # type: ignore[misc]
    )[:, None]
    mse = ((made - low) ** 2 / 4.0).mean(axis=(1, 2, 3))
    found = pairs.consistency(output, torch.from_numpy(low), lambda x: scale_down(x, 4))
    assert found.mse.tolist() == pytest.approx((mse * 1e5).tolist(), rel=1e-4)
    assert found.psnr.tolist() == pytest.approx((-10.0 * np.log10(mse)).tolist(), abs=1e-3)
    exact = pairs.consistency(truth, scale_down(truth, 4), lambda x: scale_down(x, 4))
    assert exact.mse.tolist() == [0.0] * 3 and exact.psnr.isinf().all()
    with pytest.raises(InputError, match="scaled down, the outputs have shape"):
        pairs.consistency(output, torch.from_numpy(low), lambda x: scale_down(x, 2))


def test_mean_and_its_standard_error() -> None:
    found = pairs.mean(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found.value == 3.0 and found.error == pytest.approx(math.sqrt(14.0 / 3.0 / 4.0))
    assert "standard error" in found.method
    assert pairs.mean(torch.tensor([4.0])) == (4.0, None, "a single value")
    infinite = pairs.mean(torch.tensor([30.0, math.inf, 40.0]))
    assert infinite.value == math.inf and infinite.error is None and "1 of 3" in infinite.method
    with pytest.raises(InputError, match="NaN"):
        pairs.mean(torch.tensor([1.0, math.nan]))


def test_the_standard_error_covers_the_truth() -> None:
    """Of 400 means of 50 values, about 68 % lie within one standard error of the expectation."""
    values = torch.randn(400, 50, generator=torch.Generator().manual_seed(1)).exp()
    estimates = [pairs.mean(row) for row in values]
    inside = sum(abs(e.value - math.exp(0.5)) < (e.error or 0.0) for e in estimates) / 400
    assert 0.58 < inside < 0.75


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("measure", [pairs.psnr, pairs.ssim, pairs.colour_error])
def test_bad_pictures(measure: Callable[..., Tensor]) -> None:
    good = torch.zeros(2, 3, 12, 12)
    with pytest.raises(InputError, match=r"output has shape .* truth"):
        measure(good, good[:1])
    with pytest.raises(InputError, match="floating-point"):
        measure((good * 255).to(torch.uint8), (good * 255).to(torch.uint8))
    with pytest.raises(InputError, match="truth holds NaN"):
        measure(good, good / 0.0)
    with pytest.warns(SfumatoWarning, match="up to 255"):
        measure(good + 255.0, good)


def test_bad_options() -> None:
    rgb, grey, pixel = torch.zeros(1, 3, 12, 12), torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 1, 1)
    with pytest.raises(InputError, match="luma of RGB"):
        pairs.psnr(grey, grey, channel="y")
    with pytest.raises(InputError, match="border of 6 leaves nothing"):
        pairs.psnr(rgb, rgb, border=6)
    with pytest.raises(InputError, match=r"sides of at least 11 .*border of 1"):
        pairs.ssim(rgb, rgb, border=1)
    with pytest.raises(InputError, match="at least 11"):
        pairs.ssim(pixel, pixel)
    with pytest.raises(InputError, match="at least 11"):
        pairs.ssim(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(InputError, match="at least 161"):
        pairs.ms_ssim(torch.zeros(1, 1, 160, 200), torch.zeros(1, 1, 160, 200))
