"""Settings of solvers: of the probability flow, and of stochastic processes with the same marginals."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from sfumato.config.base import Component

if TYPE_CHECKING:
    from sfumato.diffusion.denoiser import Denoiser
    from sfumato.diffusion.level import Level
    from sfumato.sampling.churn import Churn
    from sfumato.sampling.coordinates import Coordinate, Variable
    from sfumato.sampling.fitted import Fitted
    from sfumato.sampling.sample import Step

_ORDER = "Predictions that are extrapolated, from 1 to 4; each has been made on the way."
_ENDING = (
    "Predictions that the step to the data extrapolates; 1 is the step of DDIM. As many as the order when not given."
)


class Best(Component):
    """The solver that comes nearest to the exact answer for the number of steps, of one evaluation; with grid best."""

    kind: Literal["best"] = "best"

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.defaults import best

        return best(denoiser.schedule, len(levels) - 1, denoiser.data_std)[1]


class _Churned(Component):
    churn: float = Field(default=0.0, ge=0, description="S_churn of EDM: noise that is added anew, over all steps.")
    churn_low: float = Field(default=0.0, ge=0, description="The least sigma / alpha with churn.")
    churn_high: float | None = Field(default=None, gt=0, description="The greatest sigma / alpha with churn.")
    churn_noise: float = Field(default=1.0, gt=0, description="S_noise of EDM: scale of the noise that is added.")

    @model_validator(mode="after")
    def _range(self) -> _Churned:
        if self.churn_high is not None and self.churn_low >= self.churn_high:
            raise ValueError(f"the range of churn is empty: churn_low {self.churn_low}, churn_high {self.churn_high}")
        return self

    def _churn(self, denoiser: Denoiser, levels: Level) -> Churn | None:
        import math

        from sfumato.sampling.churn import Churn

        if self.churn == 0.0:
            return None
        # Karras et al. 2022, algorithm 2
        gamma = min(self.churn / (len(levels) - 1), math.sqrt(2.0) - 1.0)
        high = math.inf if self.churn_high is None else self.churn_high
        return Churn(denoiser.schedule, gamma, self.churn_low, high, self.churn_noise)


class Euler(_Churned):
    """Euler's first-order steps, with the churn of EDM (Karras et al. 2022); without churn they are DDIM."""

    kind: Literal["euler"] = "euler"

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.heun import euler

        return partial(euler, churn=self._churn(denoiser, levels))


class Heun(_Churned):
    """Heun's second-order steps, two evaluations each, with the churn of EDM (Karras et al. 2022)."""

    kind: Literal["heun"] = "heun"

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.heun import heun

        return partial(heun, churn=self._churn(denoiser, levels))


class DpmSolver(Component):
    """DPM-Solver++: multistep, one evaluation per step (Lu et al. 2022)."""

    kind: Literal["dpm_solver"] = "dpm_solver"
    order: int = Field(default=2, ge=1, le=4, description=_ORDER)
    ending: int | None = Field(default=None, ge=1, le=4, description=_ENDING)

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.published import dpm_solver_pp

        return dpm_solver_pp(self.order, self.ending)


class DpmSolver2(Component):
    """DPM-Solver-2: second order in two evaluations per step, of the noise (Lu et al. 2022, DPM-Solver)."""

    kind: Literal["dpm_solver_2"] = "dpm_solver_2"

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.dpm_solver import dpm_solver_2

        return dpm_solver_2(denoiser.schedule)


class DpmSolver2S(Component):
    """DPM-Solver++(2S): second order in two evaluations per step, of the data (Lu et al. 2022)."""

    kind: Literal["dpm_solver_2s"] = "dpm_solver_2s"

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.dpm_solver import dpm_solver_pp_2s

        return dpm_solver_pp_2s(denoiser.schedule)


class DpmSolver3S(Component):
    """DPM-Solver++(3S): third order in three evaluations per step, of the data (Lu et al. 2022)."""

    kind: Literal["dpm_solver_3s"] = "dpm_solver_3s"

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.dpm_solver import dpm_solver_pp_3s

        return dpm_solver_pp_3s(denoiser.schedule)


class UniPc(Component):
    """UniPC (Zhao et al. 2023): predictor and corrector, one evaluation per step."""

    kind: Literal["unipc"] = "unipc"
    order: int = Field(default=3, ge=1, le=3, description=_ORDER)
    b: Literal["bh1", "bh2"] = Field(default="bh2", description="The function B(h).")
    corrector: bool = Field(default=True, description="Whether what is predicted also corrects the step before.")
    ending: int | None = Field(default=None, ge=1, le=4, description=_ENDING)

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.multistep import bh1, bh2
        from sfumato.sampling.published import unipc

        return unipc(self.order, b=bh1 if self.b == "bh1" else bh2, corrector=self.corrector, ending=self.ending)


