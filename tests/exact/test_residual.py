"""Residual models, regression, and what SR3 tells its network, against closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.conditioning.low_resolution import Base, LowResolution, blurred
from sfumato.diffusion import parameterization
from sfumato.diffusion.denoiser import Denoiser, embed_gamma, embed_log_sigma
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.objective import training_loss
from sfumato.diffusion.schedule import Karras, linear
from sfumato.diffusion.times import BetweenSteps
from sfumato.errors import InputError
from sfumato.sampling.grids import karras
from sfumato.sampling.sample import Step, initial, sample
from sfumato.sampling.steps import heun

MEAN, STD = 0.4, 0.1


def known(x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    return torch.full_like(x, MEAN) + cond["shift"][:, None].to(x)


class Ideal(nn.Module):
    """The ideal network for normal data without a mean: EDM's skip is all that there is to know of them."""

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        return torch.zeros_like(x)


def residual() -> Denoiser:
    schedule, edm = Karras(4.0), parameterization.edm(STD)
    return Denoiser(Ideal(), schedule, edm, embed_log_sigma, data_std=STD, base=known)


def test_a_residual_model_of_normal_data_is_the_exact_posterior() -> None:
    denoiser = residual()
    level = denoiser.schedule(torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    shift = torch.tensor([0.0, 0.5, -0.2], dtype=torch.float64)
    prediction = denoiser(x, level, shift=shift)
    mean = (MEAN + shift)[:, None]
    variance = level.sigma[:, None] ** 2
    exact = (STD**2 * x + variance * mean) / (STD**2 + variance)
    assert torch.allclose(prediction.x0, exact, atol=1e-12)
    assert torch.allclose(prediction.eps, (x - exact) / variance.sqrt(), atol=1e-12)
    mixed = prediction.mix(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([2.0, 1.0, 0.5]))
    by_hand = torch.tensor([[0.1], [0.2], [0.3]]) * exact + torch.tensor([[2.0], [1.0], [0.5]]) * prediction.eps
    assert torch.allclose(mixed, by_hand, atol=1e-6)
    assert torch.allclose(prediction.output_error(exact, prediction.eps), torch.zeros_like(x), atol=1e-9)


@pytest.mark.parametrize("step", [sfumato.ddim, heun])
def test_samples_of_a_residual_model_have_the_mean_of_the_base_and_its_spread(step: Step) -> None:
    denoiser = residual()
    levels = karras(denoiser.schedule, 60, sigma_min=1e-3)
    shift = torch.full((4000,), 0.3)
    x = denoiser.start(initial(levels, (4,), seed=0, count=4000), levels[0], shift=shift)
    *_, last = sample(denoiser, x, levels, step, shift=shift)
    assert float(last.x.mean()) == pytest.approx(MEAN + 0.3, abs=3e-3)
    assert float(last.x.std()) == pytest.approx(STD, rel=0.1)


def test_the_start_of_a_residual_model_keeps_its_mean_where_there_is_little_noise() -> None:
    denoiser, shift = residual(), torch.zeros(2)
    level = denoiser.schedule(1.0)
    assert torch.equal(denoiser.start(torch.zeros(2, 3), level, shift=shift), torch.full((2, 3), MEAN))
    assert torch.equal(
        denoiser.with_network(Ideal()).start(torch.zeros(2, 3), level, shift=shift)[0], torch.full((3,), MEAN)
    )


def test_the_base_is_the_image_scaled_up_and_zero_without_one() -> None:
    low = torch.rand(2, 3, 4, 4)
    base, x = Base("low", "bicubic"), torch.zeros(2, 3, 16, 16)
    expected = nn.functional.interpolate(low, (16, 16), mode="bicubic")
    assert torch.equal(base(x, {"low": low}), expected)
    low[1] = torch.nan
    found = base(x, {"low": low})
    assert torch.equal(found[0], expected[0]) and bool((found[1] == 0.0).all())
    assert torch.equal(base(x, {}), x)


class Seen(nn.Module):
    """A network that answers with the mean of what it sees, plus a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x + self.number


def test_regression_sees_nothing_of_x_and_gives_its_answer_from_any_noise() -> None:
    denoiser = Denoiser(Seen(), Karras(4.0), parameterization.regression, embed_log_sigma)
    level = denoiser.schedule(torch.tensor([0.2, 0.8]))
    prediction = denoiser(torch.randn(2, 7), level)
    assert torch.allclose(prediction.x0, torch.full((2, 7), 0.25))
    levels = karras(denoiser.schedule, 3)
    frames = list(sample(denoiser, initial(levels, (7,), seed=1, count=2), levels, partial(sfumato.ddim)))
    assert torch.allclose(frames[-1].x, torch.full((2, 7), 0.25), atol=1e-6)
    # its loss is the squared error of the image
    x0, noise = torch.rand(2, 7), torch.randn(2, 7)
    from sfumato.diffusion.weighting import OutputWeight

    loss = training_loss(denoiser, x0, level, noise, OutputWeight(parameterization.regression))
    assert torch.allclose(loss, (x0 - 0.25).square().mean(1), atol=1e-6)


def test_errors_can_count_by_their_size() -> None:
    denoiser = Denoiser(Seen(), linear(), parameterization.eps, embed_gamma)
    level = denoiser.schedule(torch.tensor([0.2, 0.8]))
    x0, noise = torch.rand(2, 7), torch.randn(2, 7)
    error = denoiser(diffuse(x0, level, noise), level).eps - noise
    assert torch.allclose(training_loss(denoiser, x0, level, noise, power=1), error.abs().mean(1))
    assert torch.allclose(training_loss(denoiser, x0, level, noise), error.square().mean(1))


def test_sr3_draws_gamma_between_the_steps_and_tells_it() -> None:
    schedule = linear(10)
    times = BetweenSteps(schedule)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    level = times.sample(u)
    gamma = torch.as_tensor(level.alpha).square()
    # the mean of a mixture of uniform distributions between neighbours is that of their middles
    edges = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bars])
    assert float(gamma.mean()) == pytest.approx(float((0.5 * (edges[1:] + edges[:-1])).mean()), abs=1e-4)
    counts = torch.histc(gamma, bins=1, min=float(edges[4]), max=float(edges[3]))
    assert float(counts) == pytest.approx(10_000, abs=2)
    assert float(torch.as_tensor(level.sigma).min()) > 0.0
    assert torch.allclose(torch.as_tensor(embed_gamma(level)), 1000.0 * gamma)
    assert float(torch.as_tensor(embed_gamma(Karras(80.0)(0.5)))) < 1000.0
    with pytest.raises(InputError, match="table"):
        BetweenSteps(Karras(4.0))


def test_the_blur_of_the_input_is_that_of_a_gaussian() -> None:
    from scipy.ndimage import gaussian_filter

    images = torch.rand(2, 3, 24, 20, dtype=torch.float64)
    found = blurred(images, torch.tensor([1.5, 0.0], dtype=torch.float64))
    exact = torch.from_numpy(gaussian_filter(images[0].numpy(), (0, 1.5, 1.5), mode="mirror", radius=(0, 5, 5)))
    assert torch.allclose(found[0], exact, atol=1e-6)
    assert torch.allclose(found[1], images[1], atol=1e-12)
    with pytest.raises(InputError, match="blur"):
        LowResolution(blur=-1.0)
