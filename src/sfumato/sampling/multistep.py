"""Multistep solvers: exponential Adams methods in any coordinate, with predictor and corrector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from torch import Tensor

from sfumato.diffusion.level import Level
from sfumato.sampling.coordinates import Coordinate, Numbers, PredictedData, Variable, half_log_snr, ratio
from sfumato.sampling.sample import Memory, Predict
from sfumato.sampling.steps import remember, to_data

_ROOTS, _WEIGHTS = (np.asarray(values, dtype=np.float64) for values in np.polynomial.legendre.leggauss(20))


@dataclass(frozen=True)
class Adams:
    r"""Weights of the polynomial through the predictions, integrated exactly.

    With the Lagrange polynomials :math:`\ell_j` of the nodes :math:`u_j` in the variable :math:`u`, the weights are
    :math:`C_j = \int_{\lambda_t}^{\lambda_s} \rho_s(\lambda)\, \ell_j(u(\lambda))\, d\lambda`. Special cases, where the
    order is the number of nodes:

    ================================ ======== ===========================================
    coordinate                       variable name
    ================================ ======== ===========================================
    predicted noise or data          order 1  DDIM (Song et al. 2021)
    :class:`~.PredictedNoise`        natural  LMS (Katherine Crowson, k-diffusion)
    :class:`~.PredictedNoise`        time     tAB-DEIS (Zhang and Chen 2023)
    :class:`~.PredictedData`         log-SNR  DPM-Solver++ (3M) (Lu et al. 2022)
    :class:`~.PredictedData`, tau>0  log-SNR  SA-Solver (Xue et al. 2023)
    ================================ ======== ===========================================

    By default the variable of the polynomial is the natural one of the coordinate.
    """

    coordinate: Coordinate
    variable: Variable | None = None

    def usable(self, nodes: Sequence[Level], t: Level, s: Level) -> int:
        """How many of the first nodes can be weighted together; at least 1."""
        # at alpha = 0, the log-SNR and most other variables are not finite
        if len(nodes) == 1 or (t.alpha == 0.0 and not self._is_polynomial(t, s)):
            return 1
        finite = np.isfinite(self._at([ratio(node) for node in nodes]))
        return len(nodes) if finite.all() else max(int(np.argmin(finite)), 1)

    def _is_polynomial(self, t: Level, s: Level) -> bool:
        return self.variable is None and self.coordinate.noise(t, s) == 0.0

    def _at(self, ratios: Sequence[float] | Numbers) -> Numbers:
        with np.errstate(divide="ignore"):
            return (self.variable or self.coordinate.natural)(np.asarray(ratios, dtype=np.float64))

    def __call__(self, nodes: Sequence[Level], t: Level, s: Level) -> list[float]:
        """The weights of the predictions at ``nodes`` in a step from ``t`` to ``s``."""
        total = self.coordinate.total(t, s)
        if len(nodes) == 1:
            return [total]
        if self._is_polynomial(t, s):
            start, end = self._at([ratio(t), ratio(s)])
            at, density = start + 0.5 * (end - start) * (1.0 + _ROOTS), 0.5 * total * _WEIGHTS
        else:
            start, end = math.log(ratio(t)), math.log(ratio(s))
            ratios = np.exp(start + 0.5 * (end - start) * (1.0 + _ROOTS))
            at = self._at(ratios)
            density = self.coordinate.density(s, ratios) * (0.5 * (start - end) * _WEIGHTS)
        # the weights that integrate the powers of the variable exactly
        places = self._at([ratio(node) for node in nodes])
        width = places[1] - places[0]
        powers, of_nodes = (np.vander((p - places[0]) / width, len(nodes), increasing=True) for p in (at, places))
        weights: list[float] = np.linalg.solve(of_nodes.T, density @ powers).tolist()[1:]
        # the sum is known, so that a constant prediction is integrated to the last digit
        return [total - math.fsum(weights), *weights]


@dataclass(frozen=True)
class Unified(Adams):
    r"""The weights of UniPC (Zhao et al. 2023), for predicted data.

    For three or more nodes they equal those of :class:`Adams` for every :math:`B(h)`. The slope of two nodes is
    integrated to half of :math:`\alpha_s B(h)`, where bh1 is :math:`h` and bh2, :math:`1 - e^{-h}`, gives
    DPM-Solver++(2M).
    """

    coordinate: PredictedData = field(default_factory=PredictedData)
    variable: Variable | None = half_log_snr
    b: Literal["bh1", "bh2"] = "bh2"

    def __call__(self, nodes: Sequence[Level], t: Level, s: Level) -> list[float]:
        if len(nodes) != 2:
            return super().__call__(nodes, t, s)
        # a predictor uses the start and a node before it, a corrector the end and the start
        other = 0 if nodes[1].t == t.t else 1
        step = math.log(ratio(t) / ratio(s))
        part = math.log(ratio(t) / ratio(nodes[other])) / step
        growth = self.coordinate.growth(t, s)
        slope = 0.5 * float(s.alpha) * (growth if self.b == "bh1" else -math.expm1(-growth)) / part
        total = self.coordinate.total(t, s)
        return [total - slope, slope] if other == 1 else [slope, total - slope]


def multistep(
    denoise: Predict,
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    rule: Adams,
    order: int = 3,
    corrector: int = 0,
    final_order: int | None = None,
) -> Tensor:
    r"""A step of a multistep solver: one new prediction, combined with those of earlier steps.

    With the predictions :math:`N_j` at the last levels, :math:`x_s = c\, x_t + \sum_j C_j N_j`. A corrector repeats
    the step that led to ``x``, now with the prediction at its end and without a new evaluation; the corrected
    :math:`x_t` only enters the next step. The first steps use the predictions available, and a step whose weights would
    be too large (:class:`Coordinate`) uses fewer.

    Args:
        rule: the rule that gives the weights of the predictions.
        order: the most predictions that the predictor extrapolates.
        corrector: the most predictions from before ``t`` that correct :math:`x_t`; setting it to ``order`` raises the
            order by one.
        final_order: the most predictions that the step to the data extrapolates; by default ``order``, and 1 (DDIM) for
            a coordinate with noise.
    """
    coordinate = rule.coordinate
    if final_order is None:
        final_order = order if coordinate.tau == 0.0 else 1
    prediction = denoise(x, t)
    k0, k_eps = coordinate.prediction(t)
    of_data = k_eps == 0.0
    value = prediction.x0 if of_data else prediction.eps if k0 == 0.0 else prediction.mix(k0, k_eps)
    # a prediction keeps its x in memory, its estimate of the data does not
    estimates = remember(memory, t, value if of_data else prediction, final_order)
    if s.sigma == 0.0:
        return to_data(estimates, s, final_order)
    before: tuple[Level, tuple[float, ...]] | None = memory.state.get("before")
    history: list[tuple[Level, Tensor]] = [(t, value), *memory.state.get("history", ())]
    # a correction also takes back the predictor's weight of its oldest prediction
    memory.state["history"] = history[: max(order, corrector) if corrector else order - 1]
    if t.alpha == 0.0 and not coordinate.starts_at_noise:
        memory.state["before"] = None
        return prediction.mix(s.alpha, s.sigma)
    nodes = [level for level, _ in history]
    weights = _weights(rule, tuple(nodes[:order]), t, s)
    memory.state["before"] = t, weights
    carry = coordinate.carry(t, s)
    combined = [*weights, *[0.0] * (len(history) - len(weights))]
    if corrector and before is not None:
        for j, change in enumerate(_correction(rule, nodes[: corrector + 1], *before)):
            combined[j] += carry * change
    out = x.mul(carry)
    for (_, past), weight in zip(history, combined, strict=True):
        if weight != 0.0:
            out.add_(past, alpha=weight)
    std = coordinate.noise(t, s)
    return out.add_(memory.noise(x), alpha=std) if std else out


@lru_cache(4096)
def _weights(rule: Adams, nodes: tuple[Level, ...], t: Level, s: Level) -> tuple[float, ...]:
    """The weights of the first nodes that can be weighted together; cached, since every batch takes the same steps."""
    count, bound = rule.usable(nodes, t, s), rule.coordinate.limit * abs(rule.coordinate.total(t, s))
    while True:
        weights = rule(nodes[:count], t, s)
        # written so that NaN counts as too large
        if count == 1 or math.fsum(map(abs, weights)) <= bound:
            return tuple(weights)
        count -= 1


def _correction(rule: Adams, nodes: list[Level], start: Level, before: tuple[float, ...]) -> list[float]:
    """The change of the weights of the step before, which began at ``start``, by the prediction at its end."""
    after = _weights(rule, tuple(nodes), start, nodes[0])
    if len(after) < 2:
        return []
    return [new - old for new, old in itertools.zip_longest(after, (0.0, *before), fillvalue=0.0)]
