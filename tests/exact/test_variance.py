"""Learned variances and the hybrid loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from sfumato.diffusion import objective, parameterization, variance
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoiser, embed_thousand
from sfumato.diffusion.gaussian import diffuse, posterior
from sfumato.errors import InputError
from sfumato.sampling import grids

STEPS = 50
TABLE = schedules.linear(STEPS)
BETAS = np.linspace(1000 / STEPS * 1e-4, 1000 / STEPS * 0.02, STEPS)
BARS = np.cumprod(1.0 - BETAS)
TILDE = BETAS * (1 - np.append(1.0, BARS[:-1])) / (1 - BARS)
TILDE[0] = TILDE[1]


class Doubled(nn.Module):
    """Twice the channels: a wrong estimate of v, and a learnable number per channel for the variance."""

    def __init__(self, channels: int = 3, fraction: float = 0.25) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.raw = nn.Parameter(torch.full((channels,), 2 * fraction - 1, dtype=torch.float64))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.gain * x, self.raw.reshape(-1, *[1] * (x.ndim - 2)).expand_as(x)], 1)


def made(fraction: float = 0.25, schedule: schedules.Schedule = TABLE) -> Denoiser:
    return Denoiser(Doubled(3, fraction), schedule, parameterization.v, embed_thousand, learned_variance=True)


def draws(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (count, 3, 5), generator=generator).double() / 127.5 - 1.0
    return x0, torch.randn(count, 3, 5, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_learned_variance_is_eq_15(fraction: float) -> None:
    denoiser, x = made(fraction), draws()[0]
    for i in (2, 30, STEPS):
        t, s = TABLE(i / STEPS), TABLE((i - 1) / STEPS)
        expected = BETAS[i - 1] ** fraction * TILDE[i - 1] ** (1 - fraction)
        found = torch.as_tensor(variance.learned(denoiser(x, t), t, s))
        assert found.shape == x.shape and (found / expected - 1.0).abs().max() < 1e-9


def test_a_learned_variance_of_a_step_to_the_data() -> None:
    denoiser, x = made(), draws()[0]
    t, s = TABLE(1 / STEPS), TABLE(0.0)
    assert variance.learned(denoiser(x, t), t, s) == 0.0
    found = torch.as_tensor(variance.learned(denoiser(x, t), t, s, lowest=variance.floor(TABLE.last_steps())))
    assert (found / (BETAS[0] ** 0.25 * TILDE[1] ** 0.75) - 1.0).abs().max() < 1e-9


def test_a_batch_of_steps_is_the_single_steps() -> None:
    denoiser, x = made(), draws(3)[0]
    t = TABLE(torch.tensor([1, 2, 40], dtype=torch.float64) / STEPS)
    together = torch.as_tensor(variance.learned(denoiser(x, t), t, TABLE.previous(t)))
    for i, step in enumerate((1, 2, 40)):
        one, s = TABLE(step / STEPS), TABLE((step - 1) / STEPS)
        alone = torch.as_tensor(variance.learned(denoiser(x[i : i + 1], one), one, s), dtype=torch.float64)
        assert torch.allclose(together[i], alone.expand(1, 3, 5)[0], rtol=1e-9)


def test_a_spaced_grid_has_its_own_range_and_floor() -> None:
    """Of a grid of 5 steps, beta and beta-tilde are those between its own levels."""
    levels = list(grids.uniform(TABLE, 5))
    t, s = levels[1], levels[2]
    bar_t, bar_s = BARS[39], BARS[29]
    beta = 1 - bar_t / bar_s
    tilde = beta * (1 - bar_s) / (1 - bar_t)
    found = torch.as_tensor(variance.learned(made()(draws()[0], t), t, s))
    assert (found / (beta**0.25 * tilde**0.75) - 1.0).abs().max() < 1e-9
    beta2 = 1 - BARS[19] / BARS[9]
    assert variance.floor(grids.uniform(TABLE, 5)) == pytest.approx(beta2 * (1 - BARS[9]) / (1 - BARS[19]), rel=1e-9)
    assert variance.floor(grids.uniform(TABLE, 1)) == pytest.approx(1 - BARS[-1], rel=1e-9)


def test_the_bound_of_the_learned_variance_is_a_divergence() -> None:
    """The KL of two Gaussians by torch.distributions, in bits, with the published variance."""
    denoiser = made()
    x0, noise = draws()
    for i in (2, 25, STEPS):
        t, s = TABLE(i / STEPS), TABLE((i - 1) / STEPS)
        x = diffuse(x0, t, noise)
        prediction = denoiser(x, t)
        true, guess = posterior(x0, x, t, s), posterior(prediction.x0, x, t, s)
        std = math.sqrt(BETAS[i - 1] ** 0.25 * TILDE[i - 1] ** 0.75)
        one = torch.distributions.Normal(true.mean, math.sqrt(float(true.variance)))
        two = torch.distributions.Normal(guess.mean, std)
        expected = torch.distributions.kl_divergence(one, two).flatten(1).mean(1) / math.log(2)
        found = objective.learned_variance_bound(prediction, x0, noise, t, TABLE)
        assert torch.allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("bins", [256, 17])
def test_its_step_to_the_data_is_the_likelihood_of_bins(bins: int) -> None:
    denoiser = made()
    x0, noise = draws()
    # the darkest and the lightest bin are open
    x0[0, 0, 0], x0[0, 0, 1] = -1.0, 1.0
    t = TABLE(1 / STEPS)
    prediction = denoiser(diffuse(x0, t, noise), t)
    std = math.sqrt(BETAS[0] ** 0.25 * TILDE[1] ** 0.75)
    mean, half = prediction.x0.detach().numpy(), 1 / (bins - 1)
    upper = np.where(x0 > 1.0 - half, np.inf, (x0.numpy() + half - mean) / std)
    lower = np.where(x0 < half - 1.0, -np.inf, (x0.numpy() - half - mean) / std)
    # on the side where the tails are small
    mass = np.where(lower > 0, norm.sf(lower) - norm.sf(upper), norm.cdf(upper) - norm.cdf(lower))
    expected = -np.log2(mass).mean((1, 2))
    found = objective.learned_variance_bound(prediction, x0, noise, t, TABLE, bins=bins).detach().numpy()
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_hybrid_loss_and_where_its_gradients_go() -> None:
    denoiser = made()
    x0, noise = draws()
    level = TABLE(torch.tensor([1, 2, 25, STEPS], dtype=torch.float64) / STEPS)
    loss = objective.training_loss(denoiser, x0, level, noise)
    simple = objective.denoising_loss(denoiser, x0, level, noise)
    bound = objective.learned_variance_bound(denoiser(diffuse(x0, level, noise), level), x0, noise, level, TABLE)
    assert torch.allclose(loss, simple + 0.001 * STEPS * bound, rtol=1e-12)
    # the mean learns from L_simple alone, the variance from the bound alone
    network = denoiser.network
    assert isinstance(network, Doubled)
    gain, raw = torch.autograd.grad(loss.sum(), [network.gain, network.raw])
    (alone,) = torch.autograd.grad(simple.sum(), [network.gain], retain_graph=True)
    assert gain == pytest.approx(float(alone), rel=1e-12)
    (of_bound,) = torch.autograd.grad(bound.sum(), [network.raw])
    assert torch.allclose(raw, 0.001 * STEPS * of_bound, rtol=1e-9) and bool((raw != 0).all())


def test_the_learned_variance_becomes_the_optimal_one() -> None:
    """Where the mean errs by e, the bound is least at beta-tilde + k_0^2 e^2."""
    t, s = TABLE(0.5), TABLE(0.48)
    x0, noise = draws(1)
    denoiser = made()
    network = denoiser.network
    assert isinstance(network, Doubled)
    x = diffuse(x0, t, noise)
    with torch.no_grad():
        network.gain.copy_(-torch.tensor(t.sigma) * 0.9)
    error = posterior(denoiser(x, t).x0 - x0, torch.zeros_like(x), t, s).mean.detach().square().mean((0, 2))
    optimum = (TILDE[24] + error).log()
    best = (optimum - math.log(TILDE[24])) / math.log(BETAS[24] / TILDE[24])
    with torch.no_grad():
        network.raw.copy_(2 * best - 1)
    loss = objective.learned_variance_bound(denoiser(x, t), x0, noise, t, TABLE).sum()
    (slope,) = torch.autograd.grad(loss, [network.raw])
    assert slope.abs().max() < 1e-10


def test_far_tails_keep_a_gradient() -> None:
    denoiser = made()
    x0, noise = torch.full((1, 3, 5), -0.3, dtype=torch.float64), torch.zeros(1, 3, 5, dtype=torch.float64)
    network = denoiser.network
    assert isinstance(network, Doubled)
    with torch.no_grad():
        network.gain.fill_(40.0)
    loss = objective.training_loss(denoiser, x0, TABLE(1 / STEPS), noise).sum()
    gradients = torch.autograd.grad(loss, [network.gain, network.raw])
    assert bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients)
    assert bool((gradients[1] < 0).all())


def test_without_a_learned_variance_the_loss_is_the_simple_one() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return 0.5 * x

    denoiser = Denoiser(Half(), TABLE, parameterization.v, embed_thousand)
    x0, noise = draws()
    level = TABLE(0.5)
    found = objective.training_loss(denoiser, x0, level, noise)
    assert torch.equal(found, objective.denoising_loss(denoiser, x0, level, noise))
    with pytest.raises(InputError, match="has not learned"):
        variance.learned(denoiser(x0, level), level, TABLE(0.48))
    with pytest.raises(InputError, match="learned_variance"):
        objective.learned_variance_bound(denoiser(x0, level), x0, noise, level, TABLE)


def test_bad_input() -> None:
    x0, noise = draws()
    single = Denoiser(nn.Identity(), TABLE, parameterization.v, embed_thousand, learned_variance=True)
    single.network.forward = lambda x, time: x  # type: ignore[method-assign]
    with pytest.raises(InputError, match="must return 6 channels"):
        single(x0, TABLE(0.5))
    continuous = schedules.ContinuousLinear()
    with pytest.raises(InputError, match="has none"):
        objective.training_loss(made(schedule=continuous), x0, continuous(0.5), noise)


@pytest.mark.parametrize("steps", [1, 2])
def test_one_and_two_steps(steps: int) -> None:
    table = schedules.cosine(steps)
    x0, noise = draws()
    for i in range(1, steps + 1):
        loss = objective.training_loss(made(schedule=table), x0, table(i / steps), noise)
        assert bool(loss.isfinite().all())
