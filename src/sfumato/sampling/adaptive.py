"""Steps whose length is controlled by their error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level, broadcast
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError
from sfumato.sampling.sample import Memory


@dataclass(slots=True)
class Count:
    """How much an adaptive sampler worked.

    Attributes:
        evaluations: calls of the denoiser for the batch; the slowest of its samples decides.
        rejected: steps that were too long, over all samples.
    """

    evaluations: int = 0
    rejected: int = 0


def adaptive(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    schedule: Schedule,
    rtol: float = 1e-2,
    atol: float = 1e-3,
    scale: float = 1.0,
    sigma_min: float | None = None,
    most: int = 1000,
    count: Count | None = None,
) -> Tensor:
    r"""The probability flow from ``t`` to ``s`` to a tolerance, by as many steps as that takes.

    The flow :math:`dy / d\varphi = N` of :class:`~sfumato.sampling.coordinates.Rotation`, whose angle runs over
    :math:`[0, \pi / 2]` from the data to pure noise on every schedule, is integrated with the embedded pair of orders 3
    and 2 of Bogacki and Shampine (1989), three evaluations a step, and a proportional-integral control of the
    step length (Gustafsson 1991). A step to the data stops at ``sigma_min`` and ends with :math:`\hat x_0`; one from
    the data, on the way up to the noise, begins there with the noise that is seen in :math:`\alpha x_0`.

    Every sample of a batch has a step length of its own, so that an image does not depend on its neighbours; samples
    that have arrived wait for the others. A grid of one step leaves all to the control; a finer one
    limits the length of its steps.

    Args:
        schedule: where the levels in between are found.
        rtol: the tolerated error of a step relative to the sample, root mean square over its elements.
        atol: the tolerated error in units of the data.
        scale: the standard deviation of the data.
        sigma_min: the :math:`\sigma / \alpha` from which :math:`\hat x_0` is taken for the sample; by default 0.002, or
            that of the first step of a table, below which nothing was trained.
        most: how many steps a sample may try.
        count: counts evaluations and rejected steps, if given.

    Raises:
        InputError: if a number is out of range, or ``most`` steps do not suffice.
    """
    if sigma_min is None:
        first = schedule(1.0 / schedule.steps).noise_to_signal if isinstance(schedule, Discrete) else 0.0
        sigma_min = max(0.002, float(first))
    if not (rtol >= 0.0 and atol > 0.0 and scale > 0.0 and sigma_min > 0.0 and most >= 1):
        raise InputError(
            "An adaptive step needs rtol >= 0 and positive atol, scale, sigma_min and most; "
            f"got {rtol}, {atol}, {scale}, {sigma_min} and {most}."
        )
    count = count or Count()
    if t.sigma == 0.0:
        ratio = min(sigma_min, float(s.noise_to_signal))
        first = s if ratio < sigma_min else schedule.at(-2.0 * math.log(ratio))
        x = x * (first.alpha / t.alpha)
        count.evaluations += 1
        x, t = x + first.sigma * denoise(x, first).eps, first
    start = math.atan2(float(t.sigma), scale * float(t.alpha))
    to_data = s.sigma == 0.0
    end = math.atan2(sigma_min, scale) if to_data else math.atan2(float(s.sigma), scale * float(s.alpha))
    if to_data and start <= end:
        count.evaluations += 1
        return denoise(x, t).mix(s.alpha, 0.0)
    way = 1.0 if end > start else -1.0
    flow = _Flow(denoise, schedule, scale, s if way > 0.0 else t, count)
    angle = torch.full((len(x),), start, dtype=torch.float64)
    y = x / math.hypot(float(t.sigma), scale * float(t.alpha))
    step = torch.full_like(angle, abs(start - end)) * (0.1 if memory.index == 0 else 1.0)
    if "step" in memory.state:
        step = memory.state["step"].minimum((end - angle) * way)
    error_before = torch.ones_like(angle)
    slope = flow(y, angle)
    for _ in range(most):
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
        difference = h * (-5.0 * slope + 6.0 * second + 8.0 * third - 9.0 * last) / 72.0
        error = _norm(scale * difference, atol + rtol * scale * torch.maximum(y.abs(), trial.abs()))
        good = (error <= 1.0) & ~arrived
        count.rejected += int((~good & ~arrived).sum())
        y, slope = _choose(good, trial, y), _choose(good, last, slope)
        angle = torch.where(good, landed, angle)
        error = error.clamp(min=1e-8)
        factor = 0.9 * error ** -(0.7 / 3.0) * error_before ** (0.4 / 3.0)
        factor = torch.where(good, factor.clamp(0.2, 5.0), (0.9 * error ** (-1.0 / 3.0)).clamp(0.1, 0.9))
        error_before = torch.where(good, error, error_before)
        step = torch.where(arrived, step, step * factor)
        memory.state["step"] = torch.where(arrived, memory.state.get("step", step), step)
    else:
        raise InputError(
            f"An adaptive step did not reach its end in {most} steps; ask for less with a larger rtol or atol."
        )
    if to_data:
        return flow.data(y, slope, end).mul_(float(s.alpha))
    return y.mul_(math.hypot(float(s.sigma), scale * float(s.alpha)))


@dataclass(slots=True)
class _Flow:
    r"""The derivative :math:`dy / d\varphi` for an angle per sample."""

    denoise: Callable[[Tensor, Level], Prediction]
    schedule: Schedule
    scale: float
    top: Level
    count: Count

    def __call__(self, y: Float[Tensor, "batch *shape"], angle: Float64[Tensor, "batch"]) -> Tensor:
        level = self._level(angle)
        self.count.evaluations += 1
        sigma, signal = torch.as_tensor(level.sigma), self.scale * torch.as_tensor(level.alpha)
        x = y * broadcast(torch.hypot(sigma, signal), y)
        return self.denoise(x, level).mix(-angle.sin() / self.scale, angle.cos())

    def data(self, y: Tensor, slope: Tensor, angle: float) -> Tensor:
        r""":math:`\hat x_0 = d\, (\cos\varphi\, y - \sin\varphi\, N)`."""
        return (y * math.cos(angle) - slope * math.sin(angle)) * self.scale

    def _level(self, angle: Tensor) -> Level:
        # tan is finite but meaningless at pi / 2, where nothing of the data is left
        log_snr = -2.0 * (self.scale * angle.tan()).log()
        at_top = angle >= math.atan2(float(self.top.sigma), self.scale * float(self.top.alpha))
        safe = torch.where(at_top, log_snr.new_tensor(0.0), log_snr)
        low = float(self.schedule(1.0).log_snr)
        found = self.schedule.at(safe.clamp(min=low))
        pairs = ((self.top.t, found.t), (self.top.alpha, found.alpha), (self.top.sigma, found.sigma))
        return Level(*(torch.where(at_top, float(a), torch.as_tensor(b)) for a, b in pairs))


def _norm(error: Tensor, tolerance: Tensor) -> Float64[Tensor, "batch"]:
    """The root mean square of each sample, on the processor where levels are."""
    return (error / tolerance).double().square().flatten(1).mean(1).sqrt().cpu()


def _choose(good: Bool[Tensor, "batch"], new: Tensor, old: Tensor) -> Tensor:
    return torch.where(good.to(new.device).reshape(-1, *[1] * (new.ndim - 1)), new, old)
