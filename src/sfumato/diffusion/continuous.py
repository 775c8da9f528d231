"""The learned schedule of variational diffusion models."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError

_PACE = 5.0
"""How much faster than the weights of a network the shape of a learned schedule is taught: parameters times this.

Adam moves a parameter by about the learning rate in a step, and the slopes must change by factors of 10 and more before
the variance is near its least.
"""


class Learned(Schedule):
    r"""A variance-preserving schedule whose log-SNR is a monotone network (Kingma et al. 2021, app. H).

    With :math:`f` rising from 0 to 1 over the times :math:`t_0 \dots 1`,

    .. math::
        \lambda(t) = \lambda_{\max} + (\lambda_{\min} - \lambda_{\max})\, f(t), \qquad
        f(t) = \frac{g(t) - g(t_0)}{g(1) - g(t_0)}, \qquad
        g(t) = w t + \textstyle\sum_j a_j\, \varsigma(b_j t + c_j)

    with positive :math:`w, a_j, b_j`. The two ends are parameters too. Below :math:`t_0`, which no training sees,
    :math:`\sigma / \alpha` is proportional to ``t``, so that it is 0 at the data as in every schedule.

    The parameters are reached by gradients through :meth:`kernel` and :meth:`shape`; levels are plain numbers.

    Args:
        log_snr_max: the initial log-SNR at :math:`t_0`; 13.3 in the paper.
        log_snr_min: the initial log-SNR at the end; -5 in the paper.
        width: the number of units.

    Raises:
        InputError: if the range is empty or the width not positive.
    """

    start = 1e-3
    """The time :math:`t_0` where the data are decoded."""

    def __init__(self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, width: int = 64) -> None:
        super().__init__()
        if log_snr_min >= log_snr_max or width < 1:
            raise InputError(
                f"A learned schedule needs log_snr_min < log_snr_max and a width of at least 1; got {log_snr_min}, "
                f"{log_snr_max} and {width}."
            )
        self.ends = nn.Parameter(torch.tensor([log_snr_max, log_snr_min]))
        self.linear = nn.Parameter(_inverse_softplus(torch.tensor(0.5)) / _PACE)
        # units spread evenly over the times: at first the schedule is nearly a straight line
        rate = torch.full((width,), 8.0)
        self.rates = nn.Parameter(_inverse_softplus(rate) / _PACE)
        self.shifts = nn.Parameter(-rate * (torch.arange(width) + 0.5) / width / _PACE)
        self.heights = nn.Parameter(_inverse_softplus(torch.full((width,), 0.5 / width)) / _PACE)

    def shape(self, t: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        r""":math:`f(t)` and its derivative :math:`f'(t)`, for times of at least :math:`t_0`."""
        low, high = (self._raw(torch.full_like(t, end)) for end in (self.start, 1.0))
        value, slope = self._raw(t)
        span = high[0] - low[0]
        return (value - low[0]) / span, slope / span

    def _raw(self, t: Tensor) -> tuple[Tensor, Tensor]:
        linear, rates, shifts, heights = (
            _PACE * p.double().to(t.device) for p in (self.linear, self.rates, self.shifts, self.heights)
        )
        linear, rates, heights = functional.softplus(linear), functional.softplus(rates), functional.softplus(heights)
        unit = (t[..., None] * rates + shifts).sigmoid()
        return linear * t + unit @ heights, linear + (unit * (1.0 - unit)) @ (rates * heights)

    def log_snr_range(self) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
        r""":math:`\lambda_{\max}` at :math:`t_0` and :math:`\lambda_{\min}` at the end, with their gradients."""
        high, low = self.ends.double()
        return high, low

    def kernel(self, t: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        high, low = (end.to(t.device) for end in self.log_snr_range())
        fraction, _ = self.shape(t.clamp(min=self.start))
        # lambda = lambda_max - 2 log(t / t_0) below t_0
        ratio = (t / self.start).clamp(max=1.0)
        log_snr = high + (low - high) * fraction
        # sigma^2 / alpha^2 = ratio^2 exp(-log_snr), in a form whose derivative is finite at the data
        alpha = torch.rsqrt(1.0 + ratio * ratio * (-log_snr).exp())
        return alpha, alpha * ratio * (-0.5 * log_snr).exp()

    def _slope(self, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        high, low = (end.to(t.device) for end in self.log_snr_range())
        trained = (low - high) * self.shape(t.clamp(min=self.start))[1]
        return torch.where(t < self.start, -2.0 / t, trained)

    @torch.no_grad()
    def time(self, log_snr: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        high, low = (end.to(log_snr.device) for end in self.log_snr_range())
        wanted = ((log_snr - high) / (low - high)).clamp(0.0, 1.0)
        left, right = torch.full_like(wanted, self.start), torch.ones_like(wanted)
        # halving 60 times ends at the spacing of floating-point numbers
        for _ in range(60):
            middle = 0.5 * (left + right)
            below = self.shape(middle)[0] < wanted
            left, right = torch.where(below, middle, left), torch.where(below, right, middle)
        near = self.start * (-0.5 * (log_snr - high)).exp()
        return torch.where(log_snr > high, near, 0.5 * (left + right))


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


def prior_nats(x0: Tensor, log_snr: Tensor) -> Float64[Tensor, "batch"]:
    r""":math:`D_{KL}(q(x_1 | x_0) \| \mathcal N(0, I))` per dimension, by the log-SNR at the end.

    :math:`\tfrac12 (\sigma^2 + \alpha^2 x_0^2 - 1 - \log \sigma^2)` with :math:`\alpha^2 = 1 - \sigma^2`, the prior
    loss of Kingma et al. 2021.
    """
    alpha2, log_sigma2 = log_snr.sigmoid(), functional.logsigmoid(-log_snr)
    return 0.5 * (alpha2 * (x0.double().square().flatten(1).mean(1) - 1.0) - log_sigma2)
