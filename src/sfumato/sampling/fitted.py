"""What is fitted to a denoiser after its training, for better samples and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.diffusion.analytic import Gamma
from sfumato.errors import InputError


@dataclass(frozen=True)
class Fitted:
    """What is fitted to the weights of a trained denoiser, and holds for these alone.

    Attributes:
        gamma: the table of Analytic-DPM, from which the optimal reverse variance follows.
        stale: the optimizer step of the weights that something was fitted to which these are no longer, if there was.
    """

    gamma: Gamma | None = None
    stale: int | None = None

    def require_gamma(self) -> Gamma:
        """The table of Analytic-DPM.

        Raises:
            InputError: if it was not estimated for these weights.
        """
        if self.gamma is not None:
            return self.gamma
        why = "has none" if self.stale is None else f"has only one of its weights of step {self.stale}"
        raise InputError(
            f"The analytic variance and the optimal trajectory need Gamma, and this model {why}: estimate it with "
            "sfumato tune RUN, or sfumato.tune(model)."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"gamma": None if self.gamma is None else self.gamma.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fitted:
        """What :meth:`to_dict` gave.

        Raises:
            InputError: if these are not its values.
        """
        gamma = values.get("gamma")
        return cls(None if gamma is None else Gamma.from_dict(gamma))
