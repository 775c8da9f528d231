"""The log-density of data under the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.bound import prior_variance
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError

_LOWEST_LOG_SNR = -20.0
"""Where the noise begins for schedules that end at ``alpha = 0``: data of unit scale have left 5e-5 of theirs there."""

Field = Callable[[Tensor], Tensor]
"""A vector field at one level: ``(B, ...)`` to ``(B, ...)``, each sample by itself."""


@runtime_checkable
class Divergence(Protocol):
    r"""How :math:`\nabla \cdot f` is found: ``(f, y) -> (f(y), divergence)``, the latter of shape ``(B,)``."""

    def __call__(self, field: Field, y: Tensor) -> tuple[Tensor, Tensor]: ...


def _at(field: Field, y: Tensor) -> tuple[Tensor, Tensor]:
    """``y`` and ``f(y)`` with the graph between them."""
    y = y.detach().requires_grad_()
    value = field(y)
    if not value.requires_grad:
        raise InputError(
            "The density of the probability flow needs the derivative of the denoiser, and this one detaches its "
            "output; remove torch.no_grad() or .detach() from it."
        )
    return y, value


def exact_divergence(field: Field, y: Float[Tensor, "batch *shape"]) -> tuple[Tensor, Float[Tensor, "batch"]]:
    r"""The trace of the Jacobian, one product with it per dimension: :math:`\sum_i e_i^T J e_i`."""
    with torch.enable_grad():
        y, value = _at(field, y)
        flat = value.reshape(len(y), -1)
        trace = torch.zeros_like(flat[:, 0])
        for i in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, i].sum(), y, retain_graph=i + 1 < flat.shape[1])
            trace = trace + row.reshape(flat.shape)[:, i]
    return value.detach(), trace.detach()


def hutchinson(
    field: Field, y: Float[Tensor, "batch *shape"], *, probes: Float[Tensor, "probes batch *shape"]
) -> tuple[Tensor, Float[Tensor, "batch"]]:
    r"""The unbiased estimate :math:`\nabla \cdot f \approx \frac1K \sum_k z_k^T J z_k` (Hutchinson 1989).

    The probes have mean 0 and covariance ``I``. They stay the same along a trajectory, so that what is integrated is a
    smooth function and the integral is unbiased as well (Grathwohl et al. 2019).
    """
    with torch.enable_grad():
        y, value = _at(field, y)
        trace = y.new_zeros(len(y))
        for k, probe in enumerate(probes.to(y)):
            (product,) = torch.autograd.grad(value, y, probe, retain_graph=k + 1 < len(probes))
            trace = trace + (product * probe).reshape(len(y), -1).sum(1) / len(probes)
    return value.detach(), trace.detach()


def rademacher(
    seed: int, first: int, count: int, shape: tuple[int, ...], probes: int = 1
) -> Float[Tensor, "probes count *shape"]:
    """Probes of 1 and -1 with equal chance, which have the least variance, for images ``first ...`` of a seed."""
    draws = [random.uniform(seed, "hutchinson", first, count, shape, step=k) for k in range(_positive(probes))]
    return torch.where(torch.stack(draws) < 0.5, -1.0, 1.0)


def gaussian_probes(
    seed: int, first: int, count: int, shape: tuple[int, ...], probes: int = 1
) -> Float[Tensor, "probes count *shape"]:
    """Standard normal probes, for images ``first ...`` of a seed."""
    return torch.stack(
        [random.normal(seed, "hutchinson", first, count, shape, step=k) for k in range(_positive(probes))]
    )


def _positive(probes: int) -> int:
    if probes < 1:
        raise InputError(f"An estimate of the divergence needs at least 1 probe; got {probes}.")
    return probes


State = tuple[Tensor, Tensor]
r"""The point ``(B, ...)`` and the integral of the divergence ``(B,)``, both float64."""

Flow = Callable[[Tensor, float], State]
r"""The velocity of the point and of the integral, from the point and :math:`\lambda`."""


@runtime_checkable
class Integrator(Protocol):
    r"""``(flow, y, start, end) -> (state at the end, calls of the flow)``; the integral starts at 0."""

    def __call__(self, flow: Flow, y: Tensor, start: float, end: float) -> tuple[State, int]: ...


def _move(state: State, h: float, weights: list[float], slopes: list[State]) -> State:
    y, integral = state
    for weight, (dy, divergence) in zip(weights, slopes, strict=False):
        if weight != 0.0:
            y, integral = y + (h * weight) * dy, integral + (h * weight) * divergence
    return y, integral


def rk4(flow: Flow, y: Tensor, start: float, end: float, *, steps: int = 100) -> tuple[State, int]:
    """The classical Runge-Kutta method of order 4, ``steps`` equal steps in the log-SNR, 4 calls each.

    Raises:
        InputError: if there is no step.
    """
    if steps < 1:
        raise InputError(f"An integrator needs at least 1 step; got {steps}.")
    state, h = (y, y.new_zeros(len(y))), (end - start) / steps
    for i in range(steps):
        at = start + i * h
        k1 = flow(state[0], at)
        k2 = flow(_move(state, h, [0.5], [k1])[0], at + 0.5 * h)
        k3 = flow(_move(state, h, [0.5], [k2])[0], at + 0.5 * h)
        k4 = flow(_move(state, h, [1.0], [k3])[0], end if i + 1 == steps else at + h)
        state = _move(state, h, [1 / 6, 1 / 3, 1 / 3, 1 / 6], [k1, k2, k3, k4])
    return state, 4 * steps


# the nodes, the stages and the error of Dormand and Prince 1980, table 2
_NODES = [0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0]
_STAGES = [
    [1 / 5],
    [3 / 40, 9 / 40],
    [44 / 45, -56 / 15, 32 / 9],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
]
_ERROR = [71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]


def dormand_prince(
    flow: Flow,
    y: Tensor,
    start: float,
    end: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> tuple[State, int]:
    r"""The pair of order 5(4) of Dormand and Prince 1980 with step size control, 6 calls per step.

    A step is taken when, for every image of the batch, the root mean square over its dimensions of the estimated error
    is within ``atol + rtol |y|``, and so is that of the integral per dimension. The images of a batch share their
    steps, so that a result depends on its batch, within the tolerance.

    Raises:
        InputError: if a tolerance is not positive, or more than ``max_steps`` steps are needed or the flow is not
            finite.
    """
    if rtol <= 0.0 or atol <= 0.0:
        raise InputError(f"The tolerances of an integrator must be positive; got rtol={rtol} and atol={atol}.")
    state: State = (y, y.new_zeros(len(y)))
    dimensions = max(1, y[0].numel())
    at, h, calls = start, 0.01 * (end - start), 1
    slopes = [flow(y, start)]
    for _ in range(max_steps):
        final = abs(end - at) <= abs(h) * (1.0 + 1e-9)
        h = end - at if final else h
        new = state
        for node, stage in zip(_NODES[1:], _STAGES, strict=True):
            new = _move(state, h, stage, slopes)
            slopes.append(flow(new[0], at + node * h))
        calls += 6
        miss = _move((torch.zeros_like(y), torch.zeros_like(state[1])), h, _ERROR, slopes)
        scale = atol + rtol * torch.maximum(state[0].abs(), new[0].abs())
        of_point = (miss[0] / scale).square().reshape(len(y), -1).mean(1).sqrt()
        of_integral = miss[1].abs() / (dimensions * atol + rtol * torch.maximum(state[1].abs(), new[1].abs()))
        error = float(torch.maximum(of_point, of_integral).max())
        if not math.isfinite(error) and abs(h) < 1e-6 * abs(end - start):
            raise InputError("The probability flow is not finite: the denoiser gives numbers that are not.")
        if error <= 1.0:
            if final:
                return new, calls
            at, state, slopes = at + h, new, slopes[-1:]
        else:
            slopes = slopes[:1]
        h *= min(5.0, max(0.2, 0.9 * error**-0.2)) if 0.0 < error < math.inf else (5.0 if error == 0.0 else 0.2)
    raise InputError(
        f"The probability flow was not solved to rtol={rtol}, atol={atol} in {max_steps} steps; raise the tolerances "
        "(a float32 network does not reach 1e-7) or max_steps."
    )


@dataclass(frozen=True, eq=False)
class LogDensity:
    """What the probability flow says of data.

    Attributes:
        nats: the log-density of each image.
        latent: the noise that the flow carries each image to, ``y`` at the last level.
        evaluations: how often the denoiser was called.
        sigma_min: the level, in units of the data, that the data were taken to be at.
    """

    nats: Float64[Tensor, "batch"]
    latent: Float64[Tensor, "batch *shape"]
    evaluations: int
    sigma_min: float


def first_noise(schedule: Schedule) -> float:
    r"""The least :math:`\sigma / \alpha` a denoiser of this schedule was trained at, where the flow may start.

    The first step of a discrete schedule; 0.002 for the others (Karras et al. 2022, table 1).
    """
    return float(schedule(1.0 / schedule.steps).noise_to_signal) if isinstance(schedule, Discrete) else 0.002


def log_density(
    denoiser: Denoise,
    schedule: Schedule,
    x0: Float[Tensor, "batch *shape"],
    *,
    divergence: Divergence = exact_divergence,
    integrator: Integrator = rk4,
    sigma_min: float | None = None,
    **cond: Tensor,
) -> LogDensity:
    r"""The log-density of data under the probability-flow ODE (Y. Song et al. 2021, app. D.2).

    In the angle :math:`\tan\varphi = \sigma / \alpha` and the normalized :math:`y = x / \sqrt{\alpha^2 + \sigma^2}`,
    the flow of every schedule is :math:`dy / d\varphi = \hat v = \cos\varphi\, \hat\epsilon - \sin\varphi\, \hat x_0`.
    It is integrated in the log-SNR :math:`\lambda = -2 \log\tan\varphi`, which resolves all scales of the data alike:

    .. math::
        \frac{dy}{d\lambda} = f(y, \lambda) = -\tfrac12 \sin\varphi \cos\varphi\, \hat v, \qquad
        \log p(x_0) = \log \mathcal N(y_1) + \int_{\lambda_0}^{\lambda_1} \nabla \cdot f\, d\lambda
        + D \log\cos\varphi_0

    The data are taken to be at the level ``sigma_min`` (in units of the data), and the density is that of the data with
    this noise, whose difference from their own is of order ``sigma_min`` squared where the density is smooth. The flow
    ends in the prior of :func:`sfumato.diffusion.bound.prior_variance` at the last level.

    Args:
        denoiser: any denoiser that can be differentiated.
        schedule: its schedule.
        x0: the data, of any floating type; the state is kept in float64, the denoiser sees the data's type.
        divergence: :func:`exact_divergence`, or :func:`hutchinson` with its probes.
        integrator: :func:`rk4` or :func:`dormand_prince`, with its options (``functools.partial``).
        sigma_min: by default that of :func:`first_noise`.
        cond: conditions, passed on to the denoiser.

    Raises:
        InputError: if there is no data, ``sigma_min`` is not within the schedule, the denoiser can't be differentiated,
            or the result is not finite.
    """
    if x0.numel() == 0:
        raise InputError(f"There is no data to evaluate: its shape is {tuple(x0.shape)}.")
    lowest = sigma_min if sigma_min is not None else first_noise(schedule)
    last = schedule(1.0)
    if not 0.0 < lowest < (math.inf if last.alpha == 0.0 else float(last.noise_to_signal)):
        raise InputError(
            f"sigma_min must be positive and below the end of the schedule; got {lowest} "
            "(schedules of one step have no room for a flow: use more steps)."
        )
    start, end = -2.0 * math.log(lowest), max(float(last.log_snr), _LOWEST_LOG_SNR)

    def flow(y: Tensor, log_snr: float) -> State:
        with torch.no_grad():
            at = schedule.at(log_snr)
        alpha, sigma = float(at.alpha), float(at.sigma)
        level, norm = Level(float(at.t), alpha, sigma), math.hypot(alpha, sigma)
        cosine, sine = alpha / norm, sigma / norm

        def v(point: Tensor) -> Tensor:
            return denoiser(point * norm, level, **cond).mix(-sine, cosine)

        value, trace = divergence(v, y.to(x0.dtype))
        speed = -0.5 * sine * cosine
        return value.double() * speed, trace.double() * speed

    with torch.no_grad():
        cosine = 1.0 / math.hypot(1.0, lowest)
        (latent, integral), calls = integrator(flow, x0.double() * cosine, start, end)
        noise = schedule.at(end)
        variance = prior_variance(noise) / math.hypot(float(noise.alpha), float(noise.sigma)) ** 2
        dimensions = x0[0].numel()
        square = latent.square().reshape(len(x0), -1).sum(1) / variance
        prior = -0.5 * (square + dimensions * math.log(2.0 * math.pi * variance))
        nats = prior + integral + dimensions * math.log(cosine)
    if not bool(nats.isfinite().all()):
        raise InputError("The log-density is not finite: the denoiser gives numbers that are not.")
    return LogDensity(nats, latent, calls, lowest)


def dequantize(
    x0: Float64[Tensor, "batch *shape"], bins: int, seed: int, first: int = 0
) -> Float64[Tensor, "batch *shape"]:
    r"""Quantized data with uniform noise of the width of a bin, :math:`w = 2 / (n - 1)`, centred on it.

    A density ``p`` of such data bounds the probability of the bins,
    :math:`\log P(x_0) \ge E[\log p(x_0 + u)] + D \log w` (Theis et al. 2016, sec. 3.1). The bins touch: for 8-bit
    data, ``w = 1 / 127.5`` is the width of the bins of the discretized decoder, so that the two likelihoods are
    comparable. (Data laid on 256 bins *within* [-1, 1] have ``w = 1 / 128``, the 7 bits in the code of Y. Song et al.
    2021.)
    """
    u = random.uniform(seed, "dequantize", first, len(x0), tuple(x0.shape[1:])).to(x0)
    return x0 + (u - 0.5 + 2.0**-33) * (2.0 / (bins - 1))
