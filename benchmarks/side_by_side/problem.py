"""A target under a schedule: where samplers start, where the exact probability flow ends, and how far they are off."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Karras, Schedule, cosine, linear
from side_by_side.targets import Target

SCHEDULES: dict[str, Schedule] = {"linear": linear(1000), "cosine": cosine(1000), "edm": Karras(80.0)}
"""Tables of 1000 betas, because diffusers knows no other, and EDM's."""

END = 1e-5
"""The noise at which the reference takes the exact estimate of the data: what is left is of its square."""


class Counted:
    """The exact denoiser, as each library calls it, and the number of its calls."""

    def __init__(self, target: Target, schedule: Schedule) -> None:
        self.oracle, self.schedule, self.calls = target.oracle, schedule, 0

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        self.calls += 1
        return self.oracle(x, level)

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """For libraries in the scale of EDM, x = x_0 + sigma eps, at the exact level."""
        self.calls += 1
        return self.oracle(x, Level(0.5, 1.0, sigma)).x0

    def noise_at(self, x: Tensor, timestep: float) -> Tensor:
        """For libraries that tell the network a step of the table, 0 ... T - 1."""
        self.calls += 1
        assert isinstance(self.schedule, Discrete)
        steps = self.schedule.steps
        return self.oracle(x, self.schedule(min(max((timestep + 1.0) / steps, 1e-6), 1.0))).eps


@dataclass(frozen=True)
class Problem:
    """A target, a schedule, and the exact end of the flow of each noise.

    Attributes:
        noise: standard normal.
        exact: where the probability flow from ``t = 1`` ends.
        uncertainty: the largest difference between two references, the second with a hundredth of the tolerance.
    """

    target: Target
    schedule_name: str
    noise: Tensor
    exact: Tensor
    uncertainty: float

    @property
    def schedule(self) -> Schedule:
        return SCHEDULES[self.schedule_name]

    @property
    def start(self) -> Tensor:
        """x at t = 1."""
        return self.noise * self.schedule(1.0).sigma

    def first(self, count: int) -> Problem:
        """The same of the first noises only."""
        return Problem(self.target, self.schedule_name, self.noise[:count], self.exact[:count], self.uncertainty)

    @property
    def key(self) -> str:
        """What results are kept under."""
        return f"{self.target.name} | {self.schedule_name} | {_fingerprint(self.target, self.noise)}"

    def counted(self) -> Counted:
        return Counted(self.target, self.schedule)

    def errors(self, x: Tensor) -> tuple[float, float]:
        """The root mean square over dimensions and samples, and the median over samples of theirs."""
        each = self.target.rms(x.double() - self.exact)
        return float(each.square().mean().sqrt()), float(each.median())


def _fingerprint(target: Target, noise: Tensor) -> str:
    """A few letters of the noise and of the denoiser, by its answers; rounding differs between machines."""
    answers = target.oracle(noise, Level(0.5, 1.0, 0.3)).x0
    # adding 0 makes one zero of two
    rounded = [(value.round(decimals=6) + 0.0).numpy().tobytes() for value in (noise, answers)]
    return hashlib.sha256(b"".join(rounded)).hexdigest()[:12]


def solve(target: Target, x: Tensor, sigma: float, tolerance: float) -> Tensor:
    r"""The end of the probability flow :math:`d\hat x / d\hat\sigma = \hat\epsilon` from noise ``sigma``, for all rows.

    The solver is SciPy's of order 8, in :math:`u = \operatorname{arsinh}(\hat\sigma / c)`, logarithmic above ``c`` and
    linear below, and in :math:`y = \hat x / \sqrt{1 + \hat\sigma^2}`, which stays of the size of the data.
    """
    c = 1e-3
    shape = x.shape

    def slope(u: float, flat: np.ndarray) -> np.ndarray:
        s = c * math.sinh(u)
        norm = math.sqrt(1.0 + s * s)
        y = torch.from_numpy(flat).reshape(shape)
        eps = target.oracle(y * norm, Level(0.5, 1.0, s)).eps
        return ((eps - y * (s / norm)) * (c * math.cosh(u) / norm)).reshape(-1).numpy()

    span = (math.asinh(sigma / c), math.asinh(END / c))
    begin = (x / math.sqrt(1.0 + sigma * sigma)).reshape(-1).numpy()
    found = solve_ivp(slope, span, begin, method="DOP853", rtol=tolerance, atol=tolerance)
    assert found.success, found.message
    end = torch.from_numpy(found.y[:, -1].copy()).reshape(shape) * math.sqrt(1.0 + END * END)
    return target.oracle(end, Level(0.5, 1.0, END)).x0


def pose(target: Target, schedule: str, seed: int, count: int, cache: Path) -> Problem:
    """The problem of the first ``count`` noises of a seed; its exact solutions are kept in the cache."""
    noise = target.noise(seed, count)
    sigma = float(SCHEDULES[schedule](1.0).noise_to_signal)
    path = cache / f"exact-{target.name.replace(' ', '-')}-{schedule}-{_fingerprint(target, noise)}.npz"
    if not path.exists():
        rough, exact = (solve(target, noise * sigma, sigma, tolerance) for tolerance in (1e-8, 1e-10))
        uncertainty = float(target.rms(rough - exact).max())
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, exact=exact.numpy(), uncertainty=uncertainty)
    stored = np.load(path)
    return Problem(target, schedule, noise, torch.from_numpy(stored["exact"]), float(stored["uncertainty"]))
