"""The bound against exact probabilities of quantized data, and its terms against numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.bound import (
    Bound,
    discretized_gaussian,
    floor,
    gaussian_kl,
    latent_terms,
    mean_and_error,
    prior_variance,
    quantized,
    variational_bound,
)
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.diffusion.variance import large, small
from sfumato.errors import InputError
from sfumato.sampling import grids


class Quantized:
    """Independent pixels, each a rounded and clipped Gaussian or mixture of two on a grid; denoised by enumeration."""

    def __init__(self, means: tuple[float, ...] = (-0.1,), std: float = 0.25, bins: int = 256) -> None:
        self.values = torch.linspace(-1.0, 1.0, bins, dtype=torch.float64)
        edges = np.concatenate([[-np.inf], (self.values[1:] + self.values[:-1]).numpy() / 2.0, [np.inf]])
        mass = np.mean([np.diff(stats.norm(mean, std).cdf(edges)) for mean in means], axis=0)
        self.log_mass = torch.from_numpy(mass).clamp(min=1e-300).log()
        self.entropy = -float((mass * self.log_mass.numpy()).sum()) / math.log(2.0)
        self.weights = self.spread = torch.zeros(())

    def data(self, count: int, pixels: int) -> Tensor:
        """Quantiles of the distribution in scrambled order: an evenly spread sample of it."""
        u = (torch.arange(count * pixels, dtype=torch.float64) + 0.5) / (count * pixels)
        u = u[torch.from_numpy(np.random.default_rng(0).permutation(len(u)))]
        return self.values[
            torch.searchsorted(self.log_mass.exp().cumsum(0), u).clamp(max=len(self.values) - 1)
        ].reshape(count, pixels)

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (level.alpha, level.sigma))
        distance = (x.double()[..., None] - alpha * self.values) / sigma
        self.weights = (self.log_mass - 0.5 * distance**2).softmax(-1)
        x0 = self.weights @ self.values
        self.spread = (self.weights * (self.values - x0[..., None]) ** 2).sum(-1)
        return Prediction.of_x0(x, x0.to(x), level)

    def optimal(self, prediction: Prediction, t: Level, s: Level) -> Tensor:
        """The variance of q(x_s | x_t), value by value."""
        k0, _, tilde = posterior_coefficients(t, s)
        return torch.as_tensor(tilde, dtype=torch.float64) + k0**2 * self.spread


def gap(oracle: Quantized, levels: Level, variance: object = None, count: int = 32) -> tuple[float, float]:
    r"""How far the bound is above the entropy on average, and the standard error of that.

    The terms hold :math:`k_0^2 (x_0 - \hat x_0)^2 / 2 v`, where the square is the posterior variance on average, and
    the cost of ``x_0`` in the decoder, which has a posterior mean too. The differences from these, of mean 0, are
    nearly all of the noise of the estimate and are taken off it.
    """
    x0 = oracle.data(count, 16)
    excess = torch.zeros_like(x0)

    def watched(prediction: Prediction, t: Level, s: Level) -> object:
        v = oracle.optimal(prediction, t, s) if variance is None else variance(prediction, t, s)  # type: ignore[operator]
        if s.sigma > 0.0:
            k0 = posterior_coefficients(t, s)[0]
            excess.add_(k0**2 * ((x0 - prediction.x0) ** 2 - oracle.spread) / (2.0 * v))
        else:
            used = v if isinstance(v, Tensor) else torch.full_like(x0, v or floor(list(levels)))
            values = oracle.values.expand(*x0.shape, -1)
            costs = -discretized_gaussian(values, prediction.x0[..., None].expand_as(values), used[..., None])
            cost = -discretized_gaussian(x0, prediction.x0, used)
            excess.add_(cost - (oracle.weights * costs).sum(-1))
        return v

    bound = variational_bound(oracle, x0, levels, watched)  # type: ignore[arg-type]
    mean, error = mean_and_error(bound.total - excess.mean(1) / math.log(2.0))
    return mean - oracle.entropy, error


@pytest.mark.parametrize("steps", [1000, 50])
def test_the_optimal_variance_reaches_the_entropy(steps: int) -> None:
    """8-bit Gaussian data: within 0.02 bits per dimension."""
    above, error = gap(Quantized(), grids.uniform(schedules.linear(steps), steps))
    print(f"T = {steps}: {above:.4f} +- {error:.4f} bits per dimension above the entropy")
    assert error < 0.002
    assert -3.0 * error < above < 0.02


def test_the_bound_is_above_the_exact_value_and_shrinks() -> None:
    """Data with two modes, where no step of finite size is Gaussian."""
    oracle, schedule = Quantized((-0.5, 0.4), 0.1), schedules.linear(1000)
    gaps = [gap(oracle, grids.uniform(schedule, steps)) for steps in (4, 16, 64)]
    print("optimal variance, T = 4, 16, 64:", gaps)
    assert gaps[0][0] > gaps[1][0] + 3.0 * gaps[1][1] > gaps[2][0] + 3.0 * gaps[2][1] > 0.0
    for variance in (small, large):
        above, error = gap(oracle, grids.uniform(schedule, 64), variance)
        assert above > gaps[2][0] + 3.0 * error, variance


def test_the_optimal_variance_is_not_worse_than_small_or_large() -> None:
    oracle, levels = Quantized(), grids.uniform(schedules.linear(20), 20)
    x0 = oracle.data(64, 16)
    best = variational_bound(oracle, x0, levels, oracle.optimal)
    for variance in (small, large):
        other = variational_bound(oracle, x0, levels, variance)
        # term by term, since each uses the same noise
        assert bool((best.steps.mean(0) <= other.steps.mean(0) + 2e-3).all())
        assert best.steps.sum(1).mean() < other.steps.sum(1).mean()


def test_a_spaced_grid_that_is_full_is_the_full_grid() -> None:
    oracle, schedule = Quantized(bins=17), schedules.linear(40)
    x0 = oracle.data(4, 4)
    full = variational_bound(oracle, x0, grids.uniform(schedule, 40), bins=17)
    listed = schedule(torch.tensor([i / 40 for i in range(40, -1, -1)], dtype=torch.float64))
    spaced = variational_bound(oracle, x0, listed, bins=17)
    assert (full.steps - spaced.steps).abs().max() < 1e-12
    assert (full.total - spaced.total).abs().max() < 1e-12
    assert full.steps.shape == (4, 39)


def test_one_step_is_the_published_weight_of_the_error() -> None:
    r"""beta^2 / (2 tilde (1 - beta) (1 - alpha_bar)) |eps - hat eps|^2 with the small variance (Ho et al., eq. 12)."""
    schedule, x0 = schedules.linear(100), torch.zeros(1, 3, dtype=torch.float64)
    levels = schedule(torch.tensor([0.5, 0.49, 0.0], dtype=torch.float64))
    seen: list[Tensor] = []

    def zero(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        seen.append(x)
        return Prediction(x, torch.zeros_like(x), _eps(level))

    bound = variational_bound(zero, x0, levels, bins=3)
    betas = np.linspace(1e-3, 0.2, 100)
    bar = np.cumprod(1.0 - betas)
    beta, now, before = betas[49], bar[49], bar[48]
    tilde = beta * (1.0 - before) / (1.0 - now)
    eps = seen[0] / math.sqrt(1.0 - now)
    expected = beta**2 / (2.0 * tilde * (1.0 - beta) * (1.0 - now)) * float(eps.square().mean()) / math.log(2.0)
    assert float(bound.steps) == pytest.approx(expected, rel=1e-10)


def _eps(level: Level) -> object:
    from sfumato.diffusion.parameterization import eps

    return eps(level)


@pytest.mark.parametrize("values", [(0.3, 0.5, -0.2, 0.9), (0.0, 1e-3, 0.01, 2e-3), (1.0, 2.0, 1.0, 2.0)])
def test_the_divergence_against_integration(values: tuple[float, float, float, float]) -> None:
    m1, v1, m2, v2 = values
    p, q = stats.norm(m1, math.sqrt(v1)), stats.norm(m2, math.sqrt(v2))
    low, high = p.ppf(1e-15), p.isf(1e-15)
    expected = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), low, high, epsabs=1e-13)[0]
    assert float(gaussian_kl(m1, v1, m2, v2)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("bins", [2, 17, 256])
@pytest.mark.parametrize("std", [1e-3, 0.05, 3.0])
def test_the_decoder_against_scipy(bins: int, std: float) -> None:
    values = np.linspace(-1.0, 1.0, bins)
    for mean in (-1.7, -0.31, 0.8, 1.0):
        law, half = stats.norm(mean, std), 1.0 / (bins - 1)
        low, high = values - half, values + half
        low[0], high[-1] = -np.inf, np.inf
        # the smaller of the two tails, so that the reference does not cancel either
        exact = np.where(low > mean, law.sf(low) - law.sf(high), law.cdf(high) - law.cdf(low))
        x = torch.from_numpy(values)
        log_p = discretized_gaussian(x, torch.full_like(x, mean), std**2, bins)
        assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        kept = exact > 1e-290
        assert np.abs(log_p.numpy()[kept] - np.log(exact[kept])).max() < 1e-9
        assert bool(log_p.isfinite().all())


def test_the_decoder_in_the_tail() -> None:
    """Far out, where every probability underflows: the asymptotic series of the logarithm."""
    x = torch.zeros(2, dtype=torch.float64)
    log_p = discretized_gaussian(x, torch.tensor([-1.0, 1.0], dtype=torch.float64), 1e-6)
    z = (1.0 - 1.0 / 255.0) / 1e-3
    expected = -0.5 * z * z - math.log(z * math.sqrt(2.0 * math.pi)) - 1.0 / z**2
    assert log_p.tolist() == pytest.approx([expected, expected], rel=1e-9)


def test_the_decoder_has_gradients_everywhere() -> None:
    x = torch.tensor([-1.0, -1.0, 0.2, 1.0, 1.0], dtype=torch.float64)
    mean = torch.tensor([-1.0, 1.0, 0.19, -1.0, 50.0], dtype=torch.float64, requires_grad=True)
    log_variance = torch.full((5,), -9.0, dtype=torch.float64, requires_grad=True)
    discretized_gaussian(x, mean, log_variance.exp(), 11).sum().backward()
    assert bool(mean.grad.isfinite().all() and log_variance.grad.isfinite().all())
    inner = torch.tensor([0.0, 0.2], dtype=torch.float64)

    def log_p(m: Tensor, v: Tensor) -> Tensor:
        return discretized_gaussian(inner, m, v, 11)

    near = torch.tensor([0.1, -0.5], dtype=torch.float64, requires_grad=True)
    spread = torch.tensor([0.02, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_p, (near, spread))


def test_the_prior_follows_the_schedule() -> None:
    assert prior_variance(schedules.linear(1000)(1.0)) == 1.0
    assert prior_variance(schedules.Karras(80.0)(1.0)) == 6400.0
    x0 = torch.ones(1, 4, dtype=torch.float64)
    oracle = Quantized(bins=2)
    bound = variational_bound(oracle, x0, grids.karras(schedules.Karras(80.0), 3), bins=2)
    assert float(bound.prior) == pytest.approx(0.5 / 6400.0 / math.log(2.0), rel=1e-9)
    last = schedules.linear(100)(1.0)
    bound = variational_bound(oracle, x0, grids.uniform(schedules.linear(100), 100), bins=2)
    kl = 0.5 * (last.sigma**2 + last.alpha**2 - 1.0 - math.log(last.sigma**2))
    assert float(bound.prior) == pytest.approx(kl / math.log(2.0), rel=1e-6)


@pytest.mark.parametrize("draws", [1, 4])
def test_monte_carlo_over_the_steps_is_unbiased(draws: int) -> None:
    oracle, levels = Quantized(bins=17), grids.uniform(schedules.linear(50), 50)
    x0 = oracle.data(1, 1).repeat(4000, 1)
    full = variational_bound(oracle, x0, levels, bins=17)
    estimate = variational_bound(oracle, x0, levels, bins=17, draws=draws, seed=1)
    error = math.hypot(estimate.standard_error, full.standard_error)
    assert estimate.mean == pytest.approx(full.mean, abs=3.5 * error)
    by_step = (estimate.steps.mean(0) - full.steps.mean(0)) / torch.hypot(
        estimate.steps.std(0), full.steps.std(0)
    ).clamp(min=1e-12)
    assert float((by_step * math.sqrt(4000)).abs().max()) < 5.0
    assert bool(((estimate.steps != 0).sum(1) <= draws).all())


def test_as_many_draws_as_steps_give_the_full_ledger() -> None:
    oracle, levels = Quantized(bins=17), grids.uniform(schedules.linear(30), 30)
    x0 = oracle.data(5, 3)
    full = variational_bound(oracle, x0, levels, bins=17, seed=3)
    drawn = variational_bound(oracle, x0, levels, bins=17, seed=3, draws=29)
    assert (full.steps - drawn.steps).abs().max() < 1e-9


def test_an_image_has_the_same_bound_in_any_batch() -> None:
    oracle, levels = Quantized(bins=17), grids.uniform(schedules.linear(10), 10)
    x0 = oracle.data(6, 3)
    for draws in (None, 2):
        whole = variational_bound(oracle, x0, levels, bins=17, draws=draws)
        parts = [
            variational_bound(oracle, x0[i : i + 3], levels, bins=17, draws=draws, first=i) for i in range(0, 6, 3)
        ]
        assert (Bound.join(parts).total - whole.total).abs().max() < 1e-12


@pytest.mark.parametrize("variance", [small, large])
@pytest.mark.parametrize("steps", [1, 2])
def test_one_and_two_steps(steps: int, variance: object) -> None:
    oracle, schedule = Quantized(), schedules.Discrete([0.999] if steps == 1 else [0.5, 0.998])
    x0 = oracle.data(64, 4)
    bound = variational_bound(oracle, x0, grids.uniform(schedule, steps), variance)  # type: ignore[arg-type]
    assert bound.steps.shape == (64, steps - 1)
    assert bool(bound.total.isfinite().all()) and bound.mean > oracle.entropy
    drawn = variational_bound(oracle, x0, grids.uniform(schedule, steps), draws=2)
    assert drawn.steps.shape == (64, steps - 1)


def test_the_floor_is_that_of_the_grid_in_use() -> None:
    schedule = schedules.linear(1000)
    spaced = list(grids.uniform(schedule, 50))
    bar1, bar2 = spaced[-2].alpha ** 2, spaced[-3].alpha ** 2
    assert floor(spaced) == pytest.approx((1 - bar2 / bar1) * (1 - bar1) / (1 - bar2), rel=1e-9)
    assert floor(spaced) > 2.0 * floor(list(grids.uniform(schedule, 1000)))


def test_single_pixels_and_constant_images() -> None:
    levels = grids.uniform(schedules.linear(100), 100)
    oracle = Quantized()
    for shape in ((1, 1), (2, 5)):
        x0 = torch.ones(shape, dtype=torch.float64)
        assert bool(variational_bound(oracle, x0, levels).total.isfinite().all())

    def point(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        return Prediction.of_x0(x, torch.ones_like(x), level)

    # a model that knows the one image there is pays for the width of its decoder alone
    bound = variational_bound(point, torch.ones(2, 5, dtype=torch.float64), levels)
    assert float(bound.steps.abs().max()) < 1e-12
    inside = stats.norm.cdf(1.0 / 255.0 / math.sqrt(floor(list(levels))))
    assert bound.decoder.tolist() == pytest.approx([-math.log2(inside)] * 2, rel=1e-9)


def test_data_that_are_not_quantized_are_refused() -> None:
    levels = grids.uniform(schedules.linear(10), 10)
    oracle = Quantized()
    with pytest.raises(InputError, match="grid of 256 values from -1 to 1"):
        variational_bound(oracle, torch.full((1, 2), 0.1), levels)
    with pytest.raises(InputError, match=r"span \[0, 255\]"):
        quantized(torch.tensor([[0.0, 255.0]]))
    with pytest.raises(InputError, match="grid of 256"):
        quantized(torch.tensor([[math.nan]]))
    with pytest.raises(InputError, match="at least 2"):
        quantized(torch.zeros(1, 2), 1)
    eight = torch.arange(256, dtype=torch.float32)[None] / 127.5 - 1.0
    assert (quantized(eight) - torch.linspace(-1, 1, 256, dtype=torch.float64)).abs().max() < 1e-15
    digits = torch.arange(17, dtype=torch.float32)[None] / 8.0 - 1.0
    assert bool((quantized(digits, 17) == digits).all())
    with pytest.raises(InputError, match="bins="):
        quantized(digits)


def test_grids_that_do_not_reach_the_data_are_refused() -> None:
    oracle, schedule, x0 = Quantized(), schedules.linear(10), torch.ones(1, 2)
    for times in ([1.0, 0.5, 0.1], [0.0]):
        with pytest.raises(InputError, match="reaches the data"):
            variational_bound(oracle, x0, schedule(torch.tensor(times, dtype=torch.float64)))
    for times in ([0.5, 1.0, 0.0], [1.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0]):
        with pytest.raises(InputError, match="strictly"):
            variational_bound(oracle, x0, schedule(torch.tensor(times, dtype=torch.float64)))


def test_impossible_estimates_are_refused() -> None:
    oracle, levels, x0 = Quantized(), grids.uniform(schedules.linear(10), 10), torch.ones(1, 2)
    with pytest.raises(InputError, match="at least 1 random step"):
        variational_bound(oracle, x0, levels, draws=0)
    with pytest.raises(InputError, match="infinite"):
        variational_bound(oracle, x0, levels, lambda prediction, t, s: 0.0)


def test_one_image_has_no_standard_error() -> None:
    bound = variational_bound(Quantized(), torch.ones(1, 2), grids.uniform(schedules.linear(10), 10))
    assert math.isnan(bound.standard_error) and math.isfinite(bound.mean)


def test_the_latents_alone_have_the_terms_of_the_bound() -> None:
    oracle, schedule = GaussianOracle(torch.zeros(1, 2, 2), 0.09 * torch.eye(4)), schedules.linear(100)
    x0 = (torch.arange(40).reshape(10, 1, 2, 2).double() * 6 / 127.5 - 1).clamp(max=1.0)
    x0 = ((x0 + 1) * 127.5).round() / 127.5 - 1
    grid = grids.uniform(schedule, 8)
    latents = Level(*(torch.as_tensor(v)[:-1] for v in (grid.t, grid.alpha, grid.sigma)))
    whole = variational_bound(oracle, x0, grid, seed=2, first=5)
    prior, steps = latent_terms(oracle, x0, latents, seed=2, first=5)
    assert torch.allclose(prior, whole.prior, rtol=1e-9, atol=1e-15)
    assert torch.allclose(steps, whole.steps, rtol=1e-9)
    # off the grid of 8 bits there is no decoder, and the latents carry what they carry
    assert bool(latent_terms(oracle, x0 + 0.003, latents)[1].isfinite().all())
    with pytest.raises(InputError, match="A latent has noise"):
        latent_terms(oracle, x0, grid)
    with pytest.raises(InputError, match="fall strictly"):
        latent_terms(oracle, x0, schedule(torch.tensor([0.2, 0.5]).double()))
