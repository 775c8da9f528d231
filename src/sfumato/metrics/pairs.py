"""Outputs compared with their truths, image by image: PSNR, SSIM, MS-SSIM, consistency and colour."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from sfumato.errors import InputError, SfumatoWarning
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.pictures import check_images

Channel = Literal["rgb", "y"]
PerPicture = Float64[Tensor, " batch"]

_CHUNK, _GPU_CHUNK = 1 << 15, 1 << 22  # values that are compared at once, in float64: as many as the cache holds
_LUMA = (65.481, 128.553, 24.966)  # of R, G and B in [0, 1], for Y from 16 to 235
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # for a data range of 1
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # the exponents of MS-SSIM, from fine to coarse


class Consistency(NamedTuple):
    """How far outputs, scaled down, are from their low-resolution inputs; both of shape ``(batch,)``."""

    psnr: PerPicture  # in dB
    mse: PerPicture  # of values in [0, 1], times 1e5


def psnr(
    output: Float[Tensor, "batch channels *space"],
    truth: Float[Tensor, "batch channels *space"],
    *,
    channel: Channel = "rgb",
    border: int = 0,
    rounded: bool = False,
) -> PerPicture:
    r"""The peak signal-to-noise ratio of each image, in dB, ``(batch,)`` in float64.

    .. math::
        10 \log_{10} \frac{R^2}{\operatorname{mean} (x - y)^2}

    :math:`R = 2` is the range of values in [-1, 1], and the mean is over the pixels and channels of an image.
    Identical images give infinity; `mean` says what becomes of it.

    Args:
        output: images, signals or vectors in [-1, 1].
        truth: what each of them should be.
        channel: all channels (``"rgb"``, grey too), or the luma Y of RGB images (``"y"``) by ITU-R BT.601, from 16 to
            235 of 255 as in MATLAB's ``rgb2ycbcr``. Papers on super-resolution report it; it is not rounded itself.
        border: how many pixels are cut from each side; those papers cut the factor of enlargement.
        rounded: clip and round both to 8 bits first, as images read from PNG files are.
    """
    return _each(_psnr, output, truth, channel, border, rounded)


def ssim(
    output: Float[Tensor, "batch channels *space"],
    truth: Float[Tensor, "batch channels *space"],
    *,
    channel: Channel = "rgb",
    border: int = 0,
    rounded: bool = False,
) -> PerPicture:
    r"""The structural similarity of each image (Wang et al. 2004), 1 for identical ones, ``(batch,)`` in float64.

    .. math::
        \operatorname{mean} \frac{2 \mu_x \mu_y + C_1}{\mu_x^2 + \mu_y^2 + C_1}
        \cdot \frac{2 \sigma_{xy} + C_2}{\sigma_x^2 + \sigma_y^2 + C_2}

    The moments are those under a Gaussian window of 11 pixels a side and :math:`\sigma = 1.5` that lies wholly in the
    image; :math:`C_1 = (0.01 R)^2` and :math:`C_2 = (0.03 R)^2` for the range :math:`R`. The values are moved to
    [0, :math:`R`] first, on which the first factor depends. It is the mean over the channels. The options are those of
    `psnr`; signals are compared along their length.
    """
    _require_sides("ssim", output, border, _WINDOW)
    return _each(_ssim, output, truth, channel, border, rounded)


def ms_ssim(
    output: Float[Tensor, "batch channels *space"],
    truth: Float[Tensor, "batch channels *space"],
    *,
    channel: Channel = "rgb",
    border: int = 0,
    rounded: bool = False,
) -> PerPicture:
    r"""The multi-scale structural similarity of each image (Wang et al. 2003), ``(batch,)`` in float64.

    .. math::
        l_5^{w_5} \prod_{j=1}^5 c_j^{w_j}, \qquad w = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

    :math:`c_j` is the mean of the second factor of `ssim` on an image that was halved :math:`j - 1` times by the
    means of 2 x 2 pixels; at the last scale, the mean of both factors' product is taken. A negative mean counts as 0.
    Sides must have 161 pixels for the window to fit the last scale. The options are those of `psnr`.
    """
    halvings = len(_SCALES) - 1
    _require_sides("ms_ssim", output, border, (_WINDOW - 1) * 2**halvings + 1)
    return _each(_ms_ssim, output, truth, channel, border, rounded)


def consistency(
    output: Float[Tensor, "batch channels height width"],
    low: Float[Tensor, "batch channels low_height low_width"],
    down: Callable[[Tensor], Tensor],
) -> Consistency:
    """How well enlarged images, scaled down again, agree with their low-resolution inputs.

    The mean squared error times 1e5 is the consistency that SR3 reports (Saharia et al. 2021, table 1: 2.68). Their
    paper does not state the range of values; here it is [0, 1].

    Args:
        output: enlarged images in [-1, 1].
        low: the images that they were made from, in [-1, 1].
        down: how ``low`` comes from an image; for anti-aliased bicubic interpolation,
            ``lambda x: sfumato.conditioning.low_resolution.scale_down(x, 4)``.
    """
    check_images("output", output)
    check_images("low", low)
    smaller = torch.cat([down(chunk.detach()) for chunk in output.split(_together(output))])
    if smaller.shape != low.shape:
        raise InputError(
            f"scaled down, the outputs have shape {tuple(smaller.shape)}, and the low-resolution images"
            f" {tuple(low.shape)}; give the function that made these."
        )
    error = _each(_mse, smaller, low, "rgb", 0, False)
    return Consistency(-10.0 * error.log10(), error * 1e5)


def colour_error(
    output: Float[Tensor, "batch channels *space"], truth: Float[Tensor, "batch channels *space"]
) -> PerPicture:
    """The Euclidean distance of the mean colours of each output and its truth, in units of 1/255, ``(batch,)``.

    Hue shifts, a known fault of super-resolution by diffusion, show in it and hardly in SSIM.
    """
    return _each(_colour_error, output, truth, "rgb", 0, False)


def mean(values: Float[Tensor, " batch"]) -> Estimate:
    """The mean of one value per image, with its standard error.

    With infinite values (the PSNR of identical images) the mean is infinite and has no error; its method tells how
    many they are.
    """
    values = values.detach().double().cpu()
    if values.ndim != 1 or len(values) == 0 or bool(values.isnan().any()):
        raise InputError(f"a mean needs one number per image, none of them NaN; got shape {tuple(values.shape)}.")
    count, method = len(values), "standard error of the mean"
    if infinite := int(values.isinf().sum()):
        return Estimate(float(values.mean()), None, f"{infinite} of {count} values are infinite")
    if count == 1:
        return Estimate(float(values), None, "a single value")
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(count), method)


def _each(
    measure: Callable[[Tensor, Tensor], Tensor],
    output: Tensor,
    truth: Tensor,
    channel: Channel,
    border: int,
    rounded: bool,
) -> PerPicture:
    """The measure of values in [0, 1], in float64, of a chunk of images at a time."""
    for what, images in (("output", output), ("truth", truth)):
        check_images(what, images)
        largest = float(images.detach().abs().max())
        if largest > 1.5:
            warnings.warn(
                f"{what} holds values up to {largest:.4g} in size, and [-1, 1] is expected: the measures of pairs"
                " count on this range. Scale or clip the values.",
                SfumatoWarning,
                stacklevel=3,
            )
    if output.shape != truth.shape:
        raise InputError(
            f"output has shape {tuple(output.shape)} and truth {tuple(truth.shape)}; each output needs its own truth"
            " of the same shape."
        )
    if channel not in ("rgb", "y") or (channel == "y" and (output.ndim != 4 or output.shape[1] != 3)):
        raise InputError(
            f"channel={channel!r} of images of shape {tuple(output.shape[1:])}: 'y' is the luma of RGB images"
            " (3, height, width); use 'rgb' for all channels of any kind."
        )
    if border < 0 or any(side <= 2 * border for side in output.shape[2:]):
        raise InputError(f"a border of {border} leaves nothing of images of shape {tuple(output.shape[1:])}.")

    def prepared(images: Tensor) -> Tensor:
        # Apple's GPUs have no float64
        device = torch.device("cpu") if output.device.type == "mps" else output.device
        values = (images.detach().to(device).double() + 1.0) / 2.0
        if rounded:
            values = (values.clamp(0.0, 1.0) * 255.0).round() / 255.0
        if channel == "y":
            values = (16.0 + torch.einsum("nchw,c->nhw", values, values.new_tensor(_LUMA)).unsqueeze(1)) / 255.0
        for dim in range(2, values.ndim):
            values = values.narrow(dim, border, values.shape[dim] - 2 * border)
        return values

    step = _together(output)
    chunks = zip(output.split(step), truth.split(step), strict=True)
    return torch.cat([measure(prepared(first), prepared(second)) for first, second in chunks])


def _together(images: Tensor) -> int:
    """How many images are compared at once."""
    return max(1, (_GPU_CHUNK if images.device.type == "cuda" else _CHUNK) // images[0].numel())


def _require_sides(what: str, images: Tensor, border: int, least: int) -> None:
    sides = [side - 2 * border for side in images.shape[2:]]
    if not sides or min(sides) < least:
        inside = f" without a border of {border}" if border else ""
        raise InputError(
            f"{what} needs sides of at least {least} pixels{inside}, and the shape is {tuple(images.shape)};"
            f" use {'ssim or ' if what == 'ms_ssim' else ''}psnr."
        )


def _mse(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().flatten(1).mean(dim=1)


def _psnr(x: Tensor, y: Tensor) -> Tensor:
    return -10.0 * _mse(x, y).log10()


def _colour_error(x: Tensor, y: Tensor) -> Tensor:
    return 255.0 * (x - y).flatten(2).mean(dim=2).norm(dim=1) if x.ndim > 2 else 255.0 * (x - y).norm(dim=1)


def _factors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, where the window lies in the image."""
    mean_x, mean_y = _windowed(x), _windowed(y)
    variances = _windowed(x * x) - mean_x.square() + _windowed(y * y) - mean_y.square()
    covariance = _windowed(x * y) - mean_x * mean_y
    luminance = (2.0 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return luminance, (2.0 * covariance + _C2) / (variances + _C2)


def _windowed(values: Tensor) -> Tensor:
    """The means under the Gaussian window, one side after another."""
    weights = [math.exp(-0.5 * ((k - _WINDOW // 2) / _SIGMA) ** 2) for k in range(_WINDOW)]
    total = sum(weights)
    for dim in range(2, values.ndim):
        length = values.shape[dim] - _WINDOW + 1
        sums = values.narrow(dim, 0, length) * (weights[0] / total)
        for k in range(1, _WINDOW):
            sums.add_(values.narrow(dim, k, length), alpha=weights[k] / total)
        values = sums
    return values


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    luminance, structure = _factors(x, y)
    return (luminance * structure).flatten(1).mean(dim=1)


def _ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    pool = functional.avg_pool1d if x.ndim == 3 else functional.avg_pool2d
    result = x.new_ones(x.shape[:2])
    for j, weight in enumerate(_SCALES):
        if j:
            # an odd side keeps its last pixel, as if it were repeated
            x, y = (pool(values, 2, ceil_mode=True, count_include_pad=False) for values in (x, y))
        luminance, structure = _factors(x, y)
        factor = structure * luminance if j == len(_SCALES) - 1 else structure
        result = result * factor.flatten(2).mean(dim=2).clamp(min=0.0) ** weight
    return result.mean(dim=1)
