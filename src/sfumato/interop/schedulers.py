"""Schedulers of diffusers: what their settings mean for a model, and for how it is sampled."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field

from sfumato.config import Component, parse
from sfumato.diffusion.schedule import Discrete
from sfumato.errors import InputError
from sfumato.interop.diffusers_format import Positive

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""What a network predicts, by its name there."""

VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}
"""The reverse variances by their names there."""

MOST_STEPS = 100_000
"""The longest table of betas that is read; published ones have a thousand steps, or four."""

Spacing = Literal["leading", "linspace", "trailing"]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class Scheduler(Component):
    """The settings of a scheduler of diffusers, with their defaults; of their values those with a meaning here.

    What a setting of another scheduler says is ignored there too: a file often keeps those of the one it was made from.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    multistep: ClassVar[bool] = False
    steps: ClassVar[int] = 50

    num_train_timesteps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 1000
    beta_start: Positive = 1e-4
    beta_end: Positive = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    trained_betas: Annotated[list[Positive], Field(min_length=1, max_length=MOST_STEPS)] | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    timestep_spacing: Spacing = "leading"
    steps_offset: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 0
    rescale_betas_zero_snr: bool = False

    @property
    def table(self) -> int:
        """The number of betas."""
        return self.num_train_timesteps if self.trained_betas is None else len(self.trained_betas)

    def count(self) -> int:
        """The number of steps that its users take where they don't say another, as far as the table has them."""
        if self.multistep:
            return max(min(self.steps, self.table - 1), 1)
        return min(self.steps, self.table)

    def grid(self) -> dict[str, Any]:
        """The settings of the grid."""
        grid = {"kind": "timesteps", "spacing": self.timestep_spacing, "before_last": self.multistep}
        # only leading adds it
        return {**grid, "offset": self.steps_offset} if self.timestep_spacing == "leading" else grid

    def sampling(self, learned: bool, table: Discrete) -> tuple[dict[str, Any], list[str]]:
        """The settings of sampling, and in words what differs there.

        Args:
            learned: whether the network has outputs for the reverse variance.
            table: the schedule.
        """
        raise NotImplementedError


class _Clipping(Scheduler):
    """The ways to keep estimates of the data in their range."""

    clip_sample: bool = True
    clip_sample_range: Positive = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: Fraction = 0.995
    sample_max_value: Positive = 1.0

    @property
    def clip(self) -> float | None:
        """The greatest magnitude of estimates, None for any."""
        # thresholds between 1 and sample_max_value are 1 at its default, which clips
        return 1.0 if self.thresholding else self.clip_sample_range if self.clip_sample else None


def _threshold(ratio: float, most: float) -> dict[str, Any]:
    """Dynamic thresholding, which is clipping at the default of its greatest value."""
    return {"clip": True, **({} if most == 1.0 else {"guidance": {"threshold": ratio, "cap": most}})}


class DDPM(_Clipping):
    """The settings of a ``DDPMScheduler``."""

    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"] = (
        "fixed_small"
    )

    def count(self) -> int:
        # with an offset, all steps of the table would begin after its end
        offset = self.steps_offset if self.timestep_spacing == "leading" else 0
        return min(self.steps, self.table) if offset else self.table

    def sampling(self, learned: bool, table: Discrete) -> tuple[dict[str, Any], list[str]]:
        notes: list[str] = []
        variance = VARIANCES[self.variance_type]
        variance = "small" if variance == "learned" and not learned else variance
        if self.thresholding:
            clip = _threshold(self.dynamic_thresholding_ratio, self.sample_max_value)
        else:
            clip = {"clip": self.clip is not None}
            if self.clip not in (None, 1.0):
                notes.append(f"clip_sample_range {self.clip_sample_range:g}: estimates of the data are clipped to 1")
        sampling = {"sampler": {"kind": "ancestral", "variance": variance}, **clip}
        if variance != "small":
            last = _indices(self, table)[-1]
            if last > 0:
                std = math.sqrt(1.0 - float(table.alpha_bars[last]))
                notes.append(f"the noise after the last step, of a standard deviation up to {std:.3g}, is not added")
        return sampling, notes


class DDIM(_Clipping):
    """The settings of a ``DDIMScheduler``."""

    set_alpha_to_one: bool = True

    def sampling(self, learned: bool, table: Discrete) -> tuple[dict[str, Any], list[str]]:
        notes = _jumps(self, table)
        clip: dict[str, Any] = {"clip": False}
        sampler: dict[str, Any] = {"kind": "ddim", **_final(self.set_alpha_to_one, table)}
        if self.thresholding and self.sample_max_value != 1.0:
            clip = _threshold(self.dynamic_thresholding_ratio, self.sample_max_value)
            notes.append("thresholding: the noise is that of the thresholded estimate of the data")
        elif self.clip is not None:
            sampler["clip_data"] = self.clip
        return {"sampler": sampler, **clip}, notes


