"""Oracles: data distributions whose exact denoiser, density and score are known at every level."""

from sfumato.diffusion.oracle.base import EmpiricalOracle, Oracle
from sfumato.diffusion.oracle.mixture import Covariances, GaussianOracle, MixtureOracle

__all__ = ["Covariances", "EmpiricalOracle", "GaussianOracle", "MixtureOracle", "Oracle"]
