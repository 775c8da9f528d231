"""The topics that can be explained: each computes its view of a subject, draws it and says what it shows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.analysis import draw
from sfumato.analysis.content_detail import Stitching, content_detail, stitching, translated
from sfumato.analysis.forward import forward_chain, reverse_chain
from sfumato.analysis.hierarchy import gaussian_hierarchy, gaussian_variance, grey_values, hierarchy, latent_levels
from sfumato.analysis.marginals import bumps, marginals, smoothed, spiral
from sfumato.analysis.schedules import curves, loss_over_time
from sfumato.analysis.spectrum import spectrum
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoise, Denoiser, Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.variance import floor, learned
from sfumato.errors import InputError
from sfumato.sampling.sample import Step, initial

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Other:
    """A second denoiser, of another run.

    Attributes:
        who: the denoiser in words.
        shape: the images that it denoises.
        denoiser: the denoiser.
        schedule: its own schedule.
        same_classes: whether it takes the conditions of the subject.
    """

    who: str
    shape: tuple[int, ...]
    denoiser: Denoise
    schedule: Schedule
    same_classes: bool


@dataclass(frozen=True)
class Subject:
    """What is explained: data, and what denoises them.

    Attributes:
        name: what the data are called.
        given: whether a person named them; otherwise they stand in for nothing better.
        images: the data that are looked at, on the device of the denoiser.
        cond: their conditions.
        training: the training data that a Gaussian is fitted to.
        network: the denoiser of a run, if there is one.
        who: the denoiser in words.
        schedule: the noise schedule.
        levels: the grid of the sampler.
        step: the sampler.
        seed: of all noise.
        other: a second denoiser, for the topic that takes one.
    """

    name: str
    given: bool
    images: Float[Tensor, "batch channels *space"]
    cond: dict[str, Any]
    training: Float[Tensor, "train channels *space"]
    network: Denoise | None
    who: str
    schedule: Schedule
    levels: Level
    step: Step
    seed: int
    other: Other | None = None

    @functools.cached_property
    def gaussian(self) -> GaussianOracle:
        """The Gaussian of the training data: fitted when it is first asked for, since not every topic needs it."""
        if len(self.training) < 2:
            raise InputError(f"A Gaussian is fitted to at least 2 images; {self.name} has {len(self.training)}.")
        found = GaussianOracle.fit(self.training)
        if float(found.variances.max()) < 1e-12:
            raise InputError(f"All images of {self.name} are the same, so that there is nothing to denoise.")
        return found

    @property
    def denoiser(self) -> Denoise:
        """That of the run; without a run, the Gaussian's."""
        return self.gaussian if self.network is None else self.network

    def some(self, count: int) -> tuple[Tensor, dict[str, Any]]:
        """The first ``count`` images with their conditions."""
        return self.images[:count], {name: value[:count] for name, value in self.cond.items()}


Drawn = tuple["Figure", str]
"""A figure, and what it shows in one sentence with its numbers."""


def _times(subject: Subject, count: int) -> Tensor:
    """Times at which there is something to see: evenly spread in log-SNR, from almost clean to almost noise."""
    last = max(float(subject.schedule(1.0).log_snr), -9.0)
    levels = subject.schedule.at(torch.linspace(9.0, last, count, dtype=torch.float64))
    return torch.as_tensor(levels.t)


def explain_marginals(subject: Subject) -> Drawn:
    times = torch.linspace(0.0, 1.0, 161, dtype=torch.float64)
    if subject.given:
        along = subject.gaussian.principal_coordinates(subject.images.detach().cpu().double(), 1)
        density, name = smoothed(along), f"{subject.name} along their first principal axis"
    else:
        density, name = bumps(), "a mixture of three bumps"
    view = marginals(density, subject.schedule, times, seed=subject.seed)
    assert view.cdf is not None
    drift = float((view.cdf - view.cdf[-1]).abs().max())
    return draw.marginals(view, f"Diffused marginals of {name}"), (
        f"The density of {name} is carried to the noise along {view.lines.shape[1]} lines of flow, none of which "
        f"cross: the distribution function along each stays the same to {drift:.1e}."
    )


def explain_flow(subject: Subject) -> Drawn:
    schedule = subject.schedule
    times = torch.as_tensor(schedule.at(torch.tensor([9.0, 3.0, 1.0, -1.0, -4.0], dtype=torch.float64)).t)
    times[0] = 0.0
    if subject.given:
        if int((subject.gaussian.variances > 0.0).sum()) < 2:
            raise InputError(
                f"A flow in the plane needs data that vary in at least 2 directions, and {subject.name} vary in one; "
                "see the topic 'marginals'."
            )
        along = subject.gaussian.principal_coordinates(subject.images.detach().cpu().double(), 2)
        density, name = smoothed(along), f"{subject.name} along their first two principal axes"
    else:
        density, name = spiral(), "a spiral"
    view = marginals(density, schedule, times, positions=121, lines=60, steps=200, seed=subject.seed)
    length = view.lines.diff(dim=0).norm(dim=-1).sum(0)
    straight = (view.lines[0] - view.lines[-1]).norm(dim=-1)
    return draw.marginals(view, f"The flow between {name} and the noise"), (
        f"{view.lines.shape[1]} points of noise flow to {name}; their paths are "
        f"{float((length / straight).median()):.2f} times as long as the straight way (median)."
    )


