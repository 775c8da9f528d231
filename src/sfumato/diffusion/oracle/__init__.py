"""Oracles: data distributions whose exact denoiser, density and score are known at every level."""

from sfumato.diffusion.oracle.base import Oracle
from sfumato.diffusion.oracle.covariance import Covariances
from sfumato.diffusion.oracle.empirical import EmpiricalOracle
from sfumato.diffusion.oracle.mixture import GaussianOracle, MixtureOracle

__all__ = ["Covariances", "EmpiricalOracle", "GaussianOracle", "MixtureOracle", "Oracle"]
