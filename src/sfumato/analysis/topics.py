"""The topics of the lecture: each computes a view of a subject, plots it and says in a sentence what it shows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import random
from sfumato.analysis import Images, families, frequency, hierarchy, plots, processes, spread, taxonomy
from sfumato.data.dataset import Dataset, grey_values
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoise, Denoiser, Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import GaussianOracle, MixtureOracle
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.variance import floor, learned
from sfumato.errors import InputError
from sfumato.models.data import training_data
from sfumato.models.model import Model, load
from sfumato.random import Draws
from sfumato.sampling.grids import uniform
from sfumato.sampling.sample import Step, initial
from sfumato.sampling.steps import ddim

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Subject:
    """The data to explain, and a denoiser of them: that of a run, or of a Gaussian fitted to the training images."""

    name: str  # of the data
    who: str  # the denoiser, in sentences
    given: bool  # whether a person chose the data; by default two topics have examples in place of the digits
    images: Images  # to show and measure, on the device of the denoiser
    cond: dict[str, Any]  # their conditions
    training: Float[Tensor, "train channels *space"]
    network: Denoise | None  # of a run
    schedule: Schedule
    levels: Level
    step: Step
    seed: int
    model: Model | None = None  # of a run
    second: tuple[Model, str] | None = None  # that of a second run and its name, for the topic that takes one

    @functools.cached_property
    def gaussian(self) -> GaussianOracle:
        """The Gaussian of the training images, fitted on first use."""
        if len(self.training) < 2:
            raise InputError(f"A Gaussian is fitted to at least 2 images; {self.name} has {len(self.training)}.")
        gaussian = GaussianOracle.fit(self.training)
        if float(gaussian.variances.max()) < 1e-12:
            raise InputError(f"All images of {self.name} are the same, so that there is nothing to denoise.")
        return gaussian

    @property
    def denoiser(self) -> Denoise:
        return self.gaussian if self.network is None else self.network

    def first(self, count: int) -> tuple[Tensor, dict[str, Any]]:
        return self.images[:count], {name: value[:count] for name, value in self.cond.items()}

    def noise(self, count: int) -> Tensor:
        """Pure noise for ``count`` images."""
        shape = tuple(self.images.shape[1:])
        x = initial(self.levels, shape, self.seed, count=count).to(self.images)
        if not isinstance(self.network, Denoiser):
            return x
        cond = {name: rows[torch.arange(count) % len(rows)] for name, rows in self.cond.items()}
        return self.network.start(x, self.levels[0], **cond)

    def principal(self, count: int) -> MixtureOracle:
        """The kernel density of the images along their first principal axes."""
        return processes.kernel_density(self.gaussian.principal_coordinates(self.images.detach().cpu().double(), count))

    def times(self, log_snr: float, lowest: float, count: int) -> Tensor:
        """Times evenly spaced in log-SNR, down to ``lowest`` or the end of the schedule."""
        last = max(float(self.schedule(1.0).log_snr), lowest)
        return torch.as_tensor(self.schedule.at(torch.linspace(log_snr, last, count, dtype=torch.float64)).t)


def _fitted(count: int, shape: tuple[int, ...]) -> int:
    """How many of ``count`` training images a Gaussian is fitted to: the time grows with their square."""
    return min(count, math.isqrt(10**10 // math.prod(shape)))


def of_data(data: Dataset, *, given: bool = True, count: int = 512, seed: int = 0) -> Subject:
    """Data without a run, denoised by their Gaussian on the cosine schedule."""
    order, schedule = random.permutation(seed, "explain", 0, len(data)), schedules.ContinuousCosine()
    images, training = data.batch(order[:count]), data.batch(order[: _fitted(len(data), data.shape)])
    who, levels = f"the Gaussian of {data.name}", uniform(schedule, 100)
    return Subject(data.name, who, given, images, {}, training, None, schedule, levels, ddim, seed)


def of_run(
    run: Path,
    second: Path | None = None,
    *,
    count: int = 512,
    seed: int = 0,
    device: str = "cpu",
    trust: bool = False,
) -> Subject:
    """A run with its data, held-out images where there are any; and a second run for ``stitch``."""
    model, name, other = load(run, device, trust=trust), run.resolve().name, None
    model.require_denoiser()
    model.denoiser.eval()
    if second is not None:  # a second run of the same name is called by its path
        other = (
            load(second, device, trust=trust),
            f"run {second if second.resolve().name == name else second.resolve().name}",
        )
        other[0].denoiser.eval()
    loader, heldout = training_data(model.config)
    training = loader.batch(0, _fitted(len(loader.dataset), loader.shape)).x0
    if len(heldout) >= 2 and heldout.shape == model.info.shape:
        rows = range(min(count, len(heldout)))
        images, columns = heldout.batch(rows), heldout.rows(rows)
    else:
        batch = loader.batch(0, min(count, len(loader.dataset)))
        images, columns = batch.x0, batch.cond
    cond = model.of_data(images, columns, Draws(seed, 0, len(images), len(images)))
    denoise, levels, step = model.sampler()
    sampler = (denoise, model.denoiser.schedule, levels, step, seed)
    images = images.to(model.device)
    return Subject(loader.dataset.name, f"run {name}", True, images, cond, training, *sampler, model, other)


Explained = tuple["Figure", str]
"""A figure, and a sentence on what it shows, with its numbers."""


def explain_taxonomy(subject: Subject) -> Explained:
    """The families of generative models, and four of them on a ring of Gaussians (about a minute; takes no data)."""
    results = families.compare(subject.seed)
    return taxonomy.plot(results), taxonomy.summary(results)


def explain_forward(subject: Subject) -> Explained:
    """An image on its way to noise, step by step."""
    images, _ = subject.first(3)
    times = torch.cat([subject.times(5.0, -6.0, 8), torch.ones(1, dtype=torch.float64)]).unique()
    end = subject.schedule(1.0)
    share = float(end.alpha) / math.hypot(float(end.alpha), float(end.sigma))
    strip = processes.forward_strip(images, subject.schedule(times), seed=subject.seed)
    return plots.strip(strip, f"Forward process: {subject.name}"), (
        f"{len(images)} images of {subject.name} are noised step by step; at t = 1 the share of the data in x_t is "
        f"{share:.2g}."
    )


def explain_marginals(subject: Subject) -> Explained:
    """How a density in one dimension diffuses, and the trajectories of its probability flow."""
    times = torch.linspace(0.0, 1.0, 161, dtype=torch.float64)
    name = f"{subject.name} along their first principal axis" if subject.given else "a mixture of three Gaussians"
    density = subject.principal(1) if subject.given else processes.bumps()
    view = processes.marginals(density, subject.schedule, times, seed=subject.seed)
    assert view.cdf is not None
    drift = float((view.cdf - view.cdf[-1]).abs().max())
    return plots.marginals(view, f"Diffused marginals: {name}"), (
        f"The probability flow carries the density of {name} to the noise; none of its {view.lines.shape[1]} "
        f"trajectories cross, and the distribution function is constant along each to {drift:.1e}."
    )


def explain_flow(subject: Subject) -> Explained:
    """How a density in the plane diffuses, and the trajectories of its probability flow."""
    times = torch.as_tensor(subject.schedule.at(torch.tensor([9.0, 3.0, 1.0, -1.0, -4.0], dtype=torch.float64)).t)
    times[0] = 0.0
    if subject.given and int((subject.gaussian.variances > 0.0).sum()) < 2:
        raise InputError(f"A flow in the plane needs data that vary in 2 directions; {subject.name} vary in one.")
    name = f"{subject.name} along their first two principal axes" if subject.given else "a spiral"
    density = subject.principal(2) if subject.given else processes.spiral()
    view = processes.marginals(density, subject.schedule, times, positions=121, lines=60, steps=200, seed=subject.seed)
    length = view.lines.diff(dim=0).norm(dim=-1).sum(0) / (view.lines[0] - view.lines[-1]).norm(dim=-1)
    return plots.marginals(view, f"Probability flow: {name}"), (
        f"{view.lines.shape[1]} points of noise flow to {name}; the median trajectory is {float(length.median()):.2f} "
        "times as long as a straight line."
    )


def explain_schedules(subject: Subject) -> Explained:
    """Signal, noise, log-SNR and beta of the noise schedules."""
    known: dict[str, Schedule] = {"linear": schedules.linear(), "cosine": schedules.cosine(), "EDM": schedules.Karras()}
    if subject.network is not None:
        known[subject.who] = subject.schedule
    views = {name: processes.schedule_curves(schedule) for name, schedule in known.items()}
    half: list[str] = []
    for name, (levels, _) in views.items():
        noisy = torch.as_tensor(levels.t)[torch.as_tensor(levels.log_snr) <= 0.0]
        half += [f"t = {float(noisy[0]):.2f} ({name})"] if len(noisy) else []
    ends = [f"{float(schedule(1.0).log_snr):.1f} ({name})" for name, schedule in known.items()]
    return plots.schedules(views, "Signal and noise"), (
        f"Signal and noise are equally strong at {', '.join(half)}; at t = 1 the log-SNR is {', '.join(ends)}."
    )


def explain_reverse(subject: Subject) -> Explained:
    """A sample on its way from noise, with the denoiser's estimate of the data."""
    (_, cond), sampler = subject.first(2), (subject.levels, subject.step)
    strip = processes.reverse_strip(subject.denoiser, subject.noise(2), *sampler, keep=9, seed=subject.seed, **cond)
    assert strip.x0 is not None
    change = (strip.x0 - strip.x0[-1]).flatten(1).norm(dim=1) / strip.x0[-1].norm()
    settled = float(strip.times[(change > 0.25).nonzero()[-1, 0]]) if bool((change > 0.25).any()) else 1.0
    return plots.strip(strip, f"Reverse process: {subject.who}"), (
        f"{subject.who} generates 2 images in {len(subject.levels) - 1} steps; below t = {settled:.2f} its estimate of "
        "the data is within a quarter of the sample."
    )