class PNDM(Scheduler):
    """The settings of a ``PNDMScheduler``."""

    set_alpha_to_one: bool = False

    def sampling(self, learned: bool, table: Discrete) -> tuple[dict[str, Any], list[str]]:
        sampler = {"kind": "ddim", **_final(self.set_alpha_to_one, table)}
        notes = ["the pseudo-numerical steps of PNDM: those of DDIM are taken", *_jumps(self, table)]
        return {"sampler": sampler, "clip": False}, notes


class _Multistep(Scheduler):
    """What the multistep schedulers have in common."""

    multistep: ClassVar[bool] = True
    steps: ClassVar[int] = 20

    timestep_spacing: Spacing = "linspace"
    thresholding: bool = False
    dynamic_thresholding_ratio: Fraction = 0.995
    sample_max_value: Positive = 1.0
    solver_order: Annotated[int, Field(ge=1, le=3)] = 2
    lower_order_final: bool = True
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    use_flow_sigmas: Literal[False] | None = False
    use_lu_lambdas: bool | None = False

    def grid(self) -> dict[str, Any]:
        if self.use_karras_sigmas or self.use_exponential_sigmas or self.use_lu_lambdas:
            return {"kind": "karras" if self.use_karras_sigmas else "log_snr"}
        return super().grid()

    def _common(self, table: Discrete) -> tuple[dict[str, Any], list[str]]:
        """What is done with estimates and levels, and what differs."""
        notes: list[str] = []
        how: dict[str, Any] = {"clip": False}
        if self.thresholding:
            how = _threshold(self.dynamic_thresholding_ratio, self.sample_max_value)
        sigma = math.sqrt(1.0 - float(table.alpha_bars[0]))
        if self.final_sigmas_type == "sigma_min":
            notes.append(
                f"final_sigmas_type sigma_min: the noise left there, of a standard deviation {sigma:.3g}, is removed"
            )
        zero_end = float(table.alpha_bars[-1]) == 0.0
        if zero_end:
            notes.append("rescale_betas_zero_snr: sampling starts without signal, and with alpha_bar 2^-24 there")
        if self.grid()["kind"] != "timesteps":
            how["grid"] = {**self.grid(), "sigma_min": sigma / math.sqrt(1.0 - sigma * sigma)}
            if zero_end:
                # there it is 2^-24
                how["grid"]["sigma_max"] = 2.0**12
            notes.append("the levels between steps of the table, of which the network is told the nearest step there")
        if self.use_beta_sigmas:
            notes.append(f"use_beta_sigmas: the levels have {self.timestep_spacing} spacing")
        return how, notes


class DPMSolver(_Multistep):
    """The settings of a ``DPMSolverMultistepScheduler``."""

    algorithm_type: Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"] = "dpmsolver++"
    solver_type: Literal["midpoint", "heun", "logrho", "bh1", "bh2"] = "midpoint"
    euler_at_final: bool = False
    lambda_min_clipped: Annotated[float, Field(allow_inf_nan=True)] = -math.inf
    variance_type: Literal["learned", "learned_range"] | None = None

    def sampling(self, learned: bool, table: Discrete) -> tuple[dict[str, Any], list[str]]:
        how, notes = self._common(table)
        order, algorithm = self.solver_order, self.algorithm_type
        stochastic, of_noise = algorithm.startswith("sde"), not algorithm.endswith("++") and algorithm != "deis"
        if order == 3:
            notes.append("solver_order 3: its quadratic term is integrated exactly here, and by half there")
        sampler: dict[str, Any]
        if stochastic:
            sampler = {"kind": "sde_dpm_solver", "order": order}
            if of_noise:
                notes.append(f"algorithm_type {algorithm}: steps are those of sde-dpmsolver++")
            if self.solver_type == "heun" and order == 2:
                notes.append("solver_type heun: steps are those of midpoint")
        elif of_noise or (self.solver_type == "heun" and order == 2):
            coordinate = "noise" if of_noise else "data"
            sampler = {"kind": "multistep", "coordinate": coordinate, "variable": "log_snr", "order": order}
            sampler["final_order"] = 1
            if of_noise and self.solver_type != "heun" and order == 2:
                notes.append("solver_type midpoint of algorithm_type dpmsolver: steps are those of heun")
        else:
            sampler = {"kind": "dpm_solver", "order": order, "final_order": 1}
        if math.isfinite(self.lambda_min_clipped):
            log_snr = 0.5 * (table.alpha_bars.log() - torch.log1p(-table.alpha_bars))
            noisiest = int((log_snr >= self.lambda_min_clipped).sum())
            if self.timestep_spacing == "trailing" or "grid" in how or noisiest < 2:
                notes.append(f"lambda_min_clipped {self.lambda_min_clipped:g}: sampling starts at the end of the table")
            else:
                how["grid"] = {**self.grid(), "noisiest": noisiest}
        return {"sampler": sampler, **how}, notes


