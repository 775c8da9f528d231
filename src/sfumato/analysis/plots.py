"""From computed views to figures, in one style; matplotlib is imported only to plot."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.analysis import spread
from sfumato.analysis.frequency import BANDS, ContentDetail, Spectrum, Stitching
from sfumato.analysis.hierarchy import Hierarchy
from sfumato.analysis.processes import LossCurve, Marginals, Strip
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.io.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which the colour-blind can tell apart, in the order of use."""
INK, FAINT, NOISE = "#333333", "#8a8a8a", "#777777"
TIME, EDGES = "time $t$   (0 data, 1 noise)", (-0.015, 1.015)
SUFFIXES = (".png", ".svg")
SCALED = r"x_t / \sqrt{\alpha^2 + \sigma^2}"

_RIGHT: Any = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # of the axes, for a legend
_SETTINGS: Any = {
    **dict.fromkeys(("figure.dpi", "savefig.dpi"), 150),
    **dict.fromkeys(("figure.titlesize", "axes.titlesize"), 11.0),
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 9.0),
    **{"axes.titlelocation": "left", "axes.edgecolor": FAINT, "svg.hashsalt": "sfumato"},
    **{"lines.linewidth": 1.8, "lines.solid_capstyle": "round"},
}


@contextmanager
def styled() -> Generator[None]:
    """Plot in the shared style, and leave matplotlib's settings as they were; also a decorator."""
    import matplotlib.style

    with matplotlib.style.context(_SETTINGS, after_reset=True):
        yield


def figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of a size in inches, not registered with pyplot."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, height), layout="constrained")
    if title:
        canvas.suptitle(title, x=0.01, ha="left")
    return canvas