class Lms(Component):
    """The linear multistep method of k-diffusion, of the noise in sigma / alpha."""

    kind: Literal["lms"] = "lms"
    order: int = Field(default=4, ge=1, le=4, description=_ORDER)
    ending: int | None = Field(default=None, ge=1, le=4, description=_ENDING)

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.published import lms

        return lms(self.order, self.ending)


class Deis(Component):
    """DEIS (Zhang and Chen 2023): of the noise in time."""

    kind: Literal["deis"] = "deis"
    order: int = Field(default=3, ge=1, le=4, description=_ORDER)
    ending: int | None = Field(default=None, ge=1, le=4, description=_ENDING)

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.published import deis

        return deis(denoiser.schedule, self.order, self.ending)


class Multistep(Component):
    """Exponential Adams methods in any coordinate, of which DDIM, LMS, DEIS and DPM-Solver++ are members."""

    kind: Literal["multistep"] = "multistep"
    coordinate: Literal["noise", "data", "rotation"] = Field(
        default="rotation", description="What is extrapolated: the noise, the data, or a rotation of both (as in v)."
    )
    scale: float | None = Field(
        default=None, gt=0, description="Scale of the data in the rotation; their standard deviation when not given."
    )
    variable: Literal["own", "log_snr", "time"] = Field(
        default="log_snr", description="What it is a polynomial of: the coordinate's own variable, log-SNR, or time."
    )
    order: int = Field(default=3, ge=1, le=4, description=_ORDER)
    corrector: int = Field(
        default=0, ge=0, le=4, description="Predictions before it that a new one corrects the step with; 0 for none."
    )
    ending: int | None = Field(default=None, ge=1, le=4, description=_ENDING)

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling import coordinates as coordinate
        from sfumato.sampling import multistep

        scale = denoiser.data_std if self.scale is None else self.scale
        kinds: dict[str, Coordinate] = {
            "noise": coordinate.Noise(),
            "data": coordinate.Data(),
            "rotation": coordinate.Rotation(scale),
        }
        variables: dict[str, Variable | None] = {
            "own": None,
            "log_snr": coordinate.half_log_snr,
            "time": coordinate.time_of(denoiser.schedule),
        }
        rule = multistep.Adams(kinds[self.coordinate], variables[self.variable])
        return partial(multistep.multistep, rule=rule, order=self.order, corrector=self.corrector, ending=self.ending)


class SdeDpmSolver(Component):
    """SDE-DPM-Solver++ (Lu et al. 2022): stochastic, one evaluation per step."""

    kind: Literal["sde_dpm_solver"] = "sde_dpm_solver"
    order: int = Field(default=2, ge=1, le=3, description=_ORDER)
    eta: float = Field(default=1.0, ge=0, description="How much noise: 0 is deterministic, 1 the reverse diffusion.")

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.published import sde_dpm_solver_pp

        return sde_dpm_solver_pp(self.order, self.eta)


class SaSolver(Component):
    """SA-Solver (Xue et al. 2023): stochastic Adams predictor and corrector, one evaluation per step."""

    kind: Literal["sa_solver"] = "sa_solver"
    order: int = Field(default=3, ge=1, le=4, description=_ORDER)
    corrector: int = Field(default=3, ge=0, le=4, description="Predictions that correct the step before; 0 for none.")
    tau: float = Field(default=1.0, ge=0, description="How much noise; 0 is deterministic.")
    low: float = Field(default=0.05, ge=0, description="The least sigma / alpha with noise.")
    high: float = Field(default=1.0, gt=0, description="The greatest sigma / alpha with noise.")

    @model_validator(mode="after")
    def _range(self) -> SaSolver:
        if self.low >= self.high:
            raise ValueError(f"the range of noise of sa_solver is empty: low {self.low}, high {self.high}")
        return self

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.published import sa_solver

        return sa_solver(self.order, self.corrector, tau=self.tau, low=self.low, high=self.high)


class Langevin(Component):
    """Predictor-corrector (Y. Song et al. 2021): ancestral steps, each followed by Langevin steps at its level."""

    kind: Literal["langevin"] = "langevin"
    corrections: int = Field(default=1, ge=0, description="Langevin steps after each step; one evaluation each.")
    snr: float = Field(default=0.16, gt=0, lt=0.7, description="How far a Langevin step goes, relative to the noise.")

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.langevin import predictor_corrector

        return partial(predictor_corrector, corrections=self.corrections, snr=self.snr)


class Adaptive(Component):
    """Steps of the length that a tolerance asks for; sampling.steps only limits their length, and 1 is best."""

    kind: Literal["adaptive"] = "adaptive"
    rtol: float = Field(default=1e-2, ge=0, description="Tolerated error of a step relative to the sample.")
    atol: float = Field(default=1e-3, gt=0, description="Tolerated error of a step in units of the data.")

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.adaptive import adaptive

        return partial(adaptive, schedule=denoiser.schedule, rtol=self.rtol, atol=self.atol, scale=denoiser.data_std)
