"""The probability flow's density against densities in closed form."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from sklearn.mixture import GaussianMixture
from tests.round_mixtures import GAUSSIAN, ONE_D, TWO_D, Mixture
from torch import Tensor, nn

from sfumato.data.embedded import digits
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoiser, Prediction, embed_thousand
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import (
    Integrator,
    dequantize,
    dormand_prince,
    exact_divergence,
    first_noise,
    hutchinson,
    log_density,
    rademacher,
    rk4,
)
from sfumato.diffusion.parameterization import edm, eps, v, x0
from sfumato.errors import InputError

SCHEDULES = {
    "linear": schedules.linear(1000),
    "cosine": schedules.cosine(1000),
    "continuous": schedules.ContinuousLinear(),
    "continuous cosine": schedules.ContinuousCosine(),
    "edm": schedules.Karras(),
}


def bits_off(oracle: Mixture, x: Tensor, nats: Tensor) -> float:
    """The largest error in bits per dimension."""
    return float((nats - oracle.log_p(x)).abs().max()) / x.shape[1] / math.log(2.0)


DEEP = {
    "cosine": schedules.cosine(1000),
    "continuous cosine": schedules.ContinuousCosine(),
    "continuous": schedules.ContinuousLinear(beta_max=40.0),
    "edm": schedules.Karras(sigma_max=2000.0),
}
"""Schedules that end so deep in the noise that each point can be compared, not only their average."""


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize(
    "oracle",
    [
        pytest.param(GAUSSIAN, id="gaussian", marks=pytest.mark.slow),
        pytest.param(ONE_D, id="1d", marks=pytest.mark.slow),
        pytest.param(TWO_D, id="2d"),
    ],
)
def test_the_density_of_each_point_is_exact(name: str, oracle: Mixture) -> None:
    """RK4 of 100 steps: every point within 1e-3 bits per dimension."""
    x = oracle.draw(64)
    found = log_density(oracle, DEEP[name], x, sigma_min=1e-3)
    error = bits_off(oracle, x, found.nats)
    print(f"{name}: {error:.2e}")
    assert error < 1e-3
    assert found.evaluations == 400


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_likelihood_of_data_is_exact(name: str) -> None:
    r"""The prior puts a point off by :math:`\alpha_1 \mu y / \sigma_1` in the usual schedules, of mean 0 over data."""
    x = TWO_D.draw(500)
    found = log_density(TWO_D, SCHEDULES[name], x, sigma_min=1e-3)
    error = float((found.nats - TWO_D.log_p(x)).mean()) / 2.0 / math.log(2.0)
    print(f"{name}: {error:.2e}")
    assert abs(error) < 1e-3
    assert bits_off(TWO_D, x, found.nats) < 0.02


def test_the_flow_of_a_gaussian_is_known_exactly() -> None:
    """The flow of Gaussian data is linear: its end and its density are known, for this prior, without approximation."""
    schedule, x = schedules.ContinuousLinear(), GAUSSIAN.draw(16)
    start, end = schedule.at(-2.0 * math.log(1e-3)), schedule(1.0)
    mean, std = GAUSSIAN.means[0], float(GAUSSIAN.stds)

    def spread(level: Level) -> float:
        return math.sqrt(level.alpha**2 * std**2 + level.sigma**2)

    scale = spread(end) / spread(start) * start.alpha
    latent = end.alpha * mean + scale * (x - mean)
    nats = -0.5 * (latent.square() + math.log(2.0 * math.pi)).sum(1) + 3.0 * math.log(scale)
    found = log_density(GAUSSIAN, schedule, x, sigma_min=1e-3)
    assert (found.latent - latent).abs().max() < 1e-5
    assert (found.nats - nats).abs().max() < 1e-5
    exact = log_density(GAUSSIAN, schedule, x, sigma_min=1e-3, integrator=partial(dormand_prince, rtol=1e-9, atol=1e-9))
    assert (exact.latent - latent).abs().max() < 1e-7
    assert (exact.nats - nats).abs().max() < 1e-7


@pytest.mark.parametrize("name", ["edm", "cosine"])
def test_adaptive_and_fixed_steps_agree(name: str) -> None:
    x = TWO_D.draw(16)
    fixed = log_density(TWO_D, DEEP[name], x, sigma_min=1e-3, integrator=partial(rk4, steps=150))
    adaptive = log_density(
        TWO_D, DEEP[name], x, sigma_min=1e-3, integrator=partial(dormand_prince, rtol=1e-6, atol=1e-6)
    )
    assert (fixed.nats - adaptive.nats).abs().max() < 1e-5
    loose = log_density(TWO_D, DEEP[name], x, sigma_min=1e-3, integrator=dormand_prince)
    assert bits_off(TWO_D, x, loose.nats) < 1e-3
    assert loose.evaluations < adaptive.evaluations


def test_the_integrators_on_a_known_equation() -> None:
    """y' = -y and the integral of a cosine, forwards and backwards; RK4 is of order 4."""

    def flow(y: Tensor, at: float) -> tuple[Tensor, Tensor]:
        return -y, torch.full((len(y),), math.cos(at), dtype=torch.float64)

    y = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    for end in (2.0, -1.0):

        def errors(integrator: Integrator, end: float = end) -> tuple[float, float]:
            (moved, integral), _ = integrator(flow, y, 0.0, end)
            point, angle = moved - y * math.exp(-end), integral - math.sin(end)
            return float(point.abs().max()), float(angle.abs().max())

        assert max(errors(partial(dormand_prince, rtol=1e-9, atol=1e-9))) < 1e-7
        coarse, fine = errors(partial(rk4, steps=10)), errors(partial(rk4, steps=20))
        for a, b in zip(coarse, fine, strict=True):
            assert math.log2(a / b) == pytest.approx(4.0, abs=0.2)