class UniPC(_Multistep):
    """The settings of a ``UniPCMultistepScheduler``."""

    predict_x0: bool = True
    solver_type: Literal["bh1", "bh2", "midpoint", "heun", "logrho"] = "bh2"
    disable_corrector: list[int] = Field(default=[])
    solver_p: None = None

    def sampling(self, learned: bool, table: Discrete) -> tuple[dict[str, Any], list[str]]:
        how, notes = self._common(table)
        if self.disable_corrector:
            notes.append(f"disable_corrector {self.disable_corrector}: every step is corrected")
        if not self.predict_x0:
            notes.append("predict_x0 false: the data are predicted")
        if self.solver_order > 2 and self.lower_order_final:
            notes.append("lower_order_final: the step before the last keeps its order")
        if not self.lower_order_final:
            notes.append("lower_order_final false: the last step has order 1")
        b = "bh1" if self.solver_type == "bh1" else "bh2"
        if b == "bh1" and self.final_sigmas_type == "zero":
            notes.append("solver_type bh1: the last step is that of DDIM, and not a number there")
        return {"sampler": {"kind": "unipc", "order": self.solver_order, "b": b, "final_order": 1}, **how}, notes


SCHEDULERS: dict[str, type[Scheduler]] = {
    "DDPMScheduler": DDPM,
    "DDIMScheduler": DDIM,
    "PNDMScheduler": PNDM,
    "DPMSolverMultistepScheduler": DPMSolver,
    "UniPCMultistepScheduler": UniPC,
}


def _final(to_one: bool, table: Discrete) -> dict[str, float]:
    """Where the last step of DDIM ends: at the data, or at the first step of the table."""
    return {} if to_one else {"final_sigma": math.sqrt(-math.expm1(float(table.log_alpha_bar[1])))}


def _indices(scheduler: Scheduler, table: Discrete) -> list[int]:
    """The indices of the steps of the table that the grid stops at."""
    from sfumato.sampling.timesteps import timesteps

    options = {name: value for name, value in scheduler.grid().items() if name != "kind"}
    times = torch.as_tensor(timesteps(table, scheduler.count(), **options).t) * table.steps
    return [int(time) - 1 for time in times[:-1].round()]


def _jumps(scheduler: Scheduler, table: Discrete) -> list[str]:
    """What is to be said of DDIM there, whose steps all have one length, whatever the grid."""
    indices = np.array(_indices(scheduler, table))
    ends = (indices - table.steps // len(indices))[:-1]
    most = int(np.abs(ends - indices[1:]).max(initial=0))
    if most == 0:
        return []
    return [
        f"steps of {scheduler.timestep_spacing} spacing that end up to {most} of {table.steps} steps of the table from "
        "where the next begins: here each begins where the last one ended"
    ]


def read_scheduler(settings: dict[str, Any]) -> tuple[Scheduler, list[str]]:
    """A scheduler from its file, and the names of its settings that none of them has."""
    kind = settings.get("_class_name")
    if not isinstance(kind, str) or kind not in SCHEDULERS:
        raise InputError(
            f"The scheduler {kind!r} of diffusers has no table of betas that is known here; save the pipeline with one "
            f"of {', '.join(SCHEDULERS)}."
        )
    known = {name for scheduler in SCHEDULERS.values() for name in scheduler.model_fields} | _WITHOUT_MEANING
    unknown = [name for name, value in settings.items() if name[:1] != "_" and name not in known and value]
    return parse(SCHEDULERS[kind], settings, origin=f"the configuration of the {kind}"), unknown


_WITHOUT_MEANING = frozenset(
    {
        *("skip_prk_steps", "flow_shift", "use_dynamic_shifting", "time_shift_type", "sigma_min", "sigma_max"),
        *("shift_terminal", "interpolation_type", "final_sigmas_type", "timestep_type"),
    }
)
"""Settings of others, and of what is refused or named anyway."""


def schedule_settings(scheduler: Scheduler) -> dict[str, Any]:
    """The settings of our schedule."""
    kind, start, end, steps = scheduler.beta_schedule, scheduler.beta_start, scheduler.beta_end, scheduler.table
    table: dict[str, Any]
    if scheduler.trained_betas is not None:
        table = {"kind": "table", "betas": tuple(scheduler.trained_betas)}
    elif kind == "linear" and steps == 1000:
        table = {"kind": "linear", "steps": steps, "beta_start": start, "beta_end": end}
    elif kind == "squaredcos_cap_v2":
        table = {"kind": "cosine", "steps": steps}
    else:
        if kind == "linear":
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        elif kind == "scaled_linear":
            betas = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
        else:
            betas = start + (end - start) * torch.linspace(-6.0, 6.0, steps, dtype=torch.float64).sigmoid()
        table = {"kind": "table", "betas": tuple(betas.tolist())}
    return {"kind": "zero_terminal_snr", "table": table} if scheduler.rescale_betas_zero_snr else table
