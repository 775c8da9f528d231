"""Reverse variances in the samplers: the published expressions, and that they are one family."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from functools import partial

import pytest
import torch
from tests.oracles import gaussian

from sfumato.config import Config, SamplingConfig, parse
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion import variance
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.variance import Gamma, ReverseVariance, analytic
from sfumato.errors import InputError
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.sampling import grids
from sfumato.sampling.guidance import Clipped
from sfumato.sampling.sample import Memory, initial, sample, seeded_noise
from sfumato.sampling.steps import ancestral, ddim, gaussian_spread

STD = 0.6


def exact_gamma(levels: Level, std: float = STD) -> Gamma:
    rows = sorted(
        (float(level.log_snr), level.sigma**2 / (level.alpha**2 * std**2 + level.sigma**2))
        for level in levels
        if level.sigma > 0.0 and level.alpha > 0.0
    )
    return Gamma(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def one(step: object, t: Level, s: Level, noise: float) -> float:
    memory = Memory(lambda x: torch.full_like(x, noise))
    x = torch.full((1, 1), 0.3, dtype=torch.float64)
    return float(step(gaussian(0.2, STD), x, t, s, memory))  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["small", "large", "analytic"])
def test_ddim_at_eta_one_is_ancestral(kind: str) -> None:
    levels = list(grids.uniform(schedules.cosine(1000), 20))
    table = exact_gamma(grids.uniform(schedules.cosine(1000), 20))
    spread = {"small": variance.small, "large": variance.large, "analytic": analytic(table, last=levels[-2])}[kind]
    for t, s in itertools.pairwise(levels):
        for noise in (0.0, 1.0):
            found = one(partial(ddim, eta=1.0, variance=spread), t, s, noise)
            assert found == pytest.approx(one(partial(ancestral, variance=spread), t, s, noise), abs=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_published_optimum_of_generalized_ddim(eta: float) -> None:
    """Bao et al. 2022, eq. 8, with their lambda, alpha, alpha_bar and beta_bar, on a spaced grid."""
    levels = grids.uniform(schedules.linear(1000), 10)
    spread = analytic(exact_gamma(levels))
    for t, s in list(itertools.pairwise(list(levels)))[:-1]:
        bar, before = t.alpha**2, s.alpha**2
        alpha, beta_bar, beta_before = bar / before, 1 - bar, 1 - before
        squared = eta**2 * beta_before / beta_bar * (1 - alpha)
        of_score = 1.0 / (bar * STD**2 + beta_bar)
        root = math.sqrt(beta_bar / alpha) - math.sqrt(beta_before - squared)
        published = squared + root**2 * (1 - beta_bar * of_score)
        step = partial(ddim, eta=eta, variance=spread)
        assert one(step, t, s, 1.0) - one(step, t, s, 0.0) == pytest.approx(math.sqrt(published), abs=1e-10)
        # the mean is that of DDIM whatever is known of the data
        assert one(step, t, s, 0.0) == pytest.approx(one(partial(ddim, eta=eta), t, s, 0.0), abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_few_steps_keep_the_spread_of_gaussian_data(eta: float) -> None:
    """The optimum of every member of the family is the exact transition of Gaussian data: so is its marginal."""
    levels = grids.uniform(schedules.linear(1000), 6)
    x = initial(levels, (5,), 0, count=4000).double()
    step = partial(ddim, eta=eta, variance=analytic(exact_gamma(levels)))
    frames = list(sample(gaussian(0.0, STD, (5,)), x, levels, step, noise=seeded_noise(0)))
    for frame in frames[:-1]:
        expected = math.sqrt(frame.level.alpha**2 * STD**2 + frame.level.sigma**2)
        assert float(frame.x.std()) == pytest.approx(expected, rel=0.015)


def test_a_learned_variance_per_dimension() -> None:
    t, s = schedules.linear(1000)(0.5), schedules.linear(1000)(0.4)
    x, fraction = torch.zeros(2, 1, 3), torch.linspace(-0.2, 1.1, 6).reshape(2, 1, 3)

    def denoise(x: torch.Tensor, level: Level, **cond: torch.Tensor) -> Prediction:
        return Prediction.of_x0(x, torch.zeros_like(x), level, fraction)

    for step in (partial(ancestral, variance=variance.learned), partial(ddim, eta=1.0, variance=variance.learned)):
        found = step(denoise, x, t, s, Memory(torch.ones_like))
        log_beta, log_tilde = (math.log(kind(denoise(x, t), t, s)) for kind in (variance.large, variance.small))
        expected = (0.5 * (fraction * log_beta + (1 - fraction) * log_tilde)).exp()
        assert (found - expected).abs().max() < 1e-6


def test_pure_noise_has_the_variance_of_the_noisiest_level() -> None:
    schedule = schedules.zero_terminal_snr(schedules.linear(1000))
    table = exact_gamma(grids.uniform(schedule, 1000))
    levels = list(grids.uniform(schedule, 10))
    assert levels[0].alpha == 0.0
    found = float(analytic(table)(Prediction.of_x0(torch.zeros(1, 1), torch.zeros(1, 1), levels[1]), *levels[:2]))
    # nothing is known of the data there: the variance is that of the marginal
    assert found == pytest.approx(levels[1].alpha ** 2 * STD**2 + levels[1].sigma ** 2, rel=1e-4)


def test_clipping_holds_the_data_and_keeps_x() -> None:
    level = Level(0.9, 0.1, math.sqrt(0.99))
    x = torch.linspace(-3, 3, 8)[:, None]
    plain, clipped = gaussian(3.0, 5.0)(x, level), Clipped(gaussian(3.0, 5.0))(x, level)
    assert torch.equal(clipped.x0, plain.x0.clamp(-1, 1)) and plain.x0.abs().max() > 1.0
    assert (level.alpha * clipped.x0 + level.sigma * clipped.eps - x).abs().max() < 1e-6


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range(eta: float) -> None:
    t, s = schedules.linear(1000)(0.5), schedules.linear(1000)(0.4)
    with pytest.raises(InputError, match="eta of DDIM"):
        one(partial(ddim, eta=eta), t, s, 0.0)


@pytest.mark.parametrize("step", [ancestral, partial(ddim, eta=0.5)], ids=["ancestral", "ddim"])
@pytest.mark.parametrize("kind", [variance.small, variance.large], ids=["small", "large"])
def test_the_spread_of_samples_in_closed_form(step: partial[torch.Tensor], kind: ReverseVariance) -> None:
    """Against samples, on the schedule where few steps with the large variance miss it the most."""
    levels, chosen = grids.uniform(schedules.Karras(), 6), partial(step, variance=kind)
    x = initial(levels, (50,), 0, count=2000).double()
    *_, frame = sample(gaussian(0.0, STD, (50,)), x, levels, chosen, noise=seeded_noise(0))
    assert gaussian_spread(levels, chosen, STD) == pytest.approx(float(frame.x.std()), rel=0.01)


def few_steps(kind: str, schedule: str, steps: int) -> float | None:
    """The ratio of which sampling warns, if it does."""
    made = Model.build(
        parse(Config, {"model": {"schedule": {"kind": schedule}}}), Info(shape=(1, 8, 8), std=0.5, train=2)
    )
    sampling = parse(
        SamplingConfig, {"sampler": {"kind": kind, "variance": "large"}, "grid": "uniform", "steps": steps}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.sampler(sampling)
    said = [re.search(r"normal data ([0-9.]+) times their spread", str(one.message)) for one in caught]
    return float(said[0][1]) if said and said[0] else None


def test_the_large_variance_is_warned_of_with_the_number() -> None:
    for kind in ("ancestral", "ddim"):
        ratios = [few_steps(kind, "edm", steps) for steps in (5, 10, 500)]
        assert ratios[0] is not None and ratios[1] is not None and ratios[0] > 4.0 > ratios[1] > 2.0
        assert ratios[2] is None
        assert few_steps(kind, "linear", 10) is None and few_steps(kind, "flow", 10) is None
