"""What the tab Understand computes and draws: each function gives a picture and what it shows in words."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from sfumato import random
from sfumato.analysis import families, plots, processes, taxonomy, topics
from sfumato.app import asking, pictures
from sfumato.app.jobs import Job
from sfumato.app.library import Library
from sfumato.config import DataConfig, parse
from sfumato.data.dataset import Dataset
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling.sample import Frame

if TYPE_CHECKING:
    pass

Shown = tuple[Image.Image, str]
"""A picture, and a sentence on what it shows."""

IMAGES = 64
"""Images that a figure of a model looks at."""
POINTS = 400
"""Points of a density that is drawn."""
_HALF = 2.2  # half the side of the plane of densities


def subject_of(library: Library, name: str | None, other: str | None = None, count: int = IMAGES) -> topics.Subject:
    """What the figures of a model look at; of a system, its first stage that makes pictures."""
    entry = library.entry(name)
    if not entry.pictures:
        raise InputError(f"{entry.name} makes no pictures, and these figures are of pictures.")
    second = None if other is None else library.entry(other).subject
    return topics.of_run(entry.subject, second, count=count, device="cpu")


def _data(source: str) -> Dataset:
    return parse(DataConfig, {"source": source}).build()


# the forward process

SCHEDULES: dict[str, Schedule] = {
    "linear (DDPM)": schedules.linear(),
    "cosine": schedules.cosine(),
    "sigmoid": schedules.sigmoid(),
    "EDM": schedules.Karras(),
    "rectified flow": schedules.RectifiedFlow(),
}


def noised(image: Float[Tensor, "channels height width"], kind: str, t: Any, seed: int) -> Shown:
    r"""The image, the noise, and :math:`x_t / \sqrt{\alpha^2 + \sigma^2}`, side by side, and the level in numbers."""
    if kind not in SCHEDULES:
        raise InputError(f"There is no schedule {kind!r}; choose one of the list.")
    level = SCHEDULES[kind](asking.number(t, 0.0, 1.0, "t"))
    noise = random.normal(seed, "page", 0, 1, tuple(image.shape))[0].to(image)
    alpha, sigma = float(level.alpha), float(level.sigma)
    x = (alpha * image + sigma * noise) / math.hypot(alpha, sigma)
    row = torch.stack([image, x.clamp(-1.0, 1.0), (0.5 * noise).clamp(-1.0, 1.0)])
    side = max(1, 600 // image.shape[-1] // 3) * image.shape[-2]
    ratio = "\\infty" if sigma == 0.0 else "-\\infty" if alpha == 0.0 else f"{float(level.log_snr):.2f}"
    return pictures.image_files.grid(row, 3, side), (
        f"$t = {float(level.t):.2f}$: $\\alpha = {alpha:.4g}$, $\\sigma = {sigma:.4g}$, log-SNR ${ratio}$. The image, "
        "$x_t$, and the noise."
    )


def digit(index: Any) -> Float[Tensor, "channels height width"]:
    """A digit of scikit-learn."""
    data = _data("digits")
    return data.batch([asking.whole(index, 0, len(data) - 1, "The number of the digit")])[0]


# densities in the plane


def painted_points(opacity: npt.NDArray[Any], count: int = POINTS, seed: int = 0) -> Float64[Tensor, "n 2"]:
    """Points where something was painted, as densely as it was, in a plane of [-2.2, 2.2] with the second axis up."""
    weights = opacity.astype(np.float64).reshape(-1)
    if weights.sum() <= 0.0:
        raise InputError("Nothing is painted: draw a density with the brush, or choose one of the list.")
    u = random.uniform(seed, "painted", 0, count, (3,)).double().numpy()
    cells = np.searchsorted(np.cumsum(weights) / weights.sum(), u[:, 0], side="right").clip(max=len(weights) - 1)
    rows, columns = np.divmod(cells, opacity.shape[1])
    scale = 2.0 * _HALF / max(opacity.shape)
    x = (columns + u[:, 1] - opacity.shape[1] / 2.0) * scale
    y = (opacity.shape[0] / 2.0 - rows - u[:, 2]) * scale
    return torch.from_numpy(np.stack([x, y], axis=1))


def named_points(name: str, count: int = POINTS, seed: int = 0) -> Float64[Tensor, "n 2"]:
    """Points of a density that has a name."""
    u = random.uniform(seed, name, 0, count, (2,)).double()
    noise = random.normal(seed, f"{name} noise", 0, count, (2,)).double()
    angle = 2.0 * math.pi * u[:, 0]
    if name == "ring":
        return 1.5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.08 * noise
    if name == "two moons":
        upper = u[:, 1] < 0.5
        half = math.pi * u[:, 0]
        x = torch.where(upper, half.cos() - 0.5, 0.5 - half.cos())
        y = torch.where(upper, half.sin() - 0.25, 0.25 - half.sin())
        return 1.3 * torch.stack([x, y], 1) + 0.07 * noise
    if name == "spiral":
        radius = 0.3 + 1.6 * u[:, 0]
        turn = 3.0 * math.pi * u[:, 0]
        return torch.stack([radius * turn.cos(), radius * turn.sin()], 1) + 0.06 * noise
    if name == "eight bumps":
        place = torch.floor(8.0 * u[:, 0]) * (math.pi / 4.0)
        return 1.6 * torch.stack([place.cos(), place.sin()], 1) + 0.12 * noise
    raise InputError(f"There is no density {name!r}; choose one of the list, or draw one.")


DENSITIES = ("ring", "two moons", "spiral", "eight bumps")


@dataclass(frozen=True)
class Diffused:
    """A density at several times, and points that its probability flow carries along."""

    view: processes.Marginals
    points: Float64[Tensor, "n 2"]

    def at(self, t: Any) -> Shown:
        """The density at the nearest of its times, and where the points are then."""
        times = self.view.times
        k = int((times - asking.number(t, 0.0, 1.0, "t")).abs().argmin())
        line = int((self.view.line_times - times[k]).abs().argmin())
        extent = float(self.view.axis[-1])
        with plots.styled():
            figure = plots.figure(5.4, 5.2)
            axes = figure.subplots()
            axes.imshow(
                self.view.density[k].numpy(),
                origin="lower",
                extent=(-extent, extent, -extent, extent),
                cmap="Blues",
                vmin=0.0,
            )
            paths = self.view.lines[: line + 1]
            axes.plot(self.view.lines[..., 0], self.view.lines[..., 1], color=plots.FAINT, linewidth=0.4, alpha=0.5)
            axes.plot(paths[-1, :, 0], paths[-1, :, 1], "o", color=plots.COLOURS[1], markersize=3.5)
            axes.set(xticks=[], yticks=[], title=f"$q(x_t)$ at t = {float(times[k]):.2f}")
        return pictures.of_figure(figure), (
            f"The density at $t = {float(times[k]):.2f}$. Each dot moves along a line of the probability flow, from "
            "the noise ($t = 1$) to the data ($t = 0$) without meeting another."
        )


def diffused(points: Float64[Tensor, "n 2"], kind: str, job: Job) -> Diffused:
    """A kernel density of points, diffused by a schedule."""
    if kind not in SCHEDULES:
        raise InputError(f"There is no schedule {kind!r}; choose one of the list.")
    job.note("diffusing the density")
    schedule = SCHEDULES[kind]
    density = processes.kernel_density(points, 0.35)
    log_snr = torch.linspace(8.0, max(-8.0, float(schedule(1.0).log_snr)), 16, dtype=torch.float64)
    times = torch.cat([torch.zeros(1, dtype=torch.float64), torch.as_tensor(schedule.at(log_snr).t)]).unique()
    view = processes.marginals(density, schedule, times, positions=101, lines=60, steps=120)
    return Diffused(view, points)


# schedules


def edited_schedule(
    kind: str, steps: Any, first: Any = 1e-4, last: Any = 0.02, s: Any = 0.008, sigma_max: Any = 80.0, rho: Any = 7.0
) -> Schedule:
    """The schedule that the controls describe, whose values come from the browser."""
    count = asking.whole(steps, 2, 4000, "The number of steps")
    if kind == "linear":
        beta = [asking.number(value, 1e-9, 0.999, "A beta") for value in (first, last)]
        if beta[0] >= beta[1]:
            raise InputError("The first beta lies below the last one.")
        return schedules.linear(count, *beta)
    if kind == "cosine":
        return schedules.cosine(count, asking.number(s, 1e-6, 1.0, "s"))
    if kind == "EDM":
        return schedules.Karras(*(asking.number(value, 1e-3, 1e4, "Sigma or rho") for value in (sigma_max, rho)))
    if kind == "rectified flow":
        return schedules.RectifiedFlow()
    raise InputError(f"There is no schedule {kind!r}; choose one of the list.")


def table_of(text: str) -> Schedule:
    """A schedule of betas that were typed, with commas or spaces between them."""
    try:
        betas = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise InputError("A table is numbers, the betas, such as: 0.1, 0.2, 0.4, 0.8") from None
    if not 1 <= len(betas) <= 4000:
        raise InputError("A table has from 1 to 4,000 betas, each between 0 and 1.")
    return schedules.table(tuple(betas))


def scheduled(schedule: Schedule) -> Shown:
    """A schedule beside the usual ones, and whether it ends in noise."""
    known: dict[str, Schedule] = {"linear": schedules.linear(), "cosine": schedules.cosine(), "EDM": schedules.Karras()}
    views = {name: processes.schedule_curves(one) for name, one in {**known, "yours": schedule}.items()}
    end = schedule(1.0)
    share = float(end.alpha) ** 2 / (float(end.alpha) ** 2 + float(end.sigma) ** 2)
    sentence = f"At $t = 1$, $\\bar\\alpha = {share:.3g}$ (log-SNR {float(end.log_snr):.1f})."
    if share > 1e-3:
        sentence += " **Signal is left at the end**: samples that start from pure noise differ from the training there."
    return pictures.of_figure(plots.schedules(views, "Signal and noise")), sentence


# figures of data and models


def of_data(topic: str, source: str) -> Shown:
    """A figure of the lecture for a data set of the package."""
    if source not in ("digits", "shapes"):
        raise InputError(f"There are no data {source!r} here; choose one of the list.")
    figure, sentence = topics.TOPICS[topic](topics.of_data(_data(source), count=256))
    return pictures.of_figure(figure), sentence


def of_model(topic: str, library: Library, name: str | None, other: str | None, job: Job) -> Shown:
    """A figure of the lecture for a model."""
    job.note("loading the model and its data")
    subject = subject_of(library, name, other)
    job.label = topic
    figure, sentence = topics.TOPICS[topic](subject)
    return pictures.of_figure(figure), sentence[:1].upper() + sentence[1:]


def ledger(library: Library, name: str | None, job: Job) -> tuple[Image.Image, str, list[list[str]]]:
    """The bits of each latent, and the bound as a table in bits per dimension."""
    job.note("loading the model and its data")
    subject = subject_of(library, name)
    job.note("adding the terms of the bound")
    view, levels, bins = topics.ledger(subject)
    figure, sentence = topics.of_ledger(subject, view, levels, bins)
    rows = [
        ["$L_T$", "the prior", f"{view.prior or 0.0:.4f}"],
        ["$\\sum_{t>1} L_{t-1}$", f"the {len(view.bits)} steps", f"{float(view.bits.sum()):.4f}"],
    ]
    if view.decoder is not None:
        rows.append(["$L_0$", f"the decoder of {bins} values", f"{view.decoder:.4f}"])
        rows.append(["total", "the bound", f"{view.total:.4f}"])
    return pictures.of_figure(figure), sentence, rows


@dataclass(frozen=True)
class Trajectory:
    """The frames of a sampling, at most :data:`FRAMES` of them."""

    levels: list[Level]
    x: Float[Tensor, "frames batch channels height width"]
    x0: Float[Tensor, "frames batch channels height width"]

    def at(self, step: Any) -> Shown:
        """Of a step: the sample, the estimate of the data, the noise prediction; and the level."""
        k = asking.whole(step, 0, len(self.levels) - 1, "The step")
        level = self.levels[k]
        alpha, sigma = float(level.alpha), float(level.sigma)
        eps = predicted_noise(self.x[k], self.x0[k], level)
        rows = torch.cat([self.x[k] / math.hypot(alpha, sigma), self.x0[k], 0.5 * eps]).clamp(-1.0, 1.0)
        sheet = pictures.image_files.grid(rows, self.x.shape[1], 150)
        return sheet, (
            f"Step {k} of {len(self.levels) - 1}: $t = {float(level.t):.3f}$, $\\sigma/\\alpha = {sigma / alpha:.3g}$. "
            "Rows: $x_t$, the estimate of $x_0$, the prediction of the noise."
            if alpha > 0.0
            else f"Step {k} of {len(self.levels) - 1}: pure noise."
        )


FRAMES = 65


def predicted_noise(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    r"""The noise that an estimate of the data implies, :math:`(x - \alpha \hat x_0) / \sigma`; zero without noise."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    return torch.zeros_like(x) if sigma == 0.0 else (x - alpha * x0) / sigma


