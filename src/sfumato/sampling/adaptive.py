"""A step that adapts its length to its error."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.diffusion.level import Level, broadcast, float64
from sfumato.diffusion.likelihood import first_noise
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling.coordinates import Rotation
from sfumato.sampling.sample import Memory, Predict


def adaptive(
    denoise: Predict,
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    schedule: Schedule,
    rtol: float = 1e-2,
    atol: float = 1e-3,
    scale: float | None = None,
    sigma_min: float | None = None,
    max_steps: int = 1000,
) -> Tensor:
    r"""The probability flow to a tolerance, in steps of adaptive length; they also stop at the grid, so use 1 step.

    The flow :math:`dy / d\varphi = N` of :class:`~sfumato.sampling.coordinates.Rotation`, whose angle runs over
    :math:`[0, \pi / 2]` from the data to pure noise, is integrated with the embedded pair of orders 3 and 2 of Bogacki
    and Shampine (1989), three evaluations per step, and a proportional-integral control of the step length (Gustafsson
    1991), separately for each sample. A step to the data stops at ``sigma_min`` and ends with :math:`\hat x_0`; one
    from the data, as in DDIM inversion, starts there with the noise predicted for :math:`\alpha x_0`.

    Args:
        rtol: tolerated error of a step relative to the sample, as a root mean square over its elements.
        atol: tolerated absolute error of a step, in units of the data.
        scale: the standard deviation of the data; 1 when not given.
        sigma_min: the sigma / alpha at which the estimate of the data becomes the sample; when not given, that of the
            first step of a table, or 0.002.
        max_steps: the most steps that may be tried for a sample.
    """
    scale = 1.0 if scale is None else scale
    if sigma_min is None:
        sigma_min = max(0.002, first_noise(schedule))
    if not (rtol >= 0.0 and atol > 0.0 and scale > 0.0 and sigma_min > 0.0 and max_steps >= 1):
        raise InputError("An adaptive step needs rtol >= 0 and positive atol, scale, sigma_min and max_steps.")
    rotation = Rotation(scale)
    if t.sigma == 0.0:
        first = s if float(s.noise_to_signal) < sigma_min else schedule.at(-2.0 * math.log(sigma_min))
        x = x * (first.alpha / t.alpha)
        x, t = x + first.sigma * denoise(x, first).eps, first
    (norm, start), (norm_at_end, end), to_data = rotation.polar(t), rotation.polar(s), s.sigma == 0.0
    if to_data:
        end = math.atan2(sigma_min, scale)
    if to_data and start <= end:
        return denoise(x, t).mix(s.alpha, 0.0)
    way = 1.0 if end > start else -1.0
    top = s if way > 0.0 else t

    def flow(y: Float[Tensor, "batch *shape"], angle: Float64[Tensor, "batch"]) -> Tensor:
        r"""The derivative :math:`dy / d\varphi` for an angle per sample."""
        level = _level(schedule, rotation, top, angle)
        radius = torch.hypot(float64(level.sigma), scale * float64(level.alpha))
        return denoise(y * broadcast(radius, y), level).mix(-angle.sin() / scale, angle.cos())

    angle = torch.full((len(x),), start, dtype=torch.float64)
    y = x / norm
    step = torch.full_like(angle, abs(start - end)) * (0.1 if memory.index == 0 else 1.0)
    if "step" in memory.state:
        step = memory.state["step"].minimum((end - angle) * way)
    error_before = torch.ones_like(angle)
    slope = flow(y, angle)
    for _ in range(max_steps):
        left = (end - angle) * way
        step = step.minimum(left)
        arrived = step <= 0.0
        if bool(arrived.all()):
            break
        # Bogacki and Shampine: nodes at 1/2, 3/4 and 1, the last of which starts the next step
        turn = way * step
        h = broadcast(turn, y)
        second = flow(y + 0.5 * h * slope, angle + 0.5 * turn)
        third = flow(y + 0.75 * h * second, angle + 0.75 * turn)
        trial = y + h * (2.0 * slope + 3.0 * second + 4.0 * third) / 9.0
        landed = torch.where(left - step < 1e-12, end, angle + turn)
        last = flow(trial, landed)
        difference = scale * (h * (-5.0 * slope + 6.0 * second + 8.0 * third - 9.0 * last) / 72.0)
        tolerance = atol + rtol * scale * torch.maximum(y.abs(), trial.abs())
        # the root mean square of each sample, on the CPU, where the levels are
        error = (difference / tolerance).double().square().flatten(1).mean(1).sqrt().cpu()
        good = (error <= 1.0) & ~arrived
        accepted = good.to(y.device).reshape(-1, *[1] * (y.ndim - 1))
        y, slope = torch.where(accepted, trial, y), torch.where(accepted, last, slope)
        angle = torch.where(good, landed, angle)
        error = error.clamp(min=1e-8)
        factor = 0.9 * error ** -(0.7 / 3.0) * error_before ** (0.4 / 3.0)
        factor = torch.where(good, factor.clamp(0.2, 5.0), (0.9 * error ** (-1.0 / 3.0)).clamp(0.1, 0.9))
        error_before = torch.where(good, error, error_before)
        step = torch.where(arrived, step, step * factor)
        memory.state["step"] = torch.where(arrived, memory.state.get("step", step), step)
    else:
        raise InputError(f"An adaptive step did not reach its end in {max_steps} steps; use a larger rtol or atol.")
    if to_data:
        # x_0 = d (cos(phi) y - sin(phi) N)
        return ((y * math.cos(end) - slope * math.sin(end)) * scale).mul_(float(s.alpha))
    return y.mul_(norm_at_end)


def _level(schedule: Schedule, rotation: Rotation, top: Level, angle: Float64[Tensor, "batch"]) -> Level:
    """The levels at the given angles, at most that of ``top``."""
    # tan is finite but meaningless at pi / 2, where alpha = 0
    log_snr = -2.0 * (rotation.scale * angle.tan()).log()
    at_top = angle >= rotation.polar(top)[1]
    safe = torch.where(at_top, log_snr.new_tensor(0.0), log_snr)
    below = schedule.at(safe.clamp(min=float(schedule(1.0).log_snr)))
    pairs = ((top.t, below.t), (top.alpha, below.alpha), (top.sigma, below.sigma))
    return Level(*(torch.where(at_top, float(a), float64(b)) for a, b in pairs))
