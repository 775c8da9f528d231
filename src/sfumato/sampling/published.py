"""Multistep solvers by the names they were published with, all of them members of one family."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling.coordinates import Data, Noise, half_log_snr, time_of
from sfumato.sampling.multistep import Adams, Unified, bh2, check_order, multistep
from sfumato.sampling.sample import Step


def lms(order: int = 4, ending: int | None = None) -> Step:
    r"""The linear multistep method of k-diffusion (Katherine Crowson): noise, a polynomial of :math:`\sigma / \alpha`.

    Args:
        order: from 1 to 4.
        ending: as for :func:`~sfumato.sampling.multistep.multistep`.

    Raises:
        InputError: if an order is out of range.
    """
    return _member(Adams(Noise()), order, 0, ending)


def deis(schedule: Schedule, order: int = 3, ending: int | None = None) -> Step:
    """tAB-DEIS (Zhang and Chen 2023, sec. 3.3): noise, a polynomial of the time of a schedule.

    Args:
        schedule: whose time.
        order: from 1 to 4.
        ending: as for :func:`~sfumato.sampling.multistep.multistep`.

    Raises:
        InputError: if an order is out of range.
    """
    return _member(Adams(Noise(), time_of(schedule)), order, 0, ending)


def dpm_solver_pp(order: int = 3, ending: int | None = None) -> Step:
    """The multistep of DPM-Solver++ (Lu et al. 2022): data, a polynomial of log-SNR.

    Of order 2 it is algorithm 2 of the paper, see :func:`~sfumato.sampling.dpm_solver.dpm_solver_pp_2m`. Of order 3 the
    polynomial is integrated exactly; where only half of the integral of its quadratic term is counted, as in diffusers
    0.42, the method is of order 2.

    Args:
        order: from 1 to 4; the paper goes to 3.
        ending: as for :func:`~sfumato.sampling.multistep.multistep`; 1 as published.

    Raises:
        InputError: if an order is out of range.
    """
    return _member(Unified(), order, 0, ending)


def unipc(
    order: int = 3, *, b: Callable[[float], float] = bh2, corrector: bool = True, ending: int | None = None
) -> Step:
    """UniPC (Zhao et al. 2023, algorithms 5 to 8): data, with the predictor UniP and the corrector UniC of one order.

    The corrector raises the order of convergence to ``order + 1``.

    Args:
        order: from 1 to 3.
        b: the function B(h), :func:`~sfumato.sampling.multistep.bh1` or :func:`~sfumato.sampling.multistep.bh2`.
        corrector: whether to correct.
        ending: as for :func:`~sfumato.sampling.multistep.multistep`; 1 as published.

    Raises:
        InputError: if an order is out of range.
    """
    return _member(Unified(Data(), b), order, order if corrector else 0, ending)


def sde_dpm_solver_pp(order: int = 2, eta: float = 1.0, ending: int | None = None) -> Step:
    r"""SDE-DPM-Solver++ of order 2 (Lu et al. 2022, eq. 14) or 3: data, a polynomial of log-SNR, with noise.

    Args:
        order: 1, 2 (2M) or 3 (3M).
        eta: how much noise, :math:`\tau^2` of :class:`~sfumato.sampling.coordinates.Data`; 1 is the reverse diffusion.
        ending: as for :func:`~sfumato.sampling.multistep.multistep`.

    Raises:
        InputError: if ``order`` is out of range or ``eta`` negative.
    """
    if not 0.0 <= eta < math.inf:
        raise InputError(f"The eta of SDE-DPM-Solver++ is at least 0; got {eta}.")
    return _member(Unified(Data(math.sqrt(eta))), order, 0, ending)


def sa_solver(
    order: int = 3,
    corrector: int = 3,
    *,
    tau: float = 1.0,
    low: float = 0.05,
    high: float = 1.0,
    ending: int | None = None,
) -> Step:
    r"""SA-Solver (Xue et al. 2023): stochastic Adams predictor and corrector, with noise in a range of levels.

    Args:
        order: how many predictions the predictor uses, from 1 to 4.
        corrector: how many from before the level that is corrected, besides the one there; 0 for none.
        tau: how much noise; 0 is the probability flow.
        low: the least :math:`\sigma / \alpha` with noise.
        high: the most.
        ending: as for :func:`~sfumato.sampling.multistep.multistep`.

    Raises:
        InputError: if an order is out of range, ``tau`` negative or the range empty.
    """
    return _member(Adams(Data(tau, low, high), half_log_snr), order, corrector, ending)


def _member(rule: Adams | Unified, order: int, corrector: int, ending: int | None) -> Step:
    check_order(order, corrector, 1 if ending is None else ending)
    return partial(multistep, rule=rule, order=order, corrector=corrector, ending=ending)
