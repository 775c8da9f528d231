"""Multistep solvers: exponential Adams methods in any coordinate, with predictor and corrector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.sampling.coordinates import Coordinate, Data, Numbers, Variable, half_log_snr, ratio
from sfumato.sampling.final_step import check_ending, remember, to_data
from sfumato.sampling.sample import Memory

_ROOTS, _WEIGHTS = (np.asarray(values, dtype=np.float64) for values in np.polynomial.legendre.leggauss(20))


@runtime_checkable
class Rule(Protocol):
    """How a step weighs predictions at several levels."""

    @property
    def coordinate(self) -> Coordinate:
        """What is predicted."""
        ...

    def __call__(self, nodes: Sequence[Level], t: Level, s: Level) -> list[float]:
        """The weights of the predictions at ``nodes`` in a step from ``t`` to ``s``."""
        ...

    def usable(self, nodes: Sequence[Level], t: Level, s: Level) -> int:
        """How many of the nodes, from the first, can be weighed together; at least 1."""
        ...


@dataclass(frozen=True, slots=True)
class Adams:
    r"""The polynomial through the predictions, integrated exactly.

    With the Lagrange polynomials :math:`\ell_j` of the nodes :math:`u_j` in the variable :math:`u`, the weights are
    :math:`C_j = \int_{\lambda_t}^{\lambda_s} \rho_s(\lambda)\, \ell_j(u(\lambda))\, d\lambda`. Some members, in which
    the order is the number of nodes:

    ========================= ============ ===========================================
    coordinate                variable     is
    ========================= ============ ===========================================
    any of the first two      order 1      DDIM (Song et al. 2021)
    :class:`~.Noise`          its own      LMS (Katherine Crowson, k-diffusion)
    :class:`~.Noise`          time         tAB-DEIS (Zhang and Chen 2023)
    :class:`~.Data`           log-SNR      DPM-Solver++ (3M) (Lu et al. 2022)
    :class:`~.Data`, tau > 0  log-SNR      SA-Solver (Xue et al. 2023)
    ========================= ============ ===========================================

    Attributes:
        coordinate: what is predicted.
        variable: what it is a polynomial of; by default the coordinate's own.
    """

    coordinate: Coordinate
    variable: Variable | None = None

    def usable(self, nodes: Sequence[Level], t: Level, s: Level) -> int:
        # where nothing of the data is left, log-SNR and most other variables are not finite
        if len(nodes) == 1 or (t.alpha == 0.0 and not self._in_own(t, s)):
            return 1
        finite = np.isfinite(self._at([ratio(node) for node in nodes]))
        return len(nodes) if finite.all() else max(int(np.argmin(finite)), 1)

    def _in_own(self, t: Level, s: Level) -> bool:
        """Whether the integral is that of a polynomial."""
        return self.variable is None and self.coordinate.noise(t, s) == 0.0

    def _at(self, ratios: Sequence[float] | Numbers) -> Numbers:
        variable = self.variable or self.coordinate.own
        with np.errstate(divide="ignore"):
            return variable(np.asarray(ratios, dtype=np.float64))

    def __call__(self, nodes: Sequence[Level], t: Level, s: Level) -> list[float]:
        total = self.coordinate.total(t, s)
        if len(nodes) == 1:
            return [total]
        if self._in_own(t, s):
            start, end = self._at([ratio(t), ratio(s)])
            at, density = start + 0.5 * (end - start) * (1.0 + _ROOTS), 0.5 * total * _WEIGHTS
        else:
            start, end = math.log(ratio(t)), math.log(ratio(s))
            ratios = np.exp(start + 0.5 * (end - start) * (1.0 + _ROOTS))
            at = self._at(ratios)
            density = self.coordinate.density(s, ratios) * (0.5 * (start - end) * _WEIGHTS)
        # the weights whose sums over the nodes' powers are the integrals of those powers
        places = self._at([ratio(node) for node in nodes])
        width = places[1] - places[0]
        of_nodes, within = (
            np.vander((where - places[0]) / width, len(nodes), increasing=True) for where in (places, at)
        )
        weights: list[float] = np.linalg.solve(of_nodes.T, density @ within).tolist()[1:]
        # the sum is known, so that a constant prediction is integrated to the last digit
        return [total - math.fsum(weights), *weights]


def bh1(h: float) -> float:
    """:math:`B(h) = h` (Zhao et al. 2023)."""
    return h


def bh2(h: float) -> float:
    r""":math:`B(h) = 1 - e^{-h}` (Zhao et al. 2023); with it, two nodes make DPM-Solver++(2M) (Lu et al. 2022)."""
    return -math.expm1(-h)


@dataclass(frozen=True, slots=True)
class Unified:
    r"""The weights of UniPC (Zhao et al. 2023), for data.

    Those of three nodes and more solve linear equations whose solution is the exact integral of the polynomial in
    log-SNR (:class:`Adams`), whatever :math:`B(h)`. The slope of two nodes is integrated to half of
    :math:`\alpha_s B(h)`, as in DPM-Solver++.

    Attributes:
        coordinate: of the data, with or without noise.
        b: :math:`B(h)`, :func:`bh1` or :func:`bh2`.
    """

    coordinate: Data = field(default_factory=Data)
    b: Callable[[float], float] = bh2

    def usable(self, nodes: Sequence[Level], t: Level, s: Level) -> int:
        return self._exact.usable(nodes, t, s)

    @property
    def _exact(self) -> Adams:
        return Adams(self.coordinate, half_log_snr)

    def __call__(self, nodes: Sequence[Level], t: Level, s: Level) -> list[float]:
        if len(nodes) != 2:
            return self._exact(nodes, t, s)
        # a predictor has the start and a node before it, a corrector the end and the start
        other = 0 if nodes[1].t == t.t else 1
        step = math.log(ratio(t) / ratio(s))
        part = math.log(ratio(t) / ratio(nodes[other])) / step
        slope = 0.5 * float(s.alpha) * self.b(self.coordinate.growth(t, s)) / part
        total = self.coordinate.total(t, s)
        return [total - slope, slope] if other == 1 else [slope, total - slope]


@dataclass(slots=True)
class Past:
    """What a coordinate made of a prediction, and where."""

    level: Level
    value: Tensor


@dataclass(slots=True)
class _Before:
    """The step before: where it started, and the predictions it weighed with their weights."""

    start: Level
    weights: tuple[float, ...]


def multistep(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    rule: Rule,
    order: int,
    corrector: int = 0,
    ending: int | None = None,
) -> Tensor:
    r"""A step with the predictions at this level and at those before; one evaluation of the denoiser.

    .. math:: x_s = c(t, s)\, x_t + \sum_j C_j N_j

    The order grows with the number of predictions that are there: the first step is of order 1. It is cut in a step
    that reaches so much further than those before that extrapolation would only multiply errors
    (:meth:`~sfumato.sampling.coordinates.Coordinate.bound`).

    With a corrector, what is predicted at ``t`` also improves :math:`x_t` itself, which was reached without it: the
    step that led there is weighed once more with that prediction among the nodes (UniC of Zhao et al. 2023; an
    Adams-Moulton corrector that is evaluated once). Only the weights differ, so that it costs no further pass.

    The step to the data does not integrate: see :func:`~sfumato.sampling.final_step.to_data`.

    Args:
        rule: the coordinate, and how predictions are weighed.
        order: how many predictions are extrapolated, at most.
        corrector: how many predictions from before ``t`` correct :math:`x_t`, at most; 0 for no correction. A corrector
            of ``order`` raises the order by one.
        ending: how many predictions the step to the data extrapolates, at most; by default ``order``, and 1 for a
            coordinate with noise. 1 is the step of DDIM.

    Raises:
        InputError: if an order is out of range.
    """
    coordinate = rule.coordinate
    if ending is None:
        ending = order if coordinate.deterministic else 1
    check_order(order, corrector, ending)
    prediction = denoise(x, t)
    k0, k_eps = coordinate.prediction(t)
    of_data = k_eps == 0.0
    value = prediction.x0 if of_data else prediction.eps if k0 == 0.0 else prediction.mix(k0, k_eps)
    # a prediction holds on to its x, which its data alone leave free
    estimates = remember(memory, t, value if of_data else prediction, ending)
    if s.sigma == 0.0:
        return to_data(estimates, s, ending)
    before: _Before | None = memory.state.get("before")
    history: list[Past] = [Past(t, value), *memory.state.get("history", ())]
    # a correction takes back what the predictor made of its oldest prediction too
    memory.state["history"] = history[: max(order, corrector) if corrector else order - 1]
    if t.alpha == 0.0 and not coordinate.starts_at_noise:
        memory.state["before"] = None
        return prediction.mix(s.alpha, s.sigma)
    nodes = [past.level for past in history]
    weights = _weights(rule, tuple(nodes[:order]), t, s)
    memory.state["before"] = _Before(t, weights)
    carry = coordinate.carry(t, s)
    combined = [*weights, *[0.0] * (len(history) - len(weights))]
    if corrector and before is not None:
        for j, change in enumerate(_correction(rule, nodes, before, min(corrector + 1, len(nodes)))):
            combined[j] += carry * change
    out = x.mul_(carry) if memory.reuse and of_data and value.data_ptr() != x.data_ptr() else x.mul(carry)
    for past, weight in zip(history, combined, strict=True):
        if weight != 0.0:
            out.add_(past.value, alpha=weight)
    spread = coordinate.noise(t, s)
    return out.add_(memory.noise(x), alpha=spread) if spread else out


@lru_cache(4096)
def _weights(rule: Rule, nodes: tuple[Level, ...], t: Level, s: Level) -> tuple[float, ...]:
    """The weights of as many of the nodes, from the first, as can be weighed together.

    They are remembered: every batch takes the same steps.
    """
    count, most = rule.usable(nodes, t, s), rule.coordinate.bound(t, s)
    while True:
        weights = rule(nodes[:count], t, s)
        # written so that a weight that is no number is too large
        if count == 1 or math.fsum(map(abs, weights)) <= most:
            return tuple(weights)
        count -= 1


def _correction(rule: Rule, nodes: Sequence[Level], before: _Before, count: int) -> list[float]:
    """What the prediction at the end of the step before changes in the weights of that step."""
    change = list(_weights(rule, tuple(nodes[:count]), before.start, nodes[0]))
    if len(change) < 2:
        return []
    change += [0.0] * (len(before.weights) + 1 - len(change))
    for j, weight in enumerate(before.weights):
        change[j + 1] -= weight
    return change


def check_order(order: int, corrector: int = 0, ending: int = 1) -> None:
    """Check the orders of a multistep solver.

    Raises:
        InputError: if one is out of range.
    """
    if not 1 <= order <= 4 or not 0 <= corrector <= 4:
        raise InputError(
            "A multistep solver has an order from 1 to 4 and a corrector from 0 (none) to 4; "
            f"got {order} and {corrector}."
        )
    check_ending(ending)
