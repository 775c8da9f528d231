"""The schedulers of diffusers, each given the exact noise at its own timesteps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.level import Level
from side_by_side.peers import Peer
from side_by_side.problem import Counted, Problem

VP = ("linear", "cosine")
BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}

SPACINGS: tuple[dict[str, Any], ...] = tuple({"timestep_spacing": s} for s in ("linspace", "leading", "trailing"))
SIGMAS: tuple[dict[str, Any], ...] = tuple({f"use_{s}_sigmas": True} for s in ("karras", "exponential"))
LU: tuple[dict[str, Any], ...] = ({"use_lu_lambdas": True},)
ENDS: tuple[dict[str, Any], ...] = ({}, {"final_sigmas_type": "sigma_min"})


def _products(*axes: tuple[dict[str, Any], ...]) -> Iterator[dict[str, Any]]:
    for parts in itertools.product(*axes):
        yield {key: value for part in parts for key, value in part.items()}


def _each(name: str, *values: Any) -> tuple[dict[str, Any], ...]:
    return tuple({name: value} for value in values)


def _configurations() -> Iterator[tuple[str, dict[str, Any]]]:
    grids = SPACINGS + SIGMAS
    for options in (*SPACINGS, {"timestep_spacing": "leading", "steps_offset": 1}):
        yield from (("DDIM", {"clip_sample": False, **o}) for o in (options, {**options, "set_alpha_to_one": False}))
        yield "PNDM", {"skip_prk_steps": True, **options}
        yield "PNDM", {"skip_prk_steps": False, **options}
    endings = ({}, {"final_sigmas_type": "sigma_min"}, {"euler_at_final": True}, {"lower_order_final": False})
    for options in _products(_each("solver_order", 2, 3), grids + LU, endings):
        yield "DPMSolverMultistep", options
    for options in _products(_each("solver_type", "heun"), grids + LU):
        yield "DPMSolverMultistep", {"solver_order": 2, **options}
    for options in _products(_each("solver_order", 2, 3), grids + LU, _each("final_sigmas_type", "sigma_min")):
        yield "DPMSolverMultistep", {"algorithm_type": "dpmsolver", **options}
    for options in _products(_each("solver_order", 2, 3), ({"lambda_min_clipped": -5.1},), SPACINGS):
        yield "DPMSolverMultistep", options
    for options in _products(_each("solver_order", 2, 3), ({}, *SIGMAS), ENDS, _each("lower_order_final", True, False)):
        yield "DPMSolverSinglestep", options
    for options in _products(_each("solver_order", 2, 3), _each("solver_type", "bh1", "bh2"), grids, ENDS):
        yield "UniPCMultistep", options
    for options in _products(_each("solver_order", 2, 3), _each("solver_type", "bh2"), grids):
        yield "UniPCMultistep", {"predict_x0": False, "final_sigmas_type": "sigma_min", **options}
        yield "UniPCMultistep", {"lower_order_final": False, **options}
    for options in _products(_each("solver_order", 2, 3), grids):
        yield "DEISMultistep", options
    for options in _products(grids + _each("use_beta_sigmas", True), ENDS):
        yield "EulerDiscrete", options
    for name in ("HeunDiscrete", "LMSDiscrete", "KDPM2Discrete"):
        yield from ((name, options) for options in grids)
    for options in _products(
        ({"predictor_order": 2, "corrector_order": 2}, {"predictor_order": 3, "corrector_order": 4}), grids
    ):
        yield "SASolver", {"tau_func": _no_noise, **options}


def _no_noise(t: Any) -> float:
    return 0.0


def _label(kind: str, options: dict[str, Any]) -> str:
    shown = ", ".join(f"{key}={value}" for key, value in options.items() if not callable(value))
    return f"diffusers {kind}({shown})"


def peers() -> list[Peer]:
    """All configurations.

    Raises:
        ImportError: if diffusers is not installed.
    """
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    found = [
        Peer(_label(kind, options), VP, partial(_run_vp, getattr(diffusers, f"{kind}Scheduler"), options))
        for kind, options in _configurations()
    ]
    # a table whose last levels round to the same timestep makes most of them take the second for the first
    repeated = [(kind, o) for kind, o in _configurations() if any(key.startswith("use_") for key in o)]
    for kind, options in repeated:
        run = partial(_run_vp, getattr(diffusers, f"{kind}Scheduler"), options, begin=True)
        found.append(Peer(f"{_label(kind, options)}, set_begin_index(0)", ("cosine",), run))
    for kind, axes in (
        ("EDMEuler", (_each("sigma_schedule", "karras", "exponential"), ENDS)),
        (
            "EDMDPMSolverMultistep",
            (
                _each("sigma_schedule", "karras", "exponential"),
                _each("solver_order", 2, 3),
                (*ENDS, {"euler_at_final": True}, {"lower_order_final": False}, {"solver_type": "heun"}),
            ),
        ),
    ):
        scheduler = getattr(diffusers, f"{kind}Scheduler")
        found += [Peer(_label(kind, o), ("edm",), partial(_run_edm, scheduler, o)) for o in _products(*axes)]
    return found


def _set_timesteps(scheduler: Any, nfe: int) -> None:
    """As many steps as the evaluations allow: several schedulers make more than one evaluation per step."""
    for steps in range(nfe, 0, -1):
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= nfe:
            return
    raise ValueError(f"no number of steps makes at most {nfe} evaluations")


def _start(scheduler: Any, noise: Tensor, last: Level) -> Tensor:
    """The noise at the scheduler's first level, from the same draw; at t = 1 where it starts there."""
    scale = float(scheduler.init_noise_sigma)
    if scale == 1.0:
        return noise * last.sigma
    first, end = float(scheduler.sigmas[0]), float(last.noise_to_signal)
    return noise * (end if abs(first / end - 1.0) < 1e-3 else scale)


