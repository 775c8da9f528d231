"""The log-density of data under the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.bound import prior_variance
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Data
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError

# a vector field at one level, applied to each sample independently
Field = Callable[[Tensor], Tensor]
# (f, y) -> (f(y), divergence), the divergence of shape (B,)
Divergence = Callable[[Field, Tensor], tuple[Tensor, Tensor]]
# the point (B, ...) and the integral of the divergence (B,), both float64
State = tuple[Tensor, Tensor]
# the derivatives of the state, from the point and the log-SNR
Flow = Callable[[Tensor, float], State]
# (flow, y, start, end) -> (state at the end, calls of the flow); the integral starts at 0
Integrator = Callable[[Flow, Tensor, float, float], tuple[State, int]]


def exact_divergence(field: Field, y: Data) -> tuple[Tensor, Float[Tensor, "batch"]]:
    r"""The trace of the Jacobian, by one Jacobian-vector product per dimension: :math:`\sum_i e_i^T J e_i`."""
    units = torch.eye(y[0].numel(), dtype=y.dtype, device=y.device).reshape(-1, 1, *y.shape[1:])
    return _divergence(field, y, units.expand(-1, len(y), *y.shape[1:]), 1)


def hutchinson(
    field: Field, y: Data, *, probes: Float[Tensor, "probes batch *shape"]
) -> tuple[Tensor, Float[Tensor, "batch"]]:
    r"""The unbiased estimate :math:`\nabla \cdot f \approx \frac1K \sum_k z_k^T J z_k` (Hutchinson 1989).

    The probes are fixed along a trajectory, so that the integrand is smooth (Grathwohl et al. 2019).
    """
    return _divergence(field, y, probes.to(y), len(probes))


def _divergence(field: Field, y: Tensor, probes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    r"""``f(y)``, and the sum of :math:`z^T J z` over the probes, divided by ``count``."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        value = field(y)
        if not value.requires_grad:
            raise InputError("The probability flow needs the denoiser's derivative, but this one detaches its output.")
        trace = y.new_zeros(len(y))
        for k, probe in enumerate(probes):
            (product,) = torch.autograd.grad(value, y, probe, retain_graph=k + 1 < len(probes))
            trace = trace + (product * probe).reshape(len(y), -1).sum(1) / count
    return value.detach(), trace.detach()


def rademacher(
    seed: int, first: int, count: int, shape: tuple[int, ...], probes: int = 1
) -> Float[Tensor, "probes count *shape"]:
    """Probes of 1 and -1 with equal probability, which have the least variance, for images ``first ...`` of a seed."""
    if probes < 1:
        raise InputError(f"An estimate of the divergence needs at least 1 probe; got {probes}.")
    numbers = [random.uniform(seed, "hutchinson", first, count, shape, step=k) for k in range(probes)]
    return torch.where(torch.stack(numbers) < 0.5, -1.0, 1.0)


def rk4(flow: Flow, y: Tensor, start: float, end: float, *, steps: int = 100) -> tuple[State, int]:
    """The classical Runge-Kutta method of order 4: ``steps`` equal steps in the log-SNR, with 4 calls each."""
    if steps < 1:
        raise InputError(f"An integrator needs at least 1 step; got {steps}.")
    integral, h = y.new_zeros(len(y)), (end - start) / steps
    for i in range(steps):
        at = start + i * h
        k1, d1 = flow(y, at)
        k2, d2 = flow(y + 0.5 * h * k1, at + 0.5 * h)
        k3, d3 = flow(y + 0.5 * h * k2, at + 0.5 * h)
        k4, d4 = flow(y + h * k3, end if i + 1 == steps else at + h)
        y = y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        integral = integral + h / 6.0 * (d1 + 2.0 * d2 + 2.0 * d3 + d4)
    return (y, integral), 4 * steps


