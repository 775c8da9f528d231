"""The likelihood of data under a model, in bits per dimension: the variational bound and the probability flow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, distributed, nn

from sfumato.config import Variance, reverse_variance
from sfumato.data import Dataset
from sfumato.diffusion.bound import Bound, mean_and_error, quantized, variational_bound
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import (
    Divergence,
    Integrator,
    dequantize,
    exact_divergence,
    first_noise,
    hutchinson,
    log_density,
    rademacher,
    rk4,
)
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.diffusion.variance import ReverseVariance, decoded, small
from sfumato.errors import InputError, check_arguments
from sfumato.io.progress import Progress, progress_bar
from sfumato.models.cascade import one_stage
from sfumato.models.model import Model
from sfumato.random import Draws
from sfumato.sampling import grids

_EXACT_UP_TO = 16
"""The most dimensions for which the divergence is exact by default: it costs a product with the Jacobian for each."""


@dataclass(frozen=True, eq=False)
class FlowLikelihood:
    """What the probability flow says of data, for each image.

    Attributes:
        nats: the log-density in nats, of the dequantized data where there was dequantization.
        bits: the negative log-likelihood in bits per dimension: that of quantized data (an upper bound of it in
            expectation over the dequantization), or of the density where ``bin_width`` is None.
        bin_width: the width of a bin, that of the uniform noise of the dequantization; None without.
        evaluations: how often the denoiser was called in a batch, on average over batches.
        probes: the Hutchinson probes for each image; 0 where the divergence is exact.
        sigma_min: the level, in units of the data, that the data were taken to be at.
    """

    nats: Float64[Tensor, "batch"]
    bits: Float64[Tensor, "batch"]
    bin_width: float | None
    evaluations: float
    probes: int
    sigma_min: float

    @property
    def mean(self) -> float:
        """Bits per dimension, averaged over images."""
        return mean_and_error(self.bits)[0]

    @property
    def standard_error(self) -> float:
        """The standard error of :attr:`mean` over images."""
        return mean_and_error(self.bits)[1]


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The likelihood of data, in bits per dimension.

    Attributes:
        bound: the ledger of the variational bound; None if it was not asked for.
        flow: the likelihood of the probability flow; None if it was not asked for.
        dimensions: the number of values of an image.
        bins: the number of values that one of them can take; None for continuous data.
    """

    bound: Bound | None
    flow: FlowLikelihood | None
    dimensions: int
    bins: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: means with standard errors, values per image, and the ledger averaged over images.

        The standard error of one image is not known, and None.
        """
        value: dict[str, Any] = {"dimensions": self.dimensions, "bins": self.bins}
        if self.bound is not None:
            terms = {"prior": self.bound.prior, "steps": self.bound.steps.sum(1), "decoder": self.bound.decoder}
            value["bound"] = {
                "bits_per_dim": self.bound.mean,
                "standard_error": _known(self.bound.standard_error),
                **{name: float(term.mean()) for name, term in terms.items()},
            }
            value["ledger"] = {
                "t": torch.as_tensor(self.bound.levels.t).tolist(),
                "steps": self.bound.steps.mean(0).tolist(),
                "images": self.bound.total.tolist(),
            }
        if self.flow is not None:
            flow = dataclasses.asdict(self.flow)
            value["flow"] = {"bits_per_dim": self.flow.mean, "standard_error": _known(self.flow.standard_error)}
            value["flow"] |= {key: v for key, v in flow.items() if key not in ("nats", "bits")}
            value.setdefault("ledger", {})["flow_images"] = self.flow.bits.tolist()
        return value


def _known(number: float) -> float | None:
    """A number as JSON knows it, which has no NaN: the standard error of one image is null."""
    return None if math.isnan(number) else number


def default_levels(schedule: Schedule, steps: int | None = None, bins: int = 256) -> Level:
    """The grid of a bound: the full one of a discrete schedule, 1000 steps of another.

    It is that of :func:`sfumato.sampling.grids.fine`, at most down to a quarter of a bin (0.002 for 8-bit data): at
    less noise the value of a pixel is certain, and a network that has not learned to round pays in vain for each level.
    """
    count = steps if steps is not None else schedule.steps if isinstance(schedule, Discrete) else 1000
    if count < 1:
        raise InputError(f"A bound needs at least 1 step; got steps={steps}.")
    return grids.fine(schedule, count, max(0.002, 0.5 / (bins - 1)))


def bits_per_dim(
    model: Model | Denoise,
    data: Dataset | Float[Tensor, "count channels *space"],
    *,
    bins: int | None = 256,
    bound: bool = True,
    flow: bool = True,
    schedule: Schedule | None = None,
    levels: Level | None = None,
    steps: int | None = None,
    variance: ReverseVariance | Variance | None = None,
    draws: int | None = None,
    probes: int | None = None,
    integrator: Integrator = rk4,
    sigma_min: float | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 64,
    progress: Progress = None,
    **cond: Any,
) -> Likelihood:
    r"""The likelihood of data in bits per dimension: the variational bound, and that of the probability flow.

    ::

        likelihood = sfumato.bits_per_dim(model, digits, bins=17)
        print(likelihood.bound.mean, likelihood.bound.standard_error, likelihood.flow.mean)

    The bound of a model is that of the reverse process that it samples from, with its estimates of the data clipped
    where ``sampling.clip`` says so; the flow is that of its network as it is. Both are functions of the seed and the
    number of an image, for any batch size (an adaptive integrator shares its steps within a batch, so there it
    holds to its tolerance). Under several processes (a process group of ``torch.distributed``) each computes its share
    of the images, and all return the whole.

    Args:
        model: a model or a denoiser.
        data: a data set, or images in [-1, 1] of shape ``(N, C, *space)``.
        bins: the number of values of quantized data: 256 for 8-bit images, 17 for the digits. None for continuous data,
            which have a density and no bound: pass ``bound=False`` with it. That of vectors that a run standardized is
            in the units of the data.
        bound: whether to compute :func:`sfumato.diffusion.bound.variational_bound`.
        flow: whether to compute :func:`sfumato.diffusion.likelihood.log_density`, on data dequantized by uniform noise.
        schedule: the schedule, for denoisers that do not carry one.
        levels: the grid of the bound; by default :func:`default_levels`.
        steps: the number of steps of the default grid.
        variance: the reverse variance of the bound; of a model also by its name: small, large, learned or analytic
            (which needs :func:`sfumato.tune`). By default the learned one of a model that learned it, else the small.
            Off tables of betas, the small and the large one decode with the variance of the noise
            (:func:`sfumato.diffusion.variance.decoded`).
        draws: a Monte-Carlo estimate of the bound from this many steps for each image; None computes all steps.
        probes: Hutchinson probes of the flow's divergence; 0 for the exact one. By default exact up to 16
            dimensions, else 1 probe.
        integrator: :func:`~sfumato.diffusion.likelihood.rk4` or
            :func:`~sfumato.diffusion.likelihood.dormand_prince`, with its options (``functools.partial``).
        sigma_min: where the flow starts, in units of the data.
        seed: which noise.
        first: the number of the first image, for data that are part of a larger set.
        batch_size: images computed at once.
        progress: called after each batch with the number of images done (by this process).
        cond: conditions by name. A model takes those that a data set has by itself; one that is unknown is null.
    """
    check_arguments(bits_per_dim, locals())
    denoiser: Denoise = model.denoiser if isinstance(model, Model) else model
    process = model.config.sampling.wrap(model.denoiser) if isinstance(model, Model) else model
    schedule = _schedule(denoiser, schedule)
    data = data if isinstance(data, Dataset | Tensor) else Dataset.of(data)  # pyright: ignore[reportUnnecessaryIsInstance]
    named = tuple(cond)
    shape = data.shape if isinstance(data, Dataset) else tuple(data.shape[1:])
    count, dimensions = len(data), math.prod(shape)
    if isinstance(model, Model):
        one_stage(model, "A likelihood")
        if shape != model.info.shape:
            raise InputError(f"The model is of images of shape {model.info.shape}; these data have shape {shape}.")
        cond = model.given(cond, seed, first, count, defaults=False)
    _check(count, bins, bound, flow, batch_size, first, probes, cond)
    if getattr(denoiser, "base", None) is not None:
        raise InputError(
            "A residual model starts from the up-scaled image, for which this bound has no prior; train one with "
            "--no-model.residual."
        )
    if levels is None and bound and bins is not None:
        levels = default_levels(schedule, steps, bins)
    reverse = _variance(model, variance, levels, schedule) if levels is not None and bound else small
    device = next((p.device for p in denoiser.parameters()), None) if isinstance(denoiser, nn.Module) else None
    number = (0 if dimensions <= _EXACT_UP_TO else 1) if probes is None else probes
    lowest = first_noise(schedule) if sigma_min is None else sigma_min

    def evaluate(rows: slice) -> _Part:
        images = data.batch(range(rows.start, rows.stop)) if isinstance(data, Dataset) else data[rows]
        images = images.to(device) if device is not None else images
        given: dict[str, Any] = {key: value[rows].to(images.device) for key, value in cond.items()}
        if isinstance(model, Model):
            columns = data.rows(range(rows.start, rows.stop)) if isinstance(data, Dataset) else {}
            draws_of_batch = Draws(seed, first + rows.start, len(images), len(images))
            given |= model.of_data(images, columns, draws_of_batch, given=named)
        index, ledger, found = first + rows.start, None, None
        if levels is not None and bound and bins is not None:
            on_device = variational_bound(
                process, images, levels, reverse, bins=bins, seed=seed, first=index, draws=draws, **given
            )
            ledger = Bound.join([on_device])
        if flow:
            x, rule = images, _divergence(number, seed, index, images)
            if bins is not None:
                x = dequantize(quantized(images, bins), bins, seed, index).to(images.dtype)
            found = log_density(
                denoiser, schedule, x, divergence=rule, integrator=integrator, sigma_min=lowest, **given
            )
        return ledger, (found.nats.cpu(), found.evaluations) if found is not None else None

    training = isinstance(denoiser, nn.Module) and denoiser.training
    if isinstance(denoiser, nn.Module):
        denoiser.eval()
    try:
        with progress_bar("likelihood", count, progress) as advance:
            parts = _shared(evaluate, count, batch_size, advance)
    finally:
        if isinstance(denoiser, nn.Module):
            denoiser.train(training)
    ledgers = [ledger for ledger, _ in parts if ledger is not None]
    densities = [density for _, density in parts if density is not None]
    ledger, result = Bound.join(ledgers) if ledgers else None, None
    if densities:
        calls = sum(evaluations for _, evaluations in densities) / len(densities)
        nats = torch.cat([nats for nats, _ in densities])
        if bins is None and isinstance(model, Model):
            # a density of vectors that were standardized is one in the units of their data
            nats = nats - sum(map(math.log, model.info.scale))
        result = _flow(nats, dimensions, bins, calls, number, lowest)
    return Likelihood(ledger, result, dimensions, bins)


_Part = tuple[Bound | None, tuple[Tensor, int] | None]


def _shared(
    evaluate: Callable[[slice], _Part], count: int, batch_size: int, progress: Callable[[int], None]
) -> list[_Part]:
    """The parts of all processes, in the order of the images; each process computes a run of consecutive images."""
    many = distributed.is_available() and distributed.is_initialized()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if many else (0, 1)
    begin, end = count * rank // world, count * (rank + 1) // world
    own: list[_Part] = []
    problem: str | None = None
    try:
        for start in range(begin, end, batch_size):
            stop = min(start + batch_size, end)
            own.append(evaluate(slice(start, stop)))
            progress(stop - begin)
    except InputError as error:
        if not many:
            raise
        problem = str(error)
    if not many:
        return own
    gathered: list[Any] = [None] * world
    # a wrong image in the part of one process must end all of them, not leave the others waiting
    distributed.all_gather_object(gathered, (own, problem))
    for _, trouble in gathered:
        if trouble is not None:
            raise InputError(trouble)
    return [part for parts, _ in gathered for part in parts]


def _flow(
    nats: Tensor, dimensions: int, bins: int | None, evaluations: float, probes: int, sigma_min: float
) -> FlowLikelihood:
    width = 2.0 / (bins - 1) if bins is not None else None
    correction = 0.0 if width is None else math.log(width)
    bits = -(nats / dimensions + correction) / math.log(2.0)
    return FlowLikelihood(nats, bits, width, evaluations, probes, sigma_min)


def _variance(
    model: Model | Denoise,
    wanted: ReverseVariance | Variance | None,
    levels: Level,
    schedule: Schedule,
) -> ReverseVariance:
    if callable(wanted):
        return wanted
    if wanted is not None and not isinstance(model, Model):
        raise InputError(f"A denoiser without its model has no variance by name ({wanted!r}); pass a ReverseVariance.")
    if isinstance(model, Model):
        kind = wanted or ("learned" if model.denoiser.learned_variance else "small")
        found = reverse_variance(kind, model.denoiser, levels, model.fitted, decoder=True)
    else:
        kind, found = "small", small
    # that of the step before is the published choice for a table of betas alone
    return found if isinstance(schedule, Discrete) or kind in ("learned", "analytic") else decoded(found)


def _schedule(denoiser: Denoise, schedule: Schedule | None) -> Schedule:
    found = schedule if schedule is not None else getattr(denoiser, "schedule", None)
    if not isinstance(found, Schedule):
        raise InputError("This denoiser carries no schedule; pass the one it is meant for with schedule=.")
    return found


def _divergence(probes: int, seed: int, first: int, images: Tensor) -> Divergence:
    if probes == 0:
        return exact_divergence
    return partial(hutchinson, probes=rademacher(seed, first, len(images), tuple(images.shape[1:]), probes))


def _check(
    count: int,
    bins: int | None,
    bound: bool,
    flow: bool,
    batch_size: int,
    first: int,
    probes: int | None,
    cond: dict[str, Tensor],
) -> None:
    if not (bound or flow):
        raise InputError("Nothing was asked for: set bound=True, flow=True or both.")
    if bound and bins is None:
        raise InputError("Continuous data (bins=None) have no bound in bits; pass bound=False for their density.")
    if bins is not None and bins < 2:
        raise InputError(f"Quantized data have at least 2 values; got bins={bins}.")
    if count < 1 or batch_size < 1 or first < 0:
        raise InputError(
            f"A likelihood needs at least 1 image, a batch of at least 1 and first >= 0; got {count}, {batch_size} and "
            f"{first}."
        )
    if probes is not None and probes < 0:
        raise InputError(f"The number of probes must be at least 1, or 0 for the exact divergence; got {probes}.")
    for key, value in cond.items():
        if len(value) != count:
            raise InputError(f"The condition {key!r} has {len(value)} rows for {count} images; give one for each.")