def explain_loss(subject: Subject) -> Explained:
    """The loss at each time, next to the closed form of a Gaussian fitted to the data."""
    levels = subject.schedule(subject.times(9.0, -9.0, 16))
    options: dict[str, Any] = {"seed": subject.seed, **subject.cond}
    view = processes.loss_over_time(subject.denoiser, subject.images, levels, subject.gaussian, **options)
    ratio = view.measured / view.gaussian
    return plots.loss(view, f"Denoising loss over time: {subject.name}", subject.who), (
        f"On {len(subject.images)} images of {subject.name}, the loss of {subject.who} is between "
        f"{float(ratio.min()):.2f} (at t = {float(view.times[ratio.argmin()]):.2f}) and {float(ratio.max()):.2f} times "
        "that of a Gaussian fitted to the data."
    )


def explain_spectrum(subject: Subject) -> Explained:
    """Which frequencies of the data drown in the noise, and when."""
    view = frequency.spectrum(subject.images, subject.schedule, subject.times(9.0, -9.0, 7), seed=subject.seed)
    seen = view.frequency > 0.0
    f, t, error = view.frequency[seen], view.drowning_time[seen], (view.measured - view.analytic) / view.error
    if not len(f):
        raise InputError(f"The images of {subject.name} are a single pixel: they have no frequencies to compare.")
    drowned, what = t.isfinite(), "no frequency ever drowns in the noise"
    if bool(drowned.any()):
        (low, high), (first, last) = f[drowned][[0, -1]].tolist(), t[drowned][[0, -1]].tolist()
        what = (
            f"the lowest frequency, {low:.3g} cycles per pixel, drowns in the noise at t = {first:.2f} and "
            f"the highest, {high:.3g}, at t = {last:.2f}"
        )
    within = float((error.abs() < 2.0).double().mean())
    return plots.spectrum(view, f"Power spectrum of $x_t$: {subject.name}"), (
        f"In {len(subject.images)} images of {subject.name}, {what}; {within:.0%} of the measured powers lie within "
        "two standard errors of the analytic ones."
    )