@styled()
def save(canvas: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a figure as ``NAME.png`` and ``NAME.svg``, each whole or not at all."""
    png, svg = (folder / f"{name}{end}" for end in SUFFIXES)
    atomic_write(png, lambda path: canvas.savefig(path, format="png", metadata={"Software": None}))
    atomic_write(svg, lambda path: canvas.savefig(path, format="svg", metadata={"Date": None}))
    return png, svg


def _show(axes: Axes, image: Float[Tensor, "channels *space"]) -> None:
    """An image, a signal or a vector in the range [-1, 1] of the data; values outside are clipped."""
    values = image.detach().float().cpu().numpy()
    if values.ndim > 3:
        raise InputError(f"Only vectors, signals and images can be plotted; got shape {tuple(image.shape)}.")
    axes.set(xticks=[], yticks=[], frame_on=False)
    if values.ndim == 3:
        # of other numbers of channels than 1, 3 and 4 the first is shown
        pixels = np.moveaxis(values, 0, -1) if values.shape[0] in (3, 4) else values[0]
        axes.imshow(np.clip(0.5 + 0.5 * pixels, 0.0, 1.0), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        return
    axes.set_ylim(-1.1, 1.1)
    if values.ndim == 2:
        for i, signal in enumerate(values):
            axes.plot(signal, linewidth=1.0, color=COLOURS[i % len(COLOURS)])
    else:
        axes.bar(range(len(values)), values, color=COLOURS[0])


def _images(canvas: Any, images: Float[Tensor, "columns rows channels *space"], names: list[str]) -> np.ndarray:
    """Fill a figure with a table of images, a name above each column."""
    columns, rows = images.shape[:2]
    grid = np.asarray(canvas.subplots(rows, columns, squeeze=False))
    for column, name in enumerate(names):
        grid[0, column].set_title(name, loc="center", fontsize=9.0)
        for row in range(rows):
            _show(grid[row, column], images[column, row])
    return grid


def _height(images: Float[Tensor, "columns rows channels *space"], width: float) -> float:
    """The height of a table of images of this width, with its names."""
    columns, rows, _, *space = images.shape
    return rows * width / columns * (space[0] / space[1] if len(space) == 2 else 0.66) + 0.25


def _at(times: Tensor) -> list[str]:
    return [f"$t = {t:.2g}$" for t in times.tolist()]


@styled()
def marginals(view: Marginals, title: str) -> Figure:
    """The density over time as a map with trajectories of the flow on it; in two dimensions a map per time."""
    return _planes(view, title) if view.density.ndim == 3 else _ribbon(view, title)


def _ribbon(view: Marginals, title: str) -> Figure:
    from matplotlib.ticker import MaxNLocator

    canvas = figure(9.0, 4.2)
    left, middle, right = canvas.subplots(1, 3, width_ratios=(1.0, 6.0, 1.0), sharey=True)
    axis = view.axis.numpy()
    # each column by its own height: a narrow density would outshine the others
    shade = (view.density / view.density.amax(1, keepdim=True)).mT.numpy()
    options: Any = {"cmap": "Blues", "vmin": 0.0, "vmax": 1.25, "shading": "gouraud", "rasterized": True}
    middle.pcolormesh(view.times.numpy(), axis, shade, **options)
    middle.plot(view.line_times.numpy(), view.lines[..., 0].numpy(), color=COLOURS[1], linewidth=0.9)
    middle.set(title=title, xlabel=TIME, ylabel=f"${SCALED}$", xlim=(0.0, 1.0), ylim=(float(axis[0]), float(axis[-1])))
    middle.yaxis.set_major_locator(MaxNLocator(7, integer=True))
    middle.tick_params(labelleft=True)
    for side, density, name in ((left, view.density[0], "$q(x_0)$"), (right, view.density[-1], "$q(x_1)$")):
        side.fill_betweenx(axis, 0.0, density.numpy(), color=COLOURS[0], alpha=0.35, linewidth=0.0)
        side.plot(density.numpy(), axis, color=COLOURS[0])
        side.set_title(name, loc="center")
        side.set(xlim=(0.0, 1.1 * float(density.max())), xticks=[], frame_on=False)
        side.tick_params(left=False, labelleft=False)
    left.invert_xaxis()
    return canvas


def _planes(view: Marginals, title: str) -> Figure:
    count, limit = len(view.times), float(view.axis[-1])
    canvas = figure(2.5 * count, 3.1, title)
    options: Any = {"extent": (-limit, limit) * 2, "origin": "lower", "cmap": "Blues", "vmax": 1.2}
    panels = zip(np.atleast_1d(canvas.subplots(1, count)), view.density, view.times.tolist(), strict=True)
    for axes, density, t in panels:
        axes.imshow((density / density.max()).sqrt().numpy(), interpolation="bilinear", **options)
        # the flow runs from the noise down to this time
        lines = view.lines[view.line_times >= t - 1e-9].numpy()
        axes.plot(lines[..., 0], lines[..., 1], color=COLOURS[1], linewidth=0.7, alpha=0.75)
        axes.scatter(lines[0, :, 0], lines[0, :, 1], s=6.0, color=COLOURS[1], zorder=3)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], frame_on=False)
        axes.set_title(f"$t = {t:.2g}$", loc="center", fontsize=10.0)
    return canvas


@styled()
def spectrum(view: Spectrum, title: str) -> Figure:
    """Left the spectrum of ``x_t`` at each time, right when each frequency drowns in the noise."""
    import matplotlib
    from matplotlib.ticker import NullLocator

    canvas = figure(10.5, 4.4)
    left, right = canvas.subplots(1, 2, width_ratios=(1.25, 1.0))
    # the mean, at frequency 0, has no place on a logarithmic axis
    seen = view.frequency > 0.0
    f = view.frequency[seen].numpy()
    for i, level in enumerate(view.levels):
        # dark to light, without the palest
        colour = matplotlib.colormaps["cividis"](0.88 * i / max(1, len(view.levels) - 1))
        # in units of alpha^2 + sigma^2 the noise ends at 1 under every schedule
        norm = float(level.alpha) ** 2 + float(level.sigma) ** 2
        analytic, measured, error = ((v[i] / norm)[seen].numpy() for v in (view.analytic, view.measured, view.error))
        left.plot(f, analytic, color=colour, label=f"{float(level.t):.2g}")
        left.errorbar(f, measured, 2.0 * error, fmt="o", markersize=3.0, color=colour, elinewidth=0.8)
    left.axhline(1.0, color=NOISE, linewidth=1.2, linestyle=":", label="pure noise")
    left.set(title=title, yscale="log", ylabel=f"power of ${SCALED}$")
    left.legend(title="time $t$", **_RIGHT)
    times = view.drowning_time[seen].numpy()
    right.plot(f, times, color=COLOURS[0], marker="o", markersize=3.5)
    right.fill_between(f, times, 1.0, color=NOISE, alpha=0.15, linewidth=0.0)
    right.fill_between(f, 0.0, times, color=COLOURS[0], alpha=0.12, linewidth=0.0)
    right.text(0.92, 0.94, "noise stronger", transform=right.transAxes, ha="right", va="top", color=NOISE)
    right.text(0.08, 0.06, "signal stronger", transform=right.transAxes, color=COLOURS[0])
    right.set(title="When signal and noise are equally strong", ylabel=TIME, ylim=(0.0, 1.0))
    for axes in (left, right):
        axes.set(xscale="log", xlabel="frequency (cycles per pixel)")
        if len(f) > 1:
            powers = range(math.floor(-math.log2(f[0])), math.ceil(-math.log2(f[-1])) - 1, -1)
            axes.set_xticks([0.5**i for i in powers], [f"1/{2**i}" for i in powers])
            axes.xaxis.set_minor_locator(NullLocator())
    return canvas


@styled()
def schedules(views: Mapping[str, tuple[Level, Tensor]], title: str) -> Figure:
    """Signal and noise, log-SNR and beta of several schedules."""
    canvas = figure(11.0, 3.8)
    first, second, third = panels = canvas.subplots(1, 3)
    for i, (name, (levels, beta)) in enumerate(views.items()):
        colour = COLOURS[i % len(COLOURS)]
        t, alpha, sigma, log_snr = (np.asarray(v) for v in (levels.t, levels.alpha, levels.sigma, levels.log_snr))
        first.plot(t, alpha / np.hypot(alpha, sigma), color=colour, label=name)
        first.plot(t, sigma / np.hypot(alpha, sigma), color=colour, linestyle="--", linewidth=1.2)
        second.plot(t[1:], log_snr[1:], color=colour)
        third.plot(t[1:], beta.numpy(), color=colour)
    second.axhline(0.0, color=NOISE, linewidth=1.0, linestyle=":")
    first.set(title=title, ylabel="signal (solid), noise (dashed)", ylim=(0.0, 1.03))
    second.set(title="Log signal-to-noise ratio", ylabel=r"$\log\, \alpha^2 / \sigma^2$", ylim=(-18.0, 18.0))
    third.set(title="Noise added per unit of time", ylabel=r"$T \beta_t$", yscale="log", ylim=(1e-2, 2e3))
    for axes in panels:
        axes.set(xlabel=TIME, xlim=EDGES)
    canvas.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=len(views))
    return canvas


@styled()
def loss(view: LossCurve, title: str, who: str) -> Figure:
    """The loss over time, with the closed form of a Gaussian."""
    canvas = figure(7.5, 4.2)
    axes, t = canvas.subplots(), view.times.numpy()
    axes.plot(t, view.gaussian.numpy(), color=NOISE, label="Gaussian fitted to the data, closed form")
    options: Any = {"color": COLOURS[0], "marker": "o", "markersize": 3.5, "elinewidth": 1.0}
    measured, error = view.measured.numpy(), 2.0 * view.error.numpy()
    axes.errorbar(t, measured, error, label=f"{who}, measured (± 2 standard errors)", **options)
    axes.set(title=title, yscale="log", ylabel=r"loss $\Vert \hat\epsilon - \epsilon \Vert^2 / D$")
    axes.set(xlabel=TIME, xlim=EDGES)
    axes.legend(loc="best")
    return canvas


@styled()
def strip(view: Strip, title: str) -> Figure:
    """A row of images for each chain; in a reverse chain, the estimates of the data below it."""
    images = view.images / view.scale.reshape(-1, *[1] * (view.images.ndim - 1)).to(view.images)
    if view.x0 is not None:
        images = torch.stack([images, view.x0], 2).flatten(1, 2)
    canvas = figure(10.0, _height(images, 10.0) + 0.3, title)
    grid = _images(canvas, images, _at(view.times))
    for row in range(len(grid) if view.x0 is not None else 0):
        grid[row, 0].set_ylabel(r"$\hat x_0$" if row % 2 else "$x_t$", rotation=0, ha="right", va="center")
    return canvas


def _images_above(images: Float[Tensor, "columns rows channels *space"], names: list[str], title: str) -> Any:
    """A figure with a table of images above, and the axes below it."""
    height = _height(images, 9.5) + 0.35
    canvas = figure(9.5, height + 2.9)
    above, below = np.asarray(canvas.subfigures(2, 1, height_ratios=(height, 2.9)))
    above.suptitle(title, x=0.01, ha="left")
    _images(above, images, names)
    return canvas, below.subplots()


def _bands(axes: Axes, t: Tensor, solid: Tensor, other: Tensor, style: str) -> None:
    """A solid line and one of another style for each band, in its colour."""
    for name, colour, one, two in zip(BANDS, COLOURS, solid.T.numpy(), other.T.numpy(), strict=False):
        axes.plot(t.numpy(), one, color=colour, marker="o", markersize=3.0, label=name)
        axes.plot(t.numpy(), two, color=colour, linestyle=style, linewidth=1.2)


@styled()
def content_detail(view: ContentDetail, title: str) -> Figure:
    """The images regenerated from each level, and what of each band survived."""
    columns = spread(len(view.times), 8)
    images = torch.cat([view.original[None], view.regenerated[columns]])[:, :3]
    canvas, axes = _images_above(images, ["original", *_at(view.times[columns])], title)
    order = view.times.argsort()
    _bands(axes, view.times[order], view.correlation[order], view.gaussian[order], ":")
    axes.plot([], [], color=FAINT, linestyle=":", linewidth=1.2, label="Gaussian data,\nclosed form")
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    axes.set(xlabel=TIME, xlim=EDGES, ylabel="correlation with the original", ylim=(-0.15, 1.03))
    axes.legend(**_RIGHT)
    return canvas


@styled()
def stitching(view: Stitching, title: str, content: str, detail: str) -> Figure:
    """Samples for each switching time, and which denoiser's sample each band follows."""
    columns = spread(len(view.switches), 8)
    names = [f"switch at {float(view.switches[i]):.2g}" for i in columns]
    canvas, axes = _images_above(view.images[columns, :3], names, title)
    _bands(axes, view.switches, view.to_content, view.to_detail, "--")
    axes.plot([], [], color=INK, label=f"with {content}")
    axes.plot([], [], color=INK, linestyle="--", linewidth=1.2, label=f"with {detail}")
    axes.set(xlabel="switching time $t$", ylabel="correlation with either's sample", xlim=EDGES)
    axes.legend(**_RIGHT)
    return canvas


@styled()
def hierarchy(view: Hierarchy, gaussian: Hierarchy, title: str, who: str) -> Figure:
    """The bits of each latent, the prior and the decoder, and how they add up from the noise to the data."""
    canvas = figure(10.0, 4.0)
    left, right = canvas.subplots(1, 2, width_ratios=(1.5, 1.0))
    # the data are on the left, as on every axis of time: place 0 is the decoder's, the last one the prior's
    steps = len(view.bits)
    places = np.arange(steps, 0, -1)
    left.bar(places, view.bits.numpy(), width=0.85, color=COLOURS[0], alpha=0.8, label=f"$L_{{t-1}}$, {who}")
    for place, term, name, colour in (
        (steps + 1, view.prior, "$L_T$, prior", COLOURS[2]),
        (0, view.decoder, "$L_0$, decoder", COLOURS[1]),
    ):
        if term is not None:
            left.bar([place], [term], width=0.85, color=colour, label=f"{name}: {term:.2g}")
    edges, bits = np.arange(steps, -1, -1) + 0.5, gaussian.bits.numpy()
    left.stairs(bits[::-1], edges[::-1], baseline=None, color=INK, linewidth=1.2, label="Gaussian fitted to the data")
    left.set(title=title, ylim=(0.0, 1.45 * max(float(view.bits.max()), float(bits.max()), view.decoder or 0.0)))
    left.legend(loc="upper left", fontsize=8.0)
    # what is known of a latent stands between the step that ends there and the next
    right.plot(edges, view.known.numpy(), color=COLOURS[0], label=who)
    right.plot(edges, gaussian.known.numpy(), color=INK, linewidth=1.2, label="Gaussian, closed form")
    if view.decoder is not None:
        right.plot([0.5, -0.5], [float(view.known[-1]), view.total], color=COLOURS[1], linewidth=1.2)
        right.scatter([-0.5], [view.total], color=COLOURS[1], zorder=3, label=f"with the decoder: {view.total:.2f}")
    right.set(title="Sum of the bits down to the latent", ylim=(0.0, None))
    right.legend(loc="best", fontsize=8.0)
    for axes, count in ((left, 7), (right, 5)):
        shown = spread(steps, count)
        axes.set_xticks(places[shown], [f"{float(view.times[i]):.2g}" for i in shown])
        axes.set(ylabel="bits per dimension", xlabel="time $t$ of the latent   (data left, noise right)")
        axes.set_xlim(-1.5, steps + 1.8)
    return canvas
