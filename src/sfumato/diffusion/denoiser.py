"""The denoiser: a network, a schedule and the meaning of the network's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from sfumato.diffusion.level import Data, Level, Scalar, broadcast
from sfumato.diffusion.parameterization import Output, Parameterization
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError


class Prediction:
    r"""What a denoiser predicts at a level: :math:`\hat x_0 = a x + b F` and :math:`\hat\epsilon = c x + d F`.

    With a ``base`` :math:`\mu`, :math:`x` and :math:`x_0` stand for the residuals :math:`x - \alpha \mu` and
    :math:`x_0 - \mu`.

    Where the reverse variance is learned, ``variance_fraction`` interpolates between the logarithms of the small
    variance (0) and the large one (1) (Nichol and Dhariwal 2021, eq. 15). Where a classifier guides ancestral steps,
    the mean of a step is shifted by its variance times ``shift``; the estimates do not include this shift.
    """

    __slots__ = ("_base", "_f", "_out", "_x", "shift", "variance_fraction")

    def __init__(
        self,
        x: Tensor,
        f: Tensor,
        out: Output,
        variance_fraction: Tensor | None = None,
        shift: Tensor | None = None,
        base: Tensor | None = None,
    ) -> None:
        self._x, self._f, self._out, self._base = x, f, out, base
        self.variance_fraction, self.shift = variance_fraction, shift

    @classmethod
    def of_x0(
        cls,
        x: Tensor,
        x0: Tensor,
        level: Level,
        variance_fraction: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Prediction:
        """The prediction whose estimate of the data is ``x0``."""
        one_over_sigma = 1.0 / level.sigma
        out = Output(1.0, 0.0, 1.0, one_over_sigma, -level.alpha * one_over_sigma)
        return cls(x, x0, out, variance_fraction, shift)

    def shifted(self, shift: Data) -> Prediction:
        """The same prediction, with a ``shift`` added for the mean of ancestral steps."""
        return Prediction(self._x, self._f, self._out, self.variance_fraction, shift, self._base)

    @property
    def x0(self) -> Data:
        rest = _combine(self._x, self._f, self._out.a, self._out.b)
        return rest if self._base is None else rest + self._base

    @property
    def eps(self) -> Data:
        return _combine(self._x, self._f, self._out.c, self._out.d)

    def output_error(self, x0: Data, eps: Data) -> Data:
        r"""The error of the network's output, :math:`F - F^*`, for the true data and noise.

        From :math:`\hat x_0 - x_0 = b (F - F^*)` and :math:`\hat\epsilon - \epsilon = d (F - F^*)`.
        """
        b, d = self._out.b, self._out.d
        norm = b * b + d * d
        return broadcast(b / norm, x0) * (self.x0 - x0) + broadcast(d / norm, x0) * (self.eps - eps)

    def mix(self, k0: Scalar, k_eps: Scalar) -> Data:
        r"""The combination :math:`k_0 \hat x_0 + k_\epsilon \hat\epsilon`."""
        out = self._out
        rest = _combine(self._x, self._f, k0 * out.a + k_eps * out.c, k0 * out.b + k_eps * out.d)
        return rest if self._base is None else rest + broadcast(k0, rest) * self._base


def _combine(x: Tensor, f: Tensor, p: Scalar, q: Scalar) -> Tensor:
    if isinstance(p, Tensor) or isinstance(q, Tensor):
        return broadcast(p, x) * x + broadcast(q, x) * f
    if p == 0.0:
        return f.to(x.dtype) if q == 1.0 else f.to(x.dtype) * q
    return x.mul(p).add_(f, alpha=q)


@runtime_checkable
class Denoise(Protocol):
    """Anything that estimates the clean data: a network with its coefficients, an oracle, or a wrapper around one."""

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction: ...


# the number that stands for a level in the network's time embedding
Embed = Callable[[Level], Scalar]
# a first estimate of the data from the conditions alone, of the shape of x
Base = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def embed_index(steps: int) -> Embed:
    """The step index :math:`t T - 1` in ``0 ... T - 1`` of DDPM, for a table of ``steps`` betas."""
    return lambda level: level.t * float(steps) - 1.0


def embed_thousand(level: Level) -> Scalar:
    """1000 t, DDPM's step index for models in continuous time (the code of Y. Song et al. 2021 uses 999 t)."""
    return level.t * 1000.0