def explain_spectrum(subject: Subject) -> Drawn:
    view = spectrum(subject.images, subject.schedule, _times(subject, 7), seed=subject.seed)
    seen = view.frequency > 0.0
    f, t, error = view.frequency[seen], view.drowning_time[seen], (view.measured - view.analytic) / view.error
    if not len(f):
        raise InputError(f"The images of {subject.name} are a single pixel: they have no frequencies to compare.")
    within = float((error.abs() < 2.0).double().mean())
    drowned = t.isfinite().nonzero()[:, 0]
    if len(drowned):
        low, high = int(drowned[0]), int(drowned[-1])
        what = (
            f"the coarsest frequency, {float(f[low]):.3g} cycles per pixel, drowns in the noise at "
            f"t = {float(t[low]):.2f} and the finest, {float(f[high]):.3g}, at t = {float(t[high]):.2f}"
        )
    else:
        what = "no frequency ever drowns in the noise"
    return draw.spectrum(view, f"Power spectrum of $x_t$: {subject.name}"), (
        f"Of {len(subject.images)} images of {subject.name}, {what}; {within:.0%} of the measured powers lie within "
        "two standard errors of the analytic ones."
    )


def _starts(levels: Level, count: int) -> list[int]:
    """Indices of a grid, its noise first, evenly spread over its levels with noise."""
    last = len(levels) - 2
    return sorted({round(i * last / max(1, count - 1)) for i in range(count)}, reverse=True)


def explain_content(subject: Subject) -> Drawn:
    images, cond = subject.some(256)
    told = ", told their classes" if cond else ""
    view = content_detail(
        subject.denoiser,
        images,
        subject.levels,
        subject.step,
        starts=_starts(subject.levels, 14),
        seed=subject.seed,
        **cond,
    )
    order = view.times.argsort()
    lost: list[str] = []
    for i, band in enumerate(view.bands):
        below = (view.correlation[order, i] < 0.5).nonzero()
        if len(below):
            lost.append(f"{band} from t = {float(view.times[order][below[0, 0]]):.2f}")
    said = ", ".join(lost) if lost else "none"
    return draw.content_detail(view, f"{subject.name} drawn anew from their own $x_t$ by {subject.who}"), (
        f"{len(images)} images of {subject.name} were diffused to t and drawn anew by {subject.who}{told}; the "
        f"bands whose correlation with the original is below one half are {said}."
    )


def explain_stitch(subject: Subject) -> Drawn:
    if subject.network is None:
        raise InputError(
            "Two denoisers are stitched: one of a run, one of another run or in closed form. Give a run, such as "
            "runs/digits."
        )
    _, cond = subject.some(64)
    shape = tuple(subject.images.shape[1:])
    detail, name = _detail(subject, shape)
    x = initial(subject.levels, shape, subject.seed, count=min(64, len(subject.images))).to(subject.images)
    columns = torch.as_tensor(subject.levels.t)
    picks = sorted({0.0, 1.0, *(float(columns[i]) for i in _starts(subject.levels, 12))})
    view = stitching(subject.denoiser, detail, x, subject.levels, subject.step, picks, seed=subject.seed, **cond)
    turns = [_turn(view, i) for i in (0, -1)]
    title = f"Above the time of switching {subject.who}, below it {name}"
    return draw.stitching(view, title, subject.who, name), (
        f"With {subject.who} above the time of switching and {name} below, the sample turns from the first one's to "
        f"the second one's {turns[0]} in its coarse and {turns[1]} in its fine content."
    )


