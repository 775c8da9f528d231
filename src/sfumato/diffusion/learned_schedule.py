"""The learned schedule of variational diffusion models."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError

# multiplies the shape's parameters: Adam moves them by about the learning rate, yet slopes must change tenfold or more
_PACE = 5.0


class LearnedSchedule(Schedule):
    r"""A learned schedule: its ends minimize the bound, its shape the bound's variance (Kingma et al. 2021).

    The log-SNR is a monotone network (app. H of the paper). With :math:`f` rising from 0 to 1 over the times
    :math:`t_0 \dots 1`,

    .. math::
        \lambda(t) = \lambda_{\max} + (\lambda_{\min} - \lambda_{\max})\, f(t), \qquad
        f(t) = \frac{g(t) - g(t_0)}{g(1) - g(t_0)}, \qquad
        g(t) = w t + \textstyle\sum_j a_j\, \varsigma(b_j t + c_j)

    with positive :math:`w, a_j, b_j`. Below :math:`t_0`, which training never sees, :math:`\sigma / \alpha` is
    proportional to ``t``. Gradients reach the parameters through :meth:`kernel` and :meth:`shape`; levels carry no
    gradients. The defaults are the paper's, for 8-bit data.

    Args:
        log_snr_max: initial log-SNR at the level where the data are decoded.
        log_snr_min: initial log-SNR at the end of the schedule.
        width: number of hidden units of the monotone network.
    """

    # the time t_0 at which the data are decoded
    start = 1e-3

    def __init__(self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, width: int = 64) -> None:
        super().__init__()
        if log_snr_min >= log_snr_max or width < 1:
            raise InputError("A learned schedule needs log_snr_min < log_snr_max and a width of at least 1.")
        self.ends = nn.Parameter(torch.tensor([log_snr_max, log_snr_min]))
        self.linear = nn.Parameter(_inverse_softplus(torch.tensor(0.5)) / _PACE)
        # units spread evenly over time make the initial schedule nearly a straight line
        rate = torch.full((width,), 8.0)
        self.rates = nn.Parameter(_inverse_softplus(rate) / _PACE)
        self.shifts = nn.Parameter(-rate * (torch.arange(width) + 0.5) / width / _PACE)
        self.heights = nn.Parameter(_inverse_softplus(torch.full((width,), 0.5 / width)) / _PACE)

    def shape(self, t: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        r""":math:`f(t)` and its derivative :math:`f'(t)`, for times of at least :math:`t_0`."""
        low, high = (self._unscaled(torch.full_like(t, end)) for end in (self.start, 1.0))
        value, slope = self._unscaled(t)
        span = high[0] - low[0]
        return (value - low[0]) / span, slope / span

    def _unscaled(self, t: Tensor) -> tuple[Tensor, Tensor]:
        linear, rates, shifts, heights = (
            _PACE * p.double().to(t.device) for p in (self.linear, self.rates, self.shifts, self.heights)
        )
        linear, rates, heights = functional.softplus(linear), functional.softplus(rates), functional.softplus(heights)
        unit = (t[..., None] * rates + shifts).sigmoid()
        return linear * t + unit @ heights, linear + (unit * (1.0 - unit)) @ (rates * heights)

    def log_snr_range(self) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
        r""":math:`\lambda_{\max}` and :math:`\lambda_{\min}`, with their gradients."""
        high, low = self.ends.double()
        return high, low

    def kernel(self, t: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        high, low = (end.to(t.device) for end in self.log_snr_range())
        fraction, _ = self.shape(t.clamp(min=self.start))
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
        # 60 bisections reach the spacing of floating-point numbers
        for _ in range(60):
            middle = 0.5 * (left + right)
            below = self.shape(middle)[0] < wanted
            left, right = torch.where(below, middle, left), torch.where(below, right, middle)
        near = self.start * (-0.5 * (log_snr - high)).exp()
        return torch.where(log_snr > high, near, 0.5 * (left + right))


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


def prior_nats(x0: Tensor, log_snr: Tensor) -> Float64[Tensor, "batch"]:
    r""":math:`D_{KL}(q(x_1 | x_0) \| \mathcal N(0, I))` per dimension (Kingma et al. 2021), from the last log-SNR:

    :math:`\tfrac12 (\sigma^2 + \alpha^2 x_0^2 - 1 - \log \sigma^2)` with :math:`\alpha^2 = 1 - \sigma^2`.
    """
    alpha2, log_sigma2 = log_snr.sigmoid(), functional.logsigmoid(-log_snr)
    return 0.5 * (alpha2 * (x0.double().square().flatten(1).mean(1) - 1.0) - log_sigma2)