def dormand_prince(
    flow: Flow, y: Tensor, start: float, end: float, *, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000
) -> tuple[State, int]:
    """SciPy's RK45 (Dormand and Prince 1980): the error of each image in each step is at most ``atol + rtol |y|``.

    The images of a batch share their steps, so a result depends on its batch, within the tolerance.
    """
    from scipy.integrate import RK45

    if rtol <= 0.0 or atol <= 0.0:
        raise InputError(f"The tolerances of an integrator must be positive; got rtol={rtol} and atol={atol}.")
    # SciPy takes the root mean square over the whole batch: this turns it into a bound for each image
    size, share = y.numel(), math.sqrt(len(y))

    def unpack(state: npt.NDArray[np.float64]) -> State:
        whole = torch.from_numpy(state).to(y)
        return whole[:size].reshape(y.shape), whole[size:]

    def derivative(at: float, state: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return torch.cat([part.reshape(-1) for part in flow(unpack(state)[0], at)]).cpu().numpy()

    initial = torch.cat([y.reshape(-1), y.new_zeros(len(y))]).cpu().numpy()
    # SciPy's choice of the first step would never return for a flow that is not finite
    first = 0.01 * abs(end - start)
    solver = RK45(derivative, start, initial, end, rtol=rtol / share, atol=atol / share, first_step=first)
    for _ in range(max_steps):
        solver.step()
        if solver.status != "running":
            break
    if solver.status != "finished":
        raise InputError(
            f"The probability flow was not solved to rtol={rtol} in {max_steps} steps: it is not finite, or "
            "not smooth enough for these tolerances (a float32 network does not reach 1e-7)."
        )
    return unpack(solver.y), solver.nfev


@dataclass(frozen=True, eq=False)
class LogDensity:
    """The log-density of data under the probability flow, and the noise (``latent``) that each image maps to.

    ``evaluations`` is the number of calls of the denoiser; ``sigma_min`` is the noise level of the data, in data units.
    """

    nats: Float64[Tensor, "batch"]
    latent: Float64[Tensor, "batch *shape"]
    evaluations: int
    sigma_min: float


def first_noise(schedule: Schedule) -> float:
    r"""The least :math:`\sigma / \alpha` in training: a table's first step, else 0.002 (Karras et al. 2022)."""
    return float(schedule(1.0 / schedule.steps).noise_to_signal) if isinstance(schedule, Discrete) else 0.002


def log_density(
    denoiser: Denoise,
    schedule: Schedule,
    x0: Data,
    *,
    divergence: Divergence = exact_divergence,
    integrator: Integrator = rk4,
    sigma_min: float | None = None,
    **cond: Tensor,
) -> LogDensity:
    r"""The log-density of data under the probability-flow ODE (Y. Song et al. 2021, app. D.2).

    In the angle :math:`\tan\varphi = \sigma / \alpha` and the normalized :math:`y = x / \sqrt{\alpha^2 + \sigma^2}`,
    the flow of every schedule is :math:`dy / d\varphi = \hat v = \cos\varphi\, \hat\epsilon - \sin\varphi\, \hat x_0`.
    It is integrated in the log-SNR :math:`\lambda = -2 \log\tan\varphi`, which resolves all scales of the data equally:

    .. math::
        \frac{dy}{d\lambda} = f(y, \lambda) = -\tfrac12 \sin\varphi \cos\varphi\, \hat v, \qquad
        \log p(x_0) = \log \mathcal N(y_1) + \int_{\lambda_0}^{\lambda_1} \nabla \cdot f\, d\lambda
        + D \log\cos\varphi_0

    The density is that of the data plus noise of standard deviation ``sigma_min`` (in data units, by default
    :func:`first_noise`). The flow ends in the prior of :func:`sfumato.diffusion.bound.prior_variance`. The state is
    kept in float64; the denoiser is called in the data's dtype.
    """
    lowest = sigma_min if sigma_min is not None else first_noise(schedule)
    last = schedule(1.0)
    if not 0.0 < lowest < (math.inf if last.alpha == 0.0 else float(last.noise_to_signal)):
        raise InputError(f"sigma_min must be positive and below the end of the schedule; got {lowest}.")
    # if the schedule ends at alpha = 0 the noise starts at a log-SNR of -20, where 5e-5 of unit data is left
    start, end = -2.0 * math.log(lowest), max(float(last.log_snr), -20.0)

    def flow(y: Tensor, log_snr: float) -> State:
        level = schedule.at(log_snr)
        alpha, sigma = float(level.alpha), float(level.sigma)
        norm = math.hypot(alpha, sigma)
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
        raise InputError("The log-density is not finite: the denoiser returns NaN or infinity.")
    return LogDensity(nats, latent, calls, lowest)


def dequantize(x0: Data, bins: int, seed: int, first: int = 0) -> Data:
    r"""Quantized data plus uniform noise of the width of a bin, :math:`w = 2 / (n - 1)`, centred on the bin.

    A density ``p`` of such data bounds the probability of the bins of the discretized decoder,
    :math:`\log P(x_0) \ge E[\log p(x_0 + u)] + D \log w` (Theis et al. 2016, sec. 3.1).
    """
    u = random.uniform(seed, "dequantize", first, len(x0), tuple(x0.shape[1:])).to(x0)
    return x0 + (u - 0.5 + 2.0**-33) * (2.0 / (bins - 1))