def test_hutchinson_is_unbiased() -> None:
    matrix = torch.tensor([[1.0, 2.0, 0.5], [-1.0, 3.0, 1.0], [0.3, 0.2, -2.0]], dtype=torch.float64)
    y = torch.zeros(20000, 3, dtype=torch.float64)

    def field(y: Tensor) -> Tensor:
        return y @ matrix.T

    value, exact = exact_divergence(field, y + 1.0)
    assert (exact - 2.0).abs().max() < 1e-12
    assert (value - matrix.sum(1)).abs().max() < 1e-12
    off = matrix - torch.diag(matrix.diagonal())
    # in closed form: Rademacher probes do not see the diagonal
    variance = 0.5 * float((off + off.T).square().sum())
    single = hutchinson(field, y, probes=rademacher(0, 0, 20000, (3,)))[1]
    assert float(single.mean()) == pytest.approx(2.0, abs=4.0 * math.sqrt(variance / 20000))
    assert float(single.var()) == pytest.approx(variance, rel=0.1)
    four = hutchinson(field, y, probes=rademacher(0, 0, 20000, (3,), probes=4))[1]
    assert float(four.var()) == pytest.approx(variance / 4.0, rel=0.1)


def test_the_estimated_density_is_unbiased() -> None:
    x = TWO_D.draw(1).repeat(1000, 1)
    probes = rademacher(0, 0, 1000, (2,))
    found = log_density(
        TWO_D, schedules.ContinuousLinear(), x, sigma_min=1e-3, divergence=partial(hutchinson, probes=probes)
    )
    error = float(found.nats.std()) / math.sqrt(1000)
    assert error > 0.0
    assert float(found.nats.mean()) == pytest.approx(float(TWO_D.log_p(x[:1])), abs=4.0 * error + 1e-3)


class Exact(nn.Module):
    """A network that is right for Gaussian data: F solved from the exact estimate of the data."""

    def __init__(self, schedule: schedules.Schedule, parameterization: object) -> None:
        super().__init__()
        self.schedule, self.parameterization = schedule, parameterization
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, seen: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        level = self.schedule(float(time[0]) / 1000.0)
        out = self.parameterization(level)  # type: ignore[operator]
        x = seen / out.c_in
        estimate = GAUSSIAN(x, level).x0
        return self.scale * (estimate - out.a * x) / out.b


@pytest.mark.parametrize("parameterization", [eps, x0, v, edm(0.5)], ids=["eps", "x0", "v", "edm"])
@pytest.mark.parametrize("name", ["linear", "edm", "continuous cosine"])
def test_every_parameterization_has_the_same_density(name: str, parameterization: object) -> None:
    schedule, x = SCHEDULES[name], GAUSSIAN.draw(8)
    denoiser = Denoiser(Exact(schedule, parameterization), schedule, parameterization, embed_thousand)  # type: ignore[arg-type]
    few = partial(rk4, steps=10)
    found = log_density(denoiser, schedule, x, sigma_min=1e-2, integrator=few)
    bare = log_density(GAUSSIAN, schedule, x, sigma_min=1e-2, integrator=few)
    assert (found.nats - bare.nats).abs().max() < 1e-6
    assert denoiser.network.scale.grad is None


