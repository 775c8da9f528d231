"""Analytic-DPM: the optimal reverse variance of a trained denoiser (Bao et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.gaussian import diffuse, posterior_coefficients
from sfumato.diffusion.level import Level, Scalar
from sfumato.diffusion.variance import ReverseVariance
from sfumato.errors import InputError

_EDGE = 1e-12
"""How near to 0 and 1 a Gamma may come: beyond, its logit is rounding."""


@dataclass(frozen=True)
class Gamma:
    r"""A table of :math:`\Gamma(\lambda) = \tfrac1D \mathbb E \lVert \hat\epsilon(x, \lambda) \rVert^2` by log-SNR.

    It is :math:`\sigma^2` times the :math:`\Gamma` of Bao et al. 2022, sec. 3, which is of the score. As a function of
    the log-SNR it belongs to the denoiser and its data, and to no schedule or grid.

    Attributes:
        log_snr: the levels, rising strictly.
        gamma: one number per level.
        samples: how many images they are averages of; 0 for exact expectations.

    Raises:
        InputError: if the two have not one length, the levels do not rise or a number is not finite.
    """

    log_snr: tuple[float, ...]
    gamma: tuple[float, ...]
    samples: int = 0

    def __post_init__(self) -> None:
        if len(self.log_snr) != len(self.gamma) or not self.gamma:
            raise InputError(
                f"A table of Gamma needs one number per level; got {len(self.gamma)} for {len(self.log_snr)} levels."
            )
        if not all(map(math.isfinite, (*self.log_snr, *self.gamma))) or min(self.gamma) < 0.0:
            raise InputError("The levels of a table of Gamma must be finite, its numbers finite and not negative.")
        if any(a >= b for a, b in zip(self.log_snr, self.log_snr[1:], strict=False)):
            raise InputError("The levels of a table of Gamma must rise strictly in log-SNR.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"log_snr": list(self.log_snr), "gamma": list(self.gamma), "samples": self.samples}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Gamma:
        """The table that :meth:`to_dict` gave.

        Raises:
            InputError: if these are not the values of one.
        """
        try:
            rows = (tuple(float(number) for number in values[key]) for key in ("log_snr", "gamma"))
            return cls(*rows, samples=int(values["samples"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"These are not the values of a table of Gamma ({type(error).__name__}: {error})."
            ) from None

    def monotone(self) -> Gamma:
        r"""The table in which the posterior variance of the data does not rise from a level to one of less noise.

        It is the isotonic regression of :math:`\frac{\sigma^2}{\alpha^2} (1 - \Gamma)` with weights
        :math:`\mathrm{SNR}^2`, the inverse of its variance when all of Gamma is as uncertain, by pooling adjacent
        violators (Ayer et al. 1955). The error of a Gamma near 1 is divided by the SNR: where almost nothing of the
        data is left an estimate says nothing, and what is known nearer to the data stands for it. Exact expectations
        stay as they are.
        """
        from scipy.optimize import isotonic_regression

        snr = np.exp(self.log_snr)
        fit = isotonic_regression((1.0 - np.array(self.gamma)) / snr, weights=snr**2, increasing=False)
        gamma = tuple(max(0.0, float(number)) for number in 1.0 - snr * fit.x)
        return Gamma(self.log_snr, gamma, self.samples)

    def data_variance(self, level: Level) -> Scalar:
        r"""The mean posterior variance of the data, :math:`\tfrac1D \mathbb E \operatorname{tr} Var[x_0 | x]`.

        It is :math:`\frac{\sigma^2}{\alpha^2} (1 - \Gamma)`, never negative. Between the levels of the table the logit
        of :math:`1 - \Gamma` is linear in the log-SNR, as it is for Gaussian data everywhere. Where nothing of the data
        is left, :math:`\alpha = 0`, it is that of the noisiest level of the table.

        Raises:
            InputError: outside the levels of the table.
        """
        wanted = torch.as_tensor(level.log_snr, dtype=torch.float64)
        known = torch.tensor(self.log_snr, dtype=torch.float64, device=wanted.device)
        low, high = self.log_snr[0], self.log_snr[-1]
        wanted = torch.where(wanted == -math.inf, low, wanted)
        slack = 1e-6 * max(1.0, abs(low), abs(high))
        if bool(((wanted < low - slack) | (wanted > high + slack)).any()):
            raise InputError(
                f"Gamma is known from log-SNR {low:.4g} to {high:.4g}, but a step starts at "
                f"{float(wanted.min()):.4g} to {float(wanted.max()):.4g}; estimate it on the levels of this grid."
            )
        gamma = torch.tensor(self.gamma, dtype=torch.float64, device=wanted.device).clamp(_EDGE, 1.0 - _EDGE)
        logit = torch.log1p(-gamma) - gamma.log()
        if len(self.gamma) > 1:
            right = torch.searchsorted(known, wanted.contiguous()).clamp(1, len(known) - 1)
            fraction = ((wanted - known[right - 1]) / (known[right] - known[right - 1])).clamp(0.0, 1.0)
            logit = torch.lerp(logit[right - 1], logit[right], fraction)
        else:
            logit = logit.reshape(()).expand(wanted.shape)
        found = logit.sigmoid() * (-wanted).exp()
        return found if isinstance(level.alpha, Tensor) else float(found)


Batch = Float[Tensor, "..."] | tuple[Float[Tensor, "..."], dict[str, Tensor]]
"""Clean data of shape ``(B, *shape)``, alone or with their conditions; ``B`` may differ from batch to batch."""


@torch.no_grad()
def estimate(
    denoiser: Denoise,
    batches: Iterable[Batch],
    levels: Level,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Gamma:
    r"""Gamma of a denoiser in one pass over data (Bao et al. 2022, sec. 3).

    Every image is seen once at every level. The noise of image ``i`` at level ``k`` is a function of the seed alone,
    so that the result does not depend on the batches, to rounding.

    Args:
        denoiser: a trained denoiser.
        batches: clean data, or pairs of these and their conditions.
        levels: the levels to know it at, such as the grid that will be sampled on; those without noise are left out.
        seed: the seed of the noise.
        progress: called after each batch with the number of images done.

    Raises:
        InputError: if there are no data, no level with noise, or a level without signal.
    """
    steps = [level for level in levels if level.sigma != 0.0]
    if not steps or any(level.alpha == 0.0 for level in steps):
        raise InputError("Gamma needs levels with noise and with signal: sigma and alpha above 0.")
    totals, start = torch.zeros(len(steps), dtype=torch.float64), 0
    for batch in batches:
        x0, cond = batch if isinstance(batch, tuple) else (batch, dict[str, Tensor]())
        for k, level in enumerate(steps):
            noise = random.normal(seed, "analytic", start, len(x0), tuple(x0.shape[1:]), step=k).to(x0)
            prediction = denoiser(diffuse(x0, level, noise), level, **cond)
            totals[k] += prediction.eps.double().square().flatten(1).mean(1).sum().cpu()
        start += len(x0)
        if progress is not None:
            progress(start)
    if start == 0:
        raise InputError("Gamma can't be estimated without data.")
    rows = sorted(zip((float(level.log_snr) for level in steps), (totals / start).tolist(), strict=True))
    return Gamma(tuple(row[0] for row in rows), tuple(row[1] for row in rows), start)


def analytic(
    gamma: Gamma, *, radius: float = 1.0, to_data: bool = False, last: Level | None = None, pixels: float = 2.0
) -> ReverseVariance:
    r"""The reverse variance that is optimal for a denoiser, as far as one number per step can be.

    .. math::
        \sigma^2 = \tilde\beta + k_0^2 \min\left(\frac{\sigma_t^2}{\alpha_t^2} (1 - \Gamma_t),\ r^2\right)

    (Bao et al. 2022, theorem 1, with the bounds of theorem 2: the posterior variance of data is not negative, and that
    of data in an interval of half-width ``r`` at most :math:`r^2`), for any pair of levels.

    Args:
        gamma: the table of the denoiser.
        radius: half the width of the range of the data.
        to_data: whether the step to the data has this variance too, which is its decoder's in a bound; in sampling that
            step adds no noise.
        last: the last noisy level of the grid in use. In the step that ends there, the noise is clipped so that it
            moves a value by at most ``pixels`` of 255 parts of the range on average,
            :math:`\mathbb E |\sigma z| \le 2 r p / 255` (there, app. F).
        pixels: see ``last``; 1 or 2 there.

    Raises:
        InputError: if ``radius`` or ``pixels`` is not positive; when called outside the table.
    """
    if radius <= 0.0 or pixels <= 0.0:
        raise InputError(f"radius and pixels must be positive; got {radius} and {pixels}.")
    end = None if last is None else float(last.log_snr)
    # E|z| = sqrt(2 / pi) for a normal z
    most = (2.0 * radius * pixels / 255.0) ** 2 * math.pi / 2.0
    return partial(_analytic, gamma=gamma, limit=radius * radius, to_data=to_data, end=end, most=most)


def _analytic(
    prediction: Prediction,
    t: Level,
    s: Level,
    *,
    gamma: Gamma,
    limit: float,
    to_data: bool,
    end: float | None,
    most: float,
) -> Scalar:
    k0, _, tilde = posterior_coefficients(t, s)
    spread = gamma.data_variance(t)
    if isinstance(spread, Tensor):
        variance = tilde + k0 * k0 * spread.clamp(max=limit)
        to, there = torch.as_tensor(s.log_snr, device=variance.device), torch.as_tensor(s.sigma, device=variance.device)
        if end is not None:
            variance = torch.where((to >= end - 1e-9) & (there != 0.0), variance.clamp(max=most), variance)
        return variance if to_data else torch.where(there != 0.0, variance, 0.0)
    if s.sigma == 0.0 and not to_data:
        return 0.0
    variance = tilde + k0 * k0 * min(spread, limit)
    clipped = end is not None and s.sigma != 0.0 and float(s.log_snr) >= end - 1e-9
    return min(float(variance), most) if clipped else variance
