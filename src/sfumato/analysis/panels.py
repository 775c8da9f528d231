"""Panels of super-resolution: the input, its enlargements, a closer look, and where samples differ."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sfumato.analysis.plots import COLOURS, INK, figure, styled
from sfumato.conditioning.low_resolution import scale_down
from sfumato.errors import InputError
from sfumato.io.files import atomic_write
from sfumato.metrics.pairs import consistency, psnr, ssim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Float[Tensor, "_ _ _"]
"""A picture (C, H, W) in [-1, 1], of any size."""

_TITLE = 105  # letters of a line of the title
_WINDOW = 11  # the least side that SSIM takes


@dataclass(frozen=True)
class Enlargements:
    """What is shown of one picture.

    Attributes:
        low: the input, in [-1, 1], like all others.
        samples: enlargements by the model.
        names: what each of them is called.
        scale: how many times larger they are.
        down: how a picture is scaled down, to judge whether enlargements agree with the input.
        regression: the enlargement by a model that was trained for the least error.
        truth: the picture that the input is the small version of.
    """

    low: Values
    samples: Sequence[Values]
    names: Sequence[str]
    scale: int
    down: Literal["bicubic", "area"] = "bicubic"
    regression: Values | None = None
    truth: Values | None = None

    def __post_init__(self) -> None:
        sides = [side * self.scale for side in self.low.shape[1:]]
        if self.truth is None:
            return
        # a picture whose sides the scale does not divide was cut before it was scaled down
        if any(not 0 <= had - side < self.scale for had, side in zip(self.truth.shape[1:], sides, strict=True)):
            held = f"{self.truth.shape[2]}x{self.truth.shape[1]}"
            raise InputError(f"The truth has {held} pixels, and the enlargements have {sides[1]}x{sides[0]}.")


@dataclass(frozen=True)
class _View:
    name: str
    notes: str
    picture: Values  # in colours
    map: Float[Tensor, "height width"] | None = None  # in place of the picture


def spread(samples: Sequence[Values]) -> Float[Tensor, "height width"]:
    """The standard deviation of each pixel over samples, in units of 1/255: where a model invents.

    It is the root of the mean variance over the channels, with :math:`n - 1` in the denominator.
    """
    return torch.stack(list(samples)).var(0).mean(0).sqrt() * 127.5


def place_of_most(map_: Float[Tensor, "height width"], side: int, margin: int = 0) -> tuple[int, int]:
    """The upper left corner of the square of a ``side`` in which the mean is the highest."""
    means = functional.avg_pool2d(map_[None, None].double(), side, 1)[0, 0]
    inner = means[margin : means.shape[0] - margin, margin : means.shape[1] - margin]
    row, column = divmod(int(inner.argmax()), inner.shape[1])
    return row + margin, column + margin


def _colours(values: Values) -> Float[Tensor, "3 height width"]:
    """A picture in RGB, over white where it is transparent."""
    if values.shape[0] in (2, 4):
        opacity = 0.5 + 0.5 * values[-1:]
        values = values[:-1] * opacity + 1.0 - opacity
    return values.float().clamp(-1.0, 1.0).expand(3, -1, -1)


def _views(shown: Enlargements) -> list[_View]:
    low = _colours(shown.low)
    large: Any = {"scale_factor": shown.scale}
    nearest = functional.interpolate(low[None], **large, mode="nearest")[0]
    bicubic = functional.interpolate(low[None], **large, mode="bicubic")[0].clamp(-1.0, 1.0)
    truth = None
    if shown.truth is not None:
        truth = _colours(shown.truth)[:, : nearest.shape[1], : nearest.shape[2]]

    def view(name: str, picture: Values) -> _View:
        return _View(name, _judged(picture, truth, low, shown), picture)

    views = [_View("input, enlarged by repetition", f"{low.shape[2]}x{low.shape[1]} pixels", nearest)]
    views.append(view("bicubic", bicubic))
    if shown.regression is not None:
        views.append(view("regression", _colours(shown.regression)))
    views += [view(name, _colours(sample)) for name, sample in zip(shown.names, shown.samples, strict=True)]
    if truth is not None:
        views.append(_View("truth", f"{truth.shape[2]}x{truth.shape[1]} pixels", truth))
    if len(shown.samples) > 1:
        map_ = spread([_colours(sample) for sample in shown.samples])
        notes = f"standard deviation, mean {float(map_.mean()):.1f} of 255"
        views.append(_View(f"where {len(shown.samples)} samples differ", notes, nearest, map_))
    return views


def _judged(picture: Values, truth: Values | None, low: Values, shown: Enlargements) -> str:
    """The measures of a picture in a line or two."""
    said: list[str] = []
    if truth is not None:
        said.append(f"PSNR {float(psnr(picture[None], truth[None], rounded=True)):.2f} dB")
        if min(picture.shape[1:]) >= _WINDOW:
            said.append(f"SSIM {float(ssim(picture[None], truth[None], rounded=True)):.3f}")
    agreement = consistency(picture[None], low[None], lambda x: scale_down(x, shown.scale, shown.down))
    said.append(f"consistency {float(agreement.psnr):.1f} dB")
    return "\n".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


@styled()
def enlargements(shown: Enlargements, title: str) -> Figure:
    """The pictures in rows of four, each with a closer look below it at the place that a frame marks.

    That is where samples differ most; of one sample, where it has most detail that bicubic interpolation lacks.
    """
    views = _views(shown)
    height, width = views[0].picture.shape[1:]
    side = min(max(min(height, width) // 5, 12 * shown.scale), height, width)
    detail = views[-1].map
    if detail is None:
        detail = (_colours(shown.samples[0]) - views[1].picture).abs().mean(0)
    row, column = place_of_most(detail, side, min(shown.scale, (min(height, width) - side) // 2))
    # four side by side where that saves a row, else three
    across = min(4 if -(-len(views) // 4) < -(-len(views) // 3) else 3, len(views))
    bands = -(-len(views) // across)
    each = 11.0 / max(across, 3)
    ratio = min(max(height / width, 0.25), 2.0)
    canvas = figure(each * across, bands * (each * (ratio + 1.0) + 0.6) + 0.45, textwrap.fill(title, _TITLE))
    tables = canvas.subplots(2 * bands, across, squeeze=False, height_ratios=[ratio, 1.0] * bands)
    for axes in tables.flat:
        axes.set_axis_off()
    # a few pixels that differ most would leave all others dark
    most = 0.0 if views[-1].map is None else float(np.quantile(views[-1].map.numpy(), 0.998))
    for number, view in enumerate(views):
        band, place = divmod(number, across)
        whole, close = tables[2 * band, place], tables[2 * band + 1, place]
        whole.set_title(view.name, loc="center", fontsize=9.0)
        _show(whole, view, most, "auto")
        frame: Any = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 1.2}
        from matplotlib.patches import Rectangle

        whole.add_patch(Rectangle((column - 0.5, row - 0.5), side, side, **frame))
        cut = _View(
            view.name,
            "",
            view.picture[:, row : row + side, column : column + side],
            None if view.map is None else view.map[row : row + side, column : column + side],
        )
        mappable = _show(close, cut, most, "nearest")
        close.add_patch(Rectangle((0.0, 0.0), 1.0, 1.0, transform=close.transAxes, clip_on=False, **frame))
        close.text(0.5, -0.03, view.notes, transform=close.transAxes, ha="center", va="top", fontsize=8.0, color=INK)
        if view.map is not None:
            bar = canvas.colorbar(
                mappable, cax=close.inset_axes((0.06, 0.1, 0.6, 0.03)), orientation="horizontal", extend="max"
            )
            bar.outline.set_edgecolor("white")  # pyright: ignore[reportCallIssue]
            bar.ax.tick_params(labelsize=8.0, color="white", labelcolor="white")
    return canvas


def _show(axes: Axes, view: _View, most: float, interpolation: str) -> Any:
    if view.map is not None:
        return axes.imshow(view.map.numpy(), cmap="magma", vmin=0.0, vmax=max(most, 1e-6), interpolation=interpolation)
    pixels = view.picture.movedim(0, -1).mul(0.5).add(0.5).clamp(0.0, 1.0)
    return axes.imshow(pixels.numpy(), interpolation=interpolation)


@styled()
def save(canvas: Figure, path: Path) -> None:
    """Write a panel as PNG, whole or not at all."""
    atomic_write(path, lambda temporary: canvas.savefig(temporary, format="png"))