def explain_content(subject: Subject) -> Explained:
    """What of an image survives when it is diffused and regenerated."""
    images, cond = subject.first(256)
    starts, sampler = spread(len(subject.levels) - 1, 14)[::-1], (subject.levels, subject.step)  # least noise first
    view = frequency.content_detail(subject.denoiser, images, *sampler, starts=starts, seed=subject.seed, **cond)
    lost: list[str] = []
    for band, correlation in zip(frequency.BANDS, view.correlation.T, strict=True):
        below = view.times[correlation < 0.5]
        if len(below):
            lost.append(f"{band} from t = {float(below.min()):.2f}")
    given = ", given their classes" if cond else ""
    return plots.content_detail(view, f"Regenerated from $x_t$ by {subject.who}: {subject.name}"), (
        f"{len(images)} images of {subject.name} were diffused to t and regenerated by {subject.who}{given}; the bands "
        f"whose correlation with the original is below one half are {', '.join(lost) or 'none'}."
    )


def explain_stitch(subject: Subject) -> Explained:
    """One denoiser for the content, another for the detail (needs a run; a second one may follow)."""
    if subject.network is None:
        raise InputError("Stitching needs the denoiser of a run; give one, such as runs/digits.")
    _, cond = subject.first(64)
    detail, name = _detail(subject)
    x, times = subject.noise(min(64, len(subject.images))), torch.as_tensor(subject.levels.t)
    switches = sorted({0.0, 1.0, *times[spread(len(subject.levels) - 1, 12)].tolist()})
    sampler = (subject.levels, subject.step)
    view = frequency.stitching(subject.network, detail, x, *sampler, switches, seed=subject.seed, **cond)
    coarse, _, fine = (
        f"at t = {float(view.switches[follows][0]):.2f}" if bool(follows.any()) else "nowhere"
        for follows in (view.to_detail > view.to_content).T
    )
    title = f"{subject.who} above the switching time, {name} below"
    return plots.stitching(view, title[:1].upper() + title[1:], subject.who, name), (
        f"With {subject.who} above the switching time and {name} below, the sample changes from the first one's to the "
        f"second one's {coarse} in its coarse and {fine} in its fine content."
    )