def trajectory(library: Library, name: str | None, count: int, seed: int, job: Job) -> Trajectory:
    """The way of some samples from noise to pictures; of a system, that of the stage that paints."""
    job.note("loading the model")
    entry = library.entry(name)
    if not entry.pictures:
        raise InputError(f"{entry.name} makes no pictures, and these figures are of pictures.")
    model = library.load(entry.name, stage=entry.base)
    job.label = "sampling"
    given: dict[str, Any] = {}
    if entry.text is not None:
        given[entry.text] = "a small red circle above a large blue square"
    frames: list[Frame] = list(model.frames(count, seed=seed, **given))
    kept = [frames[round(k)] for k in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames)))]
    x = torch.stack([frame.x.detach().float().cpu() for frame in kept])
    # the first estimate is made in the first step
    estimates = [frame.x0 for frame in kept]
    first = next(one for one in (frame.x0 for frame in frames) if one is not None)
    x0 = torch.stack([(first if one is None else one).detach().float().cpu() for one in estimates])
    x0[-1] = x[-1]
    return Trajectory([frame.level for frame in kept], x, x0)


# the families of generative models


@functools.cache
def taxonomy_alone() -> list[Any]:
    """The taxonomy before anything is compared."""
    return [pictures.of_figure(taxonomy.plot()), "The families of the lecture's first slide."]


def compared(job: Job) -> Shown:
    """Four families on the ring of Gaussians."""

    def progress(share: float, name: str) -> None:
        job.label = name
        job.advance(round(100 * share), 100)

    results = families.compare(progress=progress)
    return pictures.of_figure(taxonomy.plot(results)), taxonomy.summary(results)
