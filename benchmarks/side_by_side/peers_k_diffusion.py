"""The samplers of k-diffusion, given the exact estimate of the data at the exact noise."""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.schedule import Discrete
from side_by_side.peers import Peer
from side_by_side.problem import Counted, Problem

Grid = Callable[[Any, Problem, int], Tensor]

SAMPLERS: dict[str, dict[str, Any]] = {
    "euler": {},
    "heun": {},
    "dpm_2": {},
    "lms": {},
    "dpmpp_2m": {},
    "dpmpp_2s_ancestral": {"eta": 0.0},
    "dpmpp_sde": {"eta": 0.0},
    "dpmpp_2m_sde": {"eta": 0.0},
    "dpmpp_3m_sde": {"eta": 0.0},
}

TOLERANCES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)


@functools.cache
def sampling() -> Any:
    """k-diffusion's ``sampling.py`` alone: its package imports much that samplers do not need.

    Raises:
        ImportError: if k-diffusion is not installed.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("k-diffusion is not installed: pip install --no-deps k-diffusion")
    folder = Path(spec.submodule_search_locations[0])
    for name, content in (("torchdiffeq", "odeint"), ("torchsde", "BrownianTree")):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            stub: Any = types.ModuleType(name)
            setattr(stub, content, None)
            sys.modules[name] = stub
    package: Any = types.ModuleType("k_diffusion_alone")
    package.__path__ = [str(folder)]
    package.utils = types.ModuleType("k_diffusion_alone.utils")
    package.utils.append_dims = lambda x, dims: x.reshape(*x.shape, *[1] * (dims - x.ndim))
    sys.modules[package.__name__], sys.modules["k_diffusion_alone.utils"] = package, package.utils
    return importlib.import_module("k_diffusion_alone.sampling")


def _end(problem: Problem) -> float:
    return float(problem.schedule(1.0).noise_to_signal)


def _karras(k: Any, problem: Problem, steps: int, lowest: float) -> Tensor:
    return k.get_sigmas_karras(steps, lowest, _end(problem))


def _exponential(k: Any, problem: Problem, steps: int, lowest: float) -> Tensor:
    return k.get_sigmas_exponential(steps, lowest, _end(problem))


def _polyexponential(k: Any, problem: Problem, steps: int, lowest: float, rho: float) -> Tensor:
    return k.get_sigmas_polyexponential(steps, lowest, _end(problem), rho)


def _vp(k: Any, problem: Problem, steps: int) -> Tensor:
    return k.get_sigmas_vp(steps)


def _table(k: Any, problem: Problem, steps: int) -> Tensor:
    """Steps uniform in the index of the table, as its wrapper of discrete models makes them."""
    assert isinstance(problem.schedule, Discrete)
    bars = problem.schedule.alpha_bars
    logs = 0.5 * ((1.0 - bars) / bars).log()
    where = torch.linspace(len(logs) - 1, 0, steps, dtype=torch.float64)
    below, above, part = where.floor().long(), where.ceil().long(), where.frac()
    return k.append_zero(torch.lerp(logs[below], logs[above], part).exp())


def _grids() -> dict[str, tuple[tuple[str, ...], Grid]]:
    every = ("linear", "cosine", "edm")
    found: dict[str, tuple[tuple[str, ...], Grid]] = {
        "vp": (("linear",), _vp),
        "table": (("linear", "cosine"), _table),
    }
    for lowest in (0.002, 0.01, 0.03):
        found[f"karras, sigma_min={lowest}"] = (every, partial(_karras, lowest=lowest))
        found[f"exponential, sigma_min={lowest}"] = (every, partial(_exponential, lowest=lowest))
    for rho in (0.5, 2.0):
        name = f"polyexponential rho={rho}, sigma_min=0.002"
        found[name] = (every, partial(_polyexponential, lowest=0.002, rho=rho))
    return found


def peers() -> list[Peer]:
    """All configurations.

    Raises:
        ImportError: if k-diffusion is not installed.
    """
    k = sampling()
    found: list[Peer] = []
    for sampler, options in SAMPLERS.items():
        kinds = ("midpoint", "heun") if sampler == "dpmpp_2m_sde" else (None,)
        for name, (schedules, grid) in _grids().items():
            for kind in kinds:
                more = options if kind is None else {**options, "solver_type": kind}
                shown = ", ".join([name, *(f"{key}={value}" for key, value in more.items())])
                run = partial(_run, k, getattr(k, f"sample_{sampler}"), grid, more)
                found.append(Peer(f"k-diffusion {sampler}({shown})", schedules, run))
    for lowest in (0.002, 0.01):
        shown = f"sigma_min={lowest}"
        every = ("linear", "cosine", "edm")
        found.append(Peer(f"k-diffusion dpm_fast({shown})", every, partial(_run_fast, k, lowest)))
        for order in (2, 3):
            run = partial(_run_adaptive, k, lowest, order)
            found.append(Peer(f"k-diffusion dpm_adaptive(order={order}, {shown})", every, run))
    return found


class _Model:
    """What k-diffusion calls, with one noise level per sample."""

    def __init__(self, model: Counted) -> None:
        self.model = model

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.model.denoised(x, float(sigma[0]))


def _no_noise(*levels: Any) -> float:
    return 0.0


def _calls(name: str, steps: int) -> int:
    """The evaluations of a sampler whose last step, to the data, is of first order."""
    return 2 * steps - 1 if name in ("heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde") else steps


@torch.no_grad()
def _run(
    k: Any, sampler: Any, grid: Grid, options: dict[str, Any], problem: Problem, model: Counted, nfe: int
) -> Tensor:
    name = sampler.__name__.removeprefix("sample_")
    steps = max(n for n in range(1, nfe + 1) if _calls(name, n) <= nfe)
    sigmas = grid(k, problem, steps).double()
    more = {"noise_sampler": _no_noise} if "eta" in options else {}
    return sampler(_Model(model), problem.noise * sigmas[0], sigmas, disable=True, **options, **more)


@torch.no_grad()
def _run_fast(k: Any, lowest: float, problem: Problem, model: Counted, nfe: int) -> Tensor:
    x = problem.noise * _end(problem)
    return k.sample_dpm_fast(_Model(model), x, lowest, _end(problem), nfe, noise_sampler=_no_noise, disable=True)


class _TooMany(Exception):
    pass


@torch.no_grad()
def _run_adaptive(k: Any, lowest: float, order: int, problem: Problem, model: Counted, nfe: int) -> Tensor:
    """The tightest of some tolerances with which the evaluations, rejected steps included, suffice."""
    best: Tensor | None = None
    most = 0

    def limited(x: Tensor, sigma: Tensor) -> Tensor:
        if model.calls >= nfe:
            raise _TooMany
        return model.denoised(x, float(sigma[0]))

    for rtol in TOLERANCES:
        model.calls = 0
        options = {"order": order, "rtol": rtol, "atol": 0.156 * rtol, "noise_sampler": _no_noise, "disable": True}
        x = problem.noise * _end(problem)
        try:
            best = k.sample_dpm_adaptive(limited, x, lowest, _end(problem), **options)
        except _TooMany:
            break
        most = model.calls
    model.calls = most
    if best is None:
        raise ValueError(f"no tolerance needs only {nfe} evaluations")
    return best