def _detail(subject: Subject) -> tuple[Denoise, str]:
    """The denoiser of the detail and its name: the second run, or the Gaussian."""
    if subject.second is None or subject.model is None:
        return subject.gaussian, f"the Gaussian of {subject.name}"
    (second, who), shape = subject.second, tuple(subject.images.shape[1:])
    if second.info.shape != shape:
        raise InputError(f"Stitching needs images of one shape; {subject.who} has {shape}, {who} {second.info.shape}.")
    denoiser = frequency.translated(second.denoiser, second.denoiser.schedule, subject.schedule)
    if second.info.conditions == subject.model.info.conditions:
        return denoiser, who

    def unconditional(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        return denoiser(x, level)

    return unconditional, who


def ledger(subject: Subject) -> tuple[hierarchy.Hierarchy, Level, int | None]:
    """The terms of the variational bound, the levels of the latents, and the values that the data can have."""
    images, cond = subject.first(256)
    bins = grey_values(images.cpu().numpy())
    levels = hierarchy.latent_levels(subject.schedule, 64, bins)
    denoiser, variance = subject.denoiser, hierarchy.gaussian_variance(subject.gaussian)
    if isinstance(denoiser, Denoiser) and denoiser.learned_variance:
        variance = functools.partial(learned, lowest=floor([*levels, Level(0.0, 1.0, 0.0)]))
    view = hierarchy.hierarchy(denoiser, images, levels, bins=bins, variance=variance, seed=subject.seed, **cond)
    return view, levels, bins


def explain_hierarchy(subject: Subject) -> Explained:
    """The bits that each latent carries: the terms of the variational bound."""
    return of_ledger(subject, *ledger(subject))


def of_ledger(subject: Subject, view: hierarchy.Hierarchy, levels: Level, bins: int | None) -> Explained:
    """The figure of a :func:`ledger`."""
    assert view.prior is not None
    prior, rest = f"of which the prior is {view.prior:.2g}", "; these data are not quantized, so there is no bound"
    if view.decoder is not None:
        rest = f"; the decoder is {view.decoder:.2f} for {bins} values of the data, and the bound is {view.total:.2f}"
    title = f"Bits of each latent: {subject.name}"
    return plots.hierarchy(view, hierarchy.gaussian_hierarchy(subject.gaussian, levels), title, subject.who), (
        f"For {subject.who}, on {len(subject.images[:256])} images of {subject.name}, the latents carry "
        f"{float(view.known[-1]):.2f} bits per dimension, {prior}, half of them above t = {view.half():.2g}{rest}."
    )


_FUNCTIONS = [value for name, value in globals().items() if name.startswith("explain_")]
TOPICS: dict[str, Callable[[Subject], Explained]] = {f.__name__.removeprefix("explain_"): f for f in _FUNCTIONS}
"""Every topic by name, in the order of the lecture."""