@torch.no_grad()
def _run_vp(
    kind: Any, options: dict[str, Any], problem: Problem, model: Counted, nfe: int, *, begin: bool = False
) -> Tensor:
    scheduler = kind(num_train_timesteps=1000, **BETAS[problem.schedule_name], **options)
    _set_timesteps(scheduler, nfe)
    if begin:
        scheduler.set_begin_index(0)
    return _walk(scheduler, _start(scheduler, problem.noise, problem.schedule(1.0)), model)


def _walk(scheduler: Any, x: Tensor, model: Counted, **options: Any) -> Tensor:
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(model.noise_at(seen.double(), float(t)), t, x, **options).prev_sample
    return x


STOCHASTIC: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "diffusers DDPM(trailing)": ("DDPM", {"timestep_spacing": "trailing", "clip_sample": False}, {}),
    "diffusers DDIM(trailing, eta=1)": ("DDIM", {"timestep_spacing": "trailing", "clip_sample": False}, {"eta": 1.0}),
    "diffusers EulerAncestralDiscrete(trailing)": ("EulerAncestralDiscrete", {"timestep_spacing": "trailing"}, {}),
    "diffusers DPMSolverMultistep(sde-dpmsolver++, karras)": (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        {},
    ),
}
"""Samplers that add noise: the scheduler, its options, and those of its steps."""


@torch.no_grad()
def draw(name: str, schedule: str, noise: Tensor, model: Counted, nfe: int, seed: int) -> Tensor:
    """Samples of one of :data:`STOCHASTIC`."""
    import diffusers

    kind, options, of_step = STOCHASTIC[name]
    scheduler = getattr(diffusers, f"{kind}Scheduler")(num_train_timesteps=1000, **BETAS[schedule], **options)
    _set_timesteps(scheduler, nfe)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    generator = torch.Generator().manual_seed(seed)
    return _walk(scheduler, _start(scheduler, noise, model.schedule(1.0)), model, generator=generator, **of_step)


@torch.no_grad()
def _run_edm(kind: Any, options: dict[str, Any], problem: Problem, model: Counted, nfe: int) -> Tensor:
    scheduler = kind(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, **options)
    _set_timesteps(scheduler, nfe)
    x = _start(scheduler, problem.noise, problem.schedule(1.0))
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        sigma = float(scheduler.sigmas[scheduler.step_index])
        # the raw output of a network under EDM's preconditioning whose estimate of the data is exact
        total = sigma**2 + 0.25
        raw = (model.denoised(x.double(), sigma) - x * (0.25 / total)) / (sigma * 0.5 / total**0.5)
        x = scheduler.step(raw, t, x).prev_sample
    return x