def _detail(subject: Subject, shape: tuple[int, ...]) -> tuple[Denoise, str]:
    """The denoiser of the detail, and its name: that of the other run, or the Gaussian."""
    other = subject.other
    if other is None:
        return subject.gaussian, f"the Gaussian of {subject.name}"
    if other.shape != shape:
        raise InputError(
            f"Two denoisers are stitched if their images have one shape; those of {subject.who} have {shape}, those of "
            f"{other.who} {other.shape}."
        )
    found = translated(other.denoiser, other.schedule, subject.schedule)
    if other.same_classes:
        return found, other.who

    def unconditional(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        return found(x, level)

    return unconditional, other.who


def _turn(view: Stitching, band: int) -> str:
    """Where a sample of stitched denoisers begins to follow the second, in words."""
    follows = view.to_detail[:, band] > view.to_content[:, band]
    return f"at t = {float(view.switches[follows][0]):.2f}" if bool(follows.any()) else "nowhere"


def explain_schedules(subject: Subject) -> Drawn:
    views = {
        "linear": curves(schedules.linear()),
        "cosine": curves(schedules.cosine()),
        "EDM": curves(schedules.Karras()),
    }
    if subject.network is not None:
        views[f"that of {subject.who}"] = curves(subject.schedule)
    half = [
        f"{name} t = {float(torch.as_tensor(view.times[view.log_snr <= 0.0][0])):.2f}"
        for name, view in views.items()
        if bool((view.log_snr <= 0.0).any())
    ]
    ends = [f"{float(view.log_snr[-1]):.1f}" for view in views.values()]
    return draw.schedules(views, "Signal and noise"), (
        f"Signal and noise are equally strong at {', '.join(half)}; at t = 1 the log-SNR is {', '.join(ends)} in turn."
    )


def explain_loss(subject: Subject) -> Drawn:
    levels = subject.schedule(_times(subject, 16))
    view = loss_over_time(subject.denoiser, subject.images, levels, subject.gaussian, seed=subject.seed, **subject.cond)
    ratio = view.measured / view.gaussian
    best = int(ratio.argmin())
    return draw.loss(view, f"Denoising loss over time: {subject.name}", subject.who), (
        f"On {len(subject.images)} images of {subject.name}, the loss of {subject.who} is between "
        f"{float(ratio.min()):.2f} (at t = {float(view.times[best]):.2f}) and {float(ratio.max()):.2f} times that of a "
        "Gaussian fitted to the data."
    )


def explain_forward(subject: Subject) -> Drawn:
    images, _ = subject.some(3)
    last = max(float(subject.schedule(1.0).log_snr), -6.0)
    within = torch.as_tensor(subject.schedule.at(torch.linspace(5.0, last, 8, dtype=torch.float64)).t)
    times = torch.cat([within, torch.ones(1, dtype=torch.float64)]).unique()
    chain = forward_chain(images, subject.schedule(times), seed=subject.seed)
    end = subject.schedule(1.0)
    return draw.strip(chain, f"The forward process: {subject.name}"), (
        f"{len(images)} images of {subject.name} are noised step by step; at t = 1 a share of "
        f"{float(end.alpha) / math.hypot(float(end.alpha), float(end.sigma)):.2g} of the data is left in x_t."
    )


def explain_reverse(subject: Subject) -> Drawn:
    _, cond = subject.some(2)
    shape, count = tuple(subject.images.shape[1:]), 2
    x = initial(subject.levels, shape, subject.seed, count=count).to(subject.images)
    chain = reverse_chain(subject.denoiser, x, subject.levels, subject.step, keep=9, seed=subject.seed, **cond)
    assert chain.x0 is not None
    change = (chain.x0 - chain.x0[-1]).flatten(1).norm(dim=1) / chain.x0[-1].norm()
    settled = float(chain.times[(change > 0.25).nonzero()[-1, 0]]) if bool((change > 0.25).any()) else 1.0
    return draw.strip(chain, f"The reverse process: {subject.who}"), (
        f"{subject.who} draws {count} images in {len(subject.levels) - 1} steps; its estimate of the data is within a "
        f"quarter of the sample below t = {settled:.2f}."
    )


def explain_hierarchy(subject: Subject) -> Drawn:
    images, cond = subject.some(256)
    bins = grey_values(images)
    levels = latent_levels(subject.schedule, 64, bins)
    denoiser, variance = subject.denoiser, gaussian_variance(subject.gaussian)
    if isinstance(denoiser, Denoiser) and denoiser.learned_variance:
        variance = functools.partial(learned, lowest=floor([*levels, Level(0.0, 1.0, 0.0)]))
    view = hierarchy(denoiser, images, levels, bins=bins, variance=variance, seed=subject.seed, **cond)
    gaussian = gaussian_hierarchy(subject.gaussian, levels)
    carried = f"half of them above t = {view.half():.2g}"
    latents = f"the latents carry {float(view.known[-1]):.2f} bits per dimension, {carried}"
    assert view.prior is not None
    if view.decoder is not None:
        said = (
            f"{latents}, and the decoder {view.decoder:.2f} for the {bins} values of the data: the bound is "
            f"{view.total:.2f}, of which the prior is {view.prior:.2g}"
        )
    else:
        said = (
            f"{latents}, of which the prior is {view.prior:.2g}; these data are not quantized, so that there is no "
            "decoder and no bound"
        )
    return draw.hierarchy(view, gaussian, f"Bits of each latent: {subject.name}", subject.who), (
        f"By {subject.who}, on {len(images)} images of {subject.name}, {said}."
    )


TOPICS: dict[str, Callable[[Subject], Drawn]] = {
    "forward": explain_forward,
    "marginals": explain_marginals,
    "flow": explain_flow,
    "schedules": explain_schedules,
    "reverse": explain_reverse,
    "loss": explain_loss,
    "spectrum": explain_spectrum,
    "content": explain_content,
    "stitch": explain_stitch,
    "hierarchy": explain_hierarchy,
}
"""Every topic by name, in the order of the lecture."""