def embed_log_sigma(level: Level) -> Scalar:
    r""":math:`\tfrac14 \ln(\sigma / \alpha)`, the noise input of EDM (Karras et al. 2022, table 1)."""
    return level.log_snr * -0.125


def embed_log_snr(level: Level) -> Scalar:
    """A quarter of the log-SNR."""
    return level.log_snr * 0.25


def embed_gamma(level: Level) -> Scalar:
    r""":math:`1000\, \gamma`, with :math:`\gamma = \alpha^2 / (\alpha^2 + \sigma^2)`, the condition of SR3."""
    signal, noise = level.alpha * level.alpha, level.sigma * level.sigma
    return 1000.0 * signal / (signal + noise)


class Denoiser(nn.Module):
    r"""A network that estimates the clean data and the noise.

    Args:
        network: called as ``network(x, time, **cond)`` with ``time`` of shape ``(B,)``.
        schedule: the noise schedule it is trained with.
        parameterization: what the network's output means.
        embed: maps the level to the number passed as ``time``.
        learned_variance: whether the network returns twice as many channels as ``x``: its output, and
            :math:`2 v - 1` for the fraction :math:`v` of the reverse variance.
        data_std: the standard deviation of the data, which solvers use as the scale of the data.
        base: a first estimate :math:`\mu(c)` of the data from the conditions; the network then sees and predicts the
            residual, as if the data were :math:`x_0 - \mu` (whose standard deviation is ``data_std``).
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parameterization: Parameterization,
        embed: Embed,
        *,
        learned_variance: bool = False,
        data_std: float = 1.0,
        base: Base | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.network, self.schedule, self.parameterization, self.embed = network, schedule, parameterization, embed
        self.learned_variance, self.data_std = learned_variance, data_std

    def with_network(self, network: nn.Module) -> Denoiser:
        """The same denoiser around another network, such as a copy in another precision."""
        parts = (network, self.schedule, self.parameterization, self.embed)
        return Denoiser(*parts, learned_variance=self.learned_variance, data_std=self.data_std, base=self.base)

    def start(self, x: Data, level: Level, **cond: Tensor) -> Data:
        """The starting point of sampling at its first ``level``, made from pure noise ``x`` of that level."""
        return x if self.base is None else x + broadcast(level.alpha, x) * self.base(x, cond)

    def forward(self, x: Data, level: Level, **cond: Tensor) -> Prediction:
        """The prediction for ``x`` at a ``level`` with ``sigma > 0``, either one for the batch or one per sample."""
        if not isinstance(level.sigma, Tensor) and level.sigma == 0.0:
            raise InputError("A denoiser was called at sigma = 0; end the grid at the data without calling it there.")
        out, base = self.parameterization(level), None
        if self.base is not None:
            base = self.base(x, cond)
            x = x - broadcast(level.alpha, x) * base
        scaled = x if not isinstance(out.c_in, Tensor) and out.c_in == 1.0 else broadcast(out.c_in, x) * x
        time = self.embed(level)
        if isinstance(time, Tensor):
            time = time.to(x.dtype).to(x.device, non_blocking=True).expand(x.shape[0])
        else:
            time = x.new_full((x.shape[0],), time)
        output: Tensor = self.network(scaled, time, **cond)
        if not self.learned_variance:
            return Prediction(x, output, out, base=base)
        if output.shape[1] != 2 * x.shape[1]:
            raise InputError(
                f"A network that learns the variance must return {2 * x.shape[1]} channels for an input of "
                f"{x.shape[1]}; this one returns {output.shape[1]}."
            )
        f, fraction = output.chunk(2, dim=1)
        return Prediction(x, f, out, 0.5 * (fraction.to(x.dtype) + 1.0), base=base)
