"""The figures: functions from what the views compute to a figure in the shared style."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato.analysis.content_detail import ContentDetail, Stitching
from sfumato.analysis.forward import Strip
from sfumato.analysis.hierarchy import Hierarchy
from sfumato.analysis.marginals import Marginals
from sfumato.analysis.schedules import LossCurve, ScheduleCurves
from sfumato.analysis.spectrum import SpectrumView
from sfumato.analysis.style import COLOURS, FAINT, INK, NOISE, aspect, bare, colours, figure, show, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIME = "time $t$   (0 data, 1 noise)"


@styled
def marginals(view: Marginals, title: str) -> Figure:
    """The density over time as a map with lines of flow on it; in two dimensions as a row of maps."""
    return _planes(view, title) if view.density.ndim == 3 else _ribbon(view, title)


def _ribbon(view: Marginals, title: str) -> Figure:
    from matplotlib.ticker import MaxNLocator

    drawn = figure(9.0, 4.2)
    left, middle, right = drawn.subplots(1, 3, width_ratios=(1.0, 6.0, 1.0), sharey=True)
    axis = view.axis.numpy()
    # each column by its own height: a narrow density would drown the others
    shade = (view.density / view.density.amax(1, keepdim=True)).mT.numpy()
    middle.pcolormesh(
        view.times.numpy(), axis, shade, cmap="Blues", vmin=0.0, vmax=1.25, shading="gouraud", rasterized=True
    )
    middle.plot(view.line_times.numpy(), view.lines[..., 0].numpy(), color=COLOURS[1], linewidth=0.9)
    middle.set(xlabel=TIME, xlim=(0.0, 1.0), ylim=(float(axis[0]), float(axis[-1])))
    middle.set_title(title)
    for side, density, name in ((left, view.density[0], "$q(x_0)$"), (right, view.density[-1], "$q(x_1)$")):
        values = density.numpy()
        side.fill_betweenx(axis, 0.0, values, color=COLOURS[0], alpha=0.35, linewidth=0.0)
        side.plot(values, axis, color=COLOURS[0])
        side.set_title(name, loc="center")
        side.set_xlim(0.0, 1.1 * float(values.max()))
        side.set_xticks([])
        for spine in side.spines.values():
            spine.set_visible(False)
    left.invert_xaxis()
    middle.set_ylabel(r"$x_t\, /\, \sqrt{\alpha^2 + \sigma^2}$")
    middle.yaxis.set_major_locator(MaxNLocator(7, integer=True))
    for side in (left, right):
        side.tick_params(left=False, labelleft=False)
    middle.tick_params(labelleft=True)
    return drawn


def _planes(view: Marginals, title: str) -> Figure:
    count = len(view.times)
    drawn = figure(2.5 * count, 3.0)
    drawn.suptitle(title, x=0.01, ha="left", fontsize=11.0)
    limit = float(view.axis[-1])
    for i, axes in enumerate(np.atleast_1d(drawn.subplots(1, count))):
        density, t = view.density[i], float(view.times[i])
        axes.imshow(
            (density / density.max()).sqrt().numpy(),
            extent=(-limit, limit, -limit, limit),
            origin="lower",
            cmap="Blues",
            vmax=1.2,
            interpolation="bilinear",
        )
        # the flow runs from the noise down to this time
        passed = view.line_times >= t - 1e-9
        part = view.lines[passed].numpy()
        axes.plot(part[..., 0], part[..., 1], color=COLOURS[1], linewidth=0.7, alpha=0.75)
        axes.scatter(part[0, :, 0], part[0, :, 1], s=6.0, color=COLOURS[1], zorder=3)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        axes.set_title(f"$t = {t:.2g}$", loc="center")
        bare(axes)
    return drawn


@styled
def spectrum(view: SpectrumView, title: str) -> Figure:
    """Left the spectrum of ``x_t`` at each time, right when each frequency drowns."""
    drawn = figure(10.0, 4.4)
    left, right = drawn.subplots(1, 2, width_ratios=(1.25, 1.0))
    # the mean has no place on a logarithmic axis
    seen = view.frequency > 0.0
    f = view.frequency[seen].numpy()
    for i, (t, colour) in enumerate(zip(view.times.tolist(), colours(len(view.times)), strict=True)):
        # as x_t / sqrt(alpha^2 + sigma^2): the noise ends at 1 under every schedule
        norm = view.alpha[i].square() + view.noise[i]
        analytic, measured, error = ((v[i] / norm)[seen].numpy() for v in (view.analytic, view.measured, view.error))
        left.plot(f, analytic, color=colour, label=f"{t:.2g}")
        left.errorbar(f, measured, 2.0 * error, fmt="o", markersize=3.0, color=colour, elinewidth=0.8)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="frequency (cycles per pixel)",
        ylabel=r"power of $x_t / \sqrt{\alpha^2 + \sigma^2}$",
    )
    left.axhline(1.0, color=NOISE, linewidth=1.2, linestyle=":", label="noise alone")
    left.legend(title="time $t$", loc="center left", bbox_to_anchor=(1.0, 0.5))
    left.set_title(title)
    _frequency_ticks(left, f)
    times = view.drowning_time[seen].numpy()
    right.plot(f, times, color=COLOURS[0], marker="o", markersize=3.5)
    right.fill_between(f, times, 1.0, color=NOISE, alpha=0.15, linewidth=0.0)
    right.fill_between(f, 0.0, times, color=COLOURS[0], alpha=0.12, linewidth=0.0)
    right.set(xscale="log", xlabel="frequency (cycles per pixel)", ylabel=TIME, ylim=(0.0, 1.0))
    right.text(0.96, 0.94, "drowned in noise", transform=right.transAxes, ha="right", va="top", color=NOISE)
    right.text(0.07, 0.06, "data stronger", transform=right.transAxes, color=COLOURS[0])
    right.set_title("When signal and noise are equal")
    _frequency_ticks(right, f)
    return drawn


def _frequency_ticks(axes: Axes, frequency: Any) -> None:
    if len(frequency) < 2:
        return
    from matplotlib.ticker import NullLocator

    low = math.ceil(-math.log2(float(frequency[-1])))
    high = math.floor(-math.log2(float(frequency[0])))
    powers = [2**i for i in range(high, low - 1, -1)]
    axes.set_xticks([1.0 / p for p in powers], [f"1/{p}" for p in powers])
    axes.xaxis.set_minor_locator(NullLocator())


def _time_axis(axes: Axes) -> None:
    axes.set(xlabel=TIME, xlim=(-0.015, 1.015))


@styled
def schedules(views: Mapping[str, ScheduleCurves], title: str) -> Figure:
    """Signal and noise, log-SNR and beta of several schedules."""
    drawn = figure(11.0, 3.8)
    first, second, third = drawn.subplots(1, 3)
    for i, (name, view) in enumerate(views.items()):
        colour = COLOURS[i % len(COLOURS)]
        norm = (view.alpha.square() + view.sigma.square()).sqrt()
        t = view.times.numpy()
        first.plot(t, (view.alpha / norm).numpy(), color=colour, label=name)
        first.plot(t, (view.sigma / norm).numpy(), color=colour, linestyle="--", linewidth=1.2)
        second.plot(t[1:], view.log_snr[1:].numpy(), color=colour)
        third.plot(t[1:], view.beta.numpy(), color=colour)
    first.set(title=title, ylabel=r"of $x_t$: signal (solid), noise (dashed)", ylim=(0.0, 1.03))
    second.axhline(0.0, color=NOISE, linewidth=1.0, linestyle=":")
    second.set(title="Log signal-to-noise ratio", ylabel=r"$\log\, \alpha^2 / \sigma^2$", ylim=(-18.0, 18.0))
    third.set(title="Noise added per unit of time", ylabel=r"$T \beta_t$", yscale="log", ylim=(1e-2, 2e3))
    for axes in (first, second, third):
        _time_axis(axes)
    handles, labels = first.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return drawn


@styled
def loss(view: LossCurve, title: str, name: str) -> Figure:
    """The loss over time beside the closed form of a Gaussian."""
    drawn = figure(7.5, 4.2)
    axes = drawn.subplots()
    t = view.times.numpy()
    axes.plot(t, view.gaussian.numpy(), color=NOISE, label="Gaussian fitted to the data, closed form")
    axes.errorbar(
        t,
        view.measured.numpy(),
        2.0 * view.error.numpy(),
        color=COLOURS[0],
        marker="o",
        markersize=3.5,
        elinewidth=1.0,
        label=f"{name}, measured (2 standard errors)",
    )
    axes.set(yscale="log", ylabel=r"$\Vert \hat\epsilon - \epsilon \Vert^2 / D$")
    axes.set_title(title)
    _time_axis(axes)
    axes.legend(loc="best")
    return drawn


@styled
def strip(view: Strip, title: str) -> Figure:
    """The images of a chain, a row each, left to right; of a reverse chain, the estimates of the data below."""
    count, rows = view.images.shape[:2]
    shape = tuple(view.images.shape[2:])
    each = 1 if view.x0 is None else 2
    drawn = figure(10.0, rows * each * 10.0 / count * aspect(shape) + 0.75)
    drawn.suptitle(title, x=0.01, ha="left", fontsize=11.0)
    grid = np.asarray(drawn.subplots(rows * each, count, squeeze=False))
    norm = (view.alpha.square() + view.sigma.square()).sqrt()
    for column in range(count):
        grid[0, column].set_title(f"$t = {float(view.times[column]):.2g}$", loc="center", fontsize=9.0)
        for row in range(rows):
            x = view.images[column, row] / float(norm[column])
            show(grid[row * each, column], x)
            if view.x0 is not None:
                show(grid[row * each + 1, column], view.x0[column, row])
    if each == 2:
        for line in range(2 * rows):
            label = r"$\hat x_0$" if line % 2 else "$x_t$"
            grid[line, 0].set_ylabel(label, rotation=0, ha="right", va="center")
    return drawn


@styled
def content_detail(view: ContentDetail, title: str, shown: int = 3) -> Figure:
    """The images regenerated from each level, and what of each band survived."""
    columns = _spread(len(view.times), 8)
    rows = min(shown, len(view.original))
    tiles = torch.stack([view.original, *[view.regenerated[i] for i in columns]], 1)[:rows]
    names = ["original", *[f"$t = {float(view.times[i]):.2g}$" for i in columns]]
    drawn, axes = _pictures_and_curve(tiles, names, title)
    order = view.times.argsort()
    for band, name in enumerate(view.bands):
        t = view.times[order].numpy()
        axes.plot(t, view.gaussian[order, band].numpy(), color=COLOURS[band], linestyle=":", linewidth=1.3)
        axes.plot(t, view.correlation[order, band].numpy(), color=COLOURS[band], marker="o", markersize=3.0, label=name)
    axes.plot([], [], color=FAINT, linestyle=":", linewidth=1.3, label="Gaussian data,\nclosed form")
    axes.set(ylabel="correlation with the original", ylim=(-0.15, 1.03))
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    _time_axis(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


@styled
def stitching(view: Stitching, title: str, content: str, detail: str, shown: int = 3) -> Figure:
    """Samples for each time of switching, and whose sample each band follows."""
    columns = _spread(len(view.switches), 8)
    rows = min(shown, view.images.shape[1])
    tiles = torch.stack([view.images[i] for i in columns], 1)[:rows]
    names = [f"{float(view.switches[i]):.2g}" for i in columns]
    drawn, axes = _pictures_and_curve(tiles, names, title)
    for band, name in enumerate(view.bands):
        t, colour = view.switches.numpy(), COLOURS[band]
        axes.plot(t, view.to_content[:, band].numpy(), color=colour, marker="o", markersize=3.0, label=name)
        axes.plot(t, view.to_detail[:, band].numpy(), color=colour, linestyle="--", linewidth=1.2)
    axes.plot([], [], color=INK, label=f"with {content} alone")
    axes.plot([], [], color=INK, linestyle="--", linewidth=1.2, label=f"with {detail} alone")
    axes.set(xlabel="time of switching", ylabel="correlation", xlim=(-0.015, 1.015))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _pictures_and_curve(tiles: Tensor, names: list[str], title: str) -> tuple[Figure, Axes]:
    """A figure with a table of pictures above and axes below."""
    rows, columns = tiles.shape[:2]
    height = rows * 9.5 / columns * aspect(tuple(tiles.shape[2:])) + 0.4
    drawn = figure(9.5, height + 3.2)
    above, below = np.asarray(drawn.subfigures(2, 1, height_ratios=(height + 0.3, 2.9)))
    above.suptitle(title, x=0.01, ha="left", fontsize=11.0)
    grid = np.asarray(above.subplots(rows, columns, squeeze=False))
    for column, name in enumerate(names):
        grid[0, column].set_title(name, loc="center", fontsize=9.0)
        for row in range(rows):
            show(grid[row, column], tiles[row, column])
    return drawn, below.subplots()


@styled
def hierarchy(view: Hierarchy, gaussian: Hierarchy, title: str, who: str) -> Figure:
    """The bits of each latent, the prior and the decoder, and how they add up from the noise to the data."""
    drawn = figure(10.0, 4.0)
    left, right = drawn.subplots(1, 2, width_ratios=(1.5, 1.0))
    # the data are on the left, as on every axis of time: place 0 is the decoder's, the last one the prior's
    steps = len(view.bits)
    places = np.arange(steps, 0, -1)
    left.bar(places, view.bits.numpy(), width=0.85, color=COLOURS[0], alpha=0.8, label=f"$L_{{t-1}}$: {who}")
    left.step(
        np.concatenate([places + 0.5, [0.5]]),
        np.concatenate([gaussian.bits.numpy(), gaussian.bits[-1:].numpy()]),
        where="post",
        color=INK,
        linewidth=1.2,
        label="the same of the Gaussian fitted to the data, closed form",
    )
    for place, term, name, colour in (
        (steps + 1, view.prior, "$L_T$: the prior", COLOURS[2]),
        (0, view.decoder, "$L_0$: the decoder", COLOURS[1]),
    ):
        if term is not None:
            left.bar([place], [term], width=0.85, color=colour, label=f"{name}, {term:.2g}")
    left.set_title(title)
    top = float(torch.cat([view.bits, gaussian.bits, torch.tensor([view.decoder or 0.0])]).max())
    left.set_ylim(0.0, 1.45 * top)
    # the line of the Gaussian last
    handles, labels = left.get_legend_handles_labels()
    left.legend(handles[1:] + handles[:1], labels[1:] + labels[:1], loc="upper left", fontsize=8.0)
    # what is known of a latent stands between the step that ends there and the next
    between = np.arange(steps, -1, -1) + 0.5
    right.plot(between, view.known.numpy(), color=COLOURS[0], label=who)
    right.plot(between, gaussian.known.numpy(), color=INK, linewidth=1.2, label="Gaussian, closed form")
    if view.decoder is not None:
        last = float(view.known[-1])
        right.plot([0.5, -0.5], [last, view.total], color=COLOURS[1], linewidth=1.2)
        right.scatter([-0.5], [view.total], color=COLOURS[1], zorder=3, label=f"with the decoder: {view.total:.2f}")
    right.set_ylim(bottom=0.0)
    right.set_title("Known once the latents down to $t$ are drawn")
    right.legend(loc="best", fontsize=8.0)
    for axes, count in ((left, 7), (right, 5)):
        shown = _spread(steps, count)
        axes.set_xticks([int(places[i]) for i in shown], [f"{float(view.times[i]):.2g}" for i in shown])
        axes.set(ylabel="bits per dimension", xlabel="time $t$ of the latent   (left data, right noise)")
        axes.set_xlim(-1.5, steps + 1.8)
    return drawn
