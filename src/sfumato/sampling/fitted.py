"""What is fitted to a denoiser after its training, for better samples and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sfumato.diffusion.analytic import Gamma
from sfumato.errors import InputError
from sfumato.sampling.fitted_solver import Plan


@dataclass(frozen=True)
class Fitted:
    """What is fitted to the weights of a trained denoiser, and holds for these alone.

    Attributes:
        gamma: the table of Analytic-DPM, from which the optimal reverse variance follows.
        plans: grids and weights of solvers, by their number of steps.
        stale: the optimizer step of the weights that something was fitted to which these are no longer, if there was.
    """

    gamma: Gamma | None = None
    plans: Mapping[int, Plan] = field(default_factory=dict[int, Plan])
    stale: int | None = None

    def require_gamma(self) -> Gamma:
        """The table of Analytic-DPM.

        Raises:
            InputError: if it was not estimated for these weights.
        """
        if self.gamma is not None:
            return self.gamma
        why = "has none" if self.stale is None else f"has only one of other weights, of step {self.stale}"
        raise InputError(
            f"The analytic variance and the optimal trajectory need Gamma, and this model {why}: estimate it with "
            "sfumato tune RUN, or sfumato.tune(model)."
        )

    def require_plan(self, steps: int) -> Plan:
        """The plan of so many steps.

        Raises:
            InputError: if there is none for that number, or for these weights.
        """
        if steps in self.plans:
            return self.plans[steps]
        if self.plans:
            there = f"only for {', '.join(map(str, sorted(self.plans)))}"
        else:
            there = "none" if self.stale is None else f"only what was fitted to other weights, of step {self.stale}"
        raise InputError(
            f"A fitted grid of {steps} steps is asked for, and this model has {there}: fit one with "
            f"sfumato tune RUN --steps {steps}, or sfumato.tune(model, steps={steps})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plans = {str(steps): plan.to_dict() for steps, plan in self.plans.items()}
        return {"gamma": None if self.gamma is None else self.gamma.to_dict(), "plans": plans}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fitted:
        """What :meth:`to_dict` gave.

        Raises:
            InputError: if these are not its values.
        """
        gamma = values.get("gamma")
        plans = {int(steps): Plan.from_dict(plan) for steps, plan in values.get("plans", {}).items()}
        if any(steps != plan.steps for steps, plan in plans.items()):
            raise InputError("A plan is kept under another number of steps than it has.")
        return cls(None if gamma is None else Gamma.from_dict(gamma), plans)