def test_a_schedule_that_ends_without_signal() -> None:
    """alpha = 0 at the end, as in rectified flow: the integration starts at a log-SNR of -20."""

    class Straight(schedules.Schedule):
        def kernel(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return 1.0 - t, t

        def time(self, log_snr: Tensor) -> Tensor:
            return (-0.5 * log_snr).sigmoid()

    x = TWO_D.draw(16)
    found = log_density(TWO_D, Straight(), x, sigma_min=1e-3)
    assert bits_off(TWO_D, x, found.nats) < 1e-3


class FullMixture:
    """The exact denoiser of a mixture with full covariances, in the eigenvectors of each."""

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor) -> None:
        self.means, self.log_weights = means, weights.log()
        self.values, self.vectors = torch.linalg.eigh(covariances)

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        spread = level.alpha**2 * self.values + level.sigma**2
        off = torch.einsum("bkd,kde->bke", x.flatten(1)[:, None] - level.alpha * self.means, self.vectors)
        log_p = self.log_weights - 0.5 * (off**2 / spread + spread.log()).sum(-1)
        each = self.means + torch.einsum("bke,kde->bkd", level.alpha * self.values / spread * off, self.vectors)
        return Prediction.of_x0(x, (log_p.softmax(-1)[..., None] * each).sum(1).reshape(x.shape), level)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "continuous cosine", "edm"])
def test_the_density_of_a_mixture_fitted_to_the_digits(name: str) -> None:
    """64 dimensions, RK4 of 100 steps, exact divergence: within 1e-3 bits per dimension of scikit-learn's density."""
    images = digits().images.reshape(-1, 64).astype("float64")
    fitted = GaussianMixture(5, reg_covar=1e-2, random_state=0).fit(images)
    arrays = (torch.from_numpy(array) for array in (fitted.means_, fitted.covariances_, fitted.weights_))
    points = images[:16]
    found = log_density(FullMixture(*arrays), SCHEDULES[name], torch.from_numpy(points), sigma_min=1e-3)
    off = (found.nats - torch.from_numpy(fitted.score_samples(points))) / 64.0 / math.log(2.0)
    print(f"{name}: mean {float(off.mean()):.1e}, largest {float(off.abs().max()):.1e} bits per dimension")
    assert abs(float(off.mean())) < 1e-3


def test_the_smoothing_of_sigma_min() -> None:
    """The density is that of the data with the noise of sigma_min, exactly."""
    x = ONE_D.draw(32)
    found = log_density(ONE_D, schedules.ContinuousCosine(), x, sigma_min=0.05)
    assert (found.nats - ONE_D.log_p(x, sigma=0.05)).abs().max() < 1e-3
    assert first_noise(schedules.linear(1000)) == pytest.approx(math.sqrt(1e-4 / (1.0 - 1e-4)), rel=1e-9)
    assert first_noise(schedules.Karras()) == 0.002


def test_dequantized_data_stay_in_their_bins() -> None:
    x = torch.linspace(-1, 1, 17, dtype=torch.float64).repeat(500, 1)
    noisy = dequantize(x, 17, seed=0)
    assert float((noisy - x).abs().max()) <= 0.0625
    assert float((noisy - x).var()) == pytest.approx(0.125**2 / 12.0, rel=0.05)
    assert abs(float((noisy - x).mean())) < 0.002
    assert bool((dequantize(x[3:5], 17, 0, first=3) == noisy[3:5]).all())


def test_denoisers_that_cannot_be_used_are_refused() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)

    def detached(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        with torch.no_grad():
            return TWO_D(x.detach(), level)

    def broken(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        return Prediction.of_x0(x, x * math.nan, level)

    with pytest.raises(InputError, match="denoiser's derivative"):
        log_density(detached, schedules.Karras(), x)
    for integrator in (rk4, dormand_prince):
        with pytest.raises(InputError, match="not finite"):
            log_density(broken, schedules.Karras(), x, integrator=integrator)


def test_settings_that_cannot_be_are_refused() -> None:
    schedule, x = schedules.linear(20), torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="sigma_min must be positive"):
        log_density(TWO_D, schedule, x, sigma_min=0.0)
    with pytest.raises(InputError, match="sigma_min must be positive"):
        log_density(TWO_D, schedules.linear(1000), x, sigma_min=1e5)
    with pytest.raises(InputError, match="at least 1 step"):
        log_density(TWO_D, schedule, x, integrator=partial(rk4, steps=0))
    with pytest.raises(InputError, match="tolerances"):
        log_density(TWO_D, schedule, x, integrator=partial(dormand_prince, rtol=0.0))
    with pytest.raises(InputError, match="not solved"):
        log_density(TWO_D, schedule, x, integrator=partial(dormand_prince, max_steps=2))
    with pytest.raises(InputError, match="at least 1 probe"):
        rademacher(0, 0, 2, (2,), probes=0)
