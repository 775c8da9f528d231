"""The probability flow's density against densities in closed form."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from sfumato.config import Config
from sfumato.data.dataset import Dataset
from sfumato.data.sources import digits
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.bound import Bound
from sfumato.diffusion.denoiser import Denoiser, Prediction, embed_thousand
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import (
    Integrator,
    dequantize,
    dormand_prince,
    exact_divergence,
    first_noise,
    gaussian_probes,
    hutchinson,
    log_density,
    rademacher,
    rk4,
)
from sfumato.diffusion.parameterization import edm, eps, v, x0
from sfumato.errors import InputError
from sfumato.likelihoods import bits_per_dim, default_levels
from sfumato.model import Facts, Model
from sfumato.sampling import grids

SCHEDULES = {
    "linear": schedules.linear(1000),
    "cosine": schedules.cosine(1000),
    "continuous": schedules.ContinuousLinear(),
    "continuous cosine": schedules.ContinuousCosine(),
    "edm": schedules.Karras(),
}


class Mixture:
    """The exact denoiser, and the density, of a mixture of isotropic Gaussians in any dimension."""

    def __init__(self, means: list[list[float]], stds: list[float], weights: list[float]) -> None:
        self.means = torch.tensor(means, dtype=torch.float64)
        self.stds = torch.tensor(stds, dtype=torch.float64)
        self.log_weights = torch.tensor(weights, dtype=torch.float64).log()

    def _log_parts(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = (torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1) for value in (alpha, sigma))
        spread = alpha**2 * self.stds**2 + sigma**2
        off = x[:, None] - alpha[..., None] * self.means
        dimensions = x.shape[1]
        log_p = -0.5 * off.square().sum(-1) / spread - 0.5 * dimensions * (2.0 * math.pi * spread).log()
        return self.log_weights + log_p, off, spread

    def log_p(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        return self._log_parts(x.double(), alpha, sigma)[0].logsumexp(-1)

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        parts, off, spread = self._log_parts(x.double(), level.alpha, level.sigma)
        alpha = torch.as_tensor(level.alpha, dtype=torch.float64).reshape(-1, 1)
        each = self.means + (alpha * self.stds**2 / spread)[..., None] * off
        return Prediction.of_x0(x, (parts.softmax(-1)[..., None] * each).sum(1).to(x), level)

    def draw(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.log_weights.exp(), count, True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[which] + self.stds[which, None] * noise


GAUSSIAN = Mixture([[0.3, -0.1, 0.2]], [0.5], [1.0])
ONE_D = Mixture([[-0.6], [0.5]], [0.1, 0.2], [0.3, 0.7])
TWO_D = Mixture([[-0.5, 0.2], [0.4, -0.3]], [0.2, 0.1], [0.6, 0.4])


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
@pytest.mark.parametrize("oracle", [GAUSSIAN, ONE_D, TWO_D], ids=["gaussian", "1d", "2d"])
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
    symmetric = matrix + matrix.T
    # the variances in closed form: Rademacher probes do not see the diagonal
    variances = {
        rademacher: 0.5 * float((off + off.T).square().sum()),
        gaussian_probes: 0.5 * float(symmetric.square().sum()),
    }
    for law, variance in variances.items():
        found = hutchinson(field, y, probes=law(0, 0, 20000, (3,)))[1]
        assert float(found.mean()) == pytest.approx(2.0, abs=4.0 * math.sqrt(variance / 20000))
        assert float(found.var()) == pytest.approx(variance, rel=0.1)
        four = hutchinson(field, y, probes=law(0, 0, 20000, (3,), probes=4))[1]
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


def quantized_gaussian(bins: int, std: float) -> tuple[Tensor, Tensor]:
    """Even samples of N(0, std^2) rounded to a grid, and -log2 P of each."""
    width = 2.0 / (bins - 1)
    u = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    x = ((torch.special.ndtri(u) * std + 1.0) / width).round().clamp(0, bins - 1) * width - 1.0
    law = stats.norm(0.0, std)
    mass = law.cdf(x.numpy() + width / 2.0) - law.cdf(x.numpy() - width / 2.0)
    order = torch.from_numpy(np.random.default_rng(0).permutation(4096))
    return x[order].reshape(-1, 4), -torch.from_numpy(mass).log2()[order].reshape(-1, 4).mean(1)


def test_bits_per_dim_of_quantized_gaussian_data() -> None:
    """Both likelihoods are that of the bins: the true denoiser of the density misses the bins by very little."""
    x, exact = quantized_gaussian(256, 0.25)
    oracle = Mixture([[0.0] * 4], [0.25], [1.0])
    done: list[int] = []
    found = bits_per_dim(
        oracle, x, schedule=schedules.ContinuousLinear(), steps=20, sigma_min=1e-3, batch_size=800, progress=done.append
    )
    assert done == [800, 1024]
    assert found.flow is not None and found.bound is not None
    assert found.flow.mean == pytest.approx(float(exact.mean()), abs=0.003)
    assert found.flow.bits.shape == (1024,) and found.bound.total.shape == (1024,)
    assert found.bound.mean > found.flow.mean - 0.01
    assert found.flow.bin_width == pytest.approx(1.0 / 127.5)
    assert (found.flow.bits - -(found.flow.nats / 4.0 - math.log(127.5)) / math.log(2.0)).abs().max() < 1e-12
    assert 0.0 < found.flow.standard_error < 0.1
    assert found.dimensions == 4 and found.bins == 256


def test_continuous_data_have_a_density_alone() -> None:
    x = TWO_D.draw(8)
    found = bits_per_dim(TWO_D, x, bins=None, bound=False, schedule=schedules.ContinuousCosine(), sigma_min=1e-3)
    assert found.bound is None and found.flow is not None and found.flow.bin_width is None
    assert (found.flow.bits + TWO_D.log_p(x) / 2.0 / math.log(2.0)).abs().max() < 1e-3
    with pytest.raises(InputError, match="bound=False"):
        bits_per_dim(TWO_D, x, bins=None, schedule=schedules.Karras())


def test_batches_do_not_change_an_image() -> None:
    schedule = schedules.linear(20)
    x = torch.linspace(-1, 1, 17, dtype=torch.float64)[torch.arange(14).reshape(7, 2)]
    for options in ({"probes": 2}, {"probes": 0, "draws": 3}):
        whole, parts = (
            bits_per_dim(
                TWO_D, x, bins=17, schedule=schedule, integrator=partial(rk4, steps=5), batch_size=size, **options
            )
            for size in (7, 3)
        )
        assert (whole.bound.total - parts.bound.total).abs().max() < 1e-12
        assert (whole.flow.bits - parts.flow.bits).abs().max() < 1e-12
    tail = bits_per_dim(
        TWO_D, x[3:], bins=17, schedule=schedule, integrator=partial(rk4, steps=5), probes=0, draws=3, first=3
    )
    assert (whole.bound.total[3:] - tail.bound.total).abs().max() < 1e-12
    assert (whole.flow.bits[3:] - tail.flow.bits).abs().max() < 1e-12


def _process(rank: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    x = torch.linspace(-1, 1, 17, dtype=torch.float64)[torch.arange(10).reshape(5, 2)]
    options = {"bins": 17, "schedule": schedules.linear(10), "integrator": partial(rk4, steps=4), "batch_size": 2}
    found = bits_per_dim(TWO_D, x, **options)
    with pytest.raises(InputError, match="grid of 17"):
        bits_per_dim(TWO_D, torch.where(torch.arange(5)[:, None] == 4, 0.01, x), **options)
    torch.save({"bound": found.bound.total, "flow": found.flow.bits}, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_images(tmp_path: Path) -> None:
    """Both return what one process finds, and a wrong image in the share of one ends both."""
    torch.multiprocessing.spawn(_process, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    x = torch.linspace(-1, 1, 17, dtype=torch.float64)[torch.arange(10).reshape(5, 2)]
    alone = bits_per_dim(TWO_D, x, bins=17, schedule=schedules.linear(10), integrator=partial(rk4, steps=4))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert (found["bound"] - alone.bound.total).abs().max() < 1e-12
        assert (found["flow"] - alone.flow.bits).abs().max() < 1e-12


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(65, 65)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        shift = 0.0 if label is None else label.to(x)[:, None, None, None]
        return self.drop(self.layer(x.flatten(1).repeat(1, 2)[:, :65])).sum(1).reshape(-1, 1, 1, 1).tanh() * x + shift


def test_a_network_in_float32_with_conditions() -> None:
    """More dimensions than are done exactly, dropout off while it runs and on again afterwards, from a data set."""
    torch.manual_seed(0)
    schedule = schedules.linear(10)
    denoiser = Denoiser(Small(), schedule, eps, embed_thousand)
    images = (torch.arange(6 * 81).reshape(6, 1, 9, 9) % 256).to(torch.uint8).numpy()
    data = Dataset(images, None, (), "ramp")
    options = {"integrator": partial(rk4, steps=4), "batch_size": 4}
    found = bits_per_dim(denoiser, data, **options)
    assert denoiser.training
    assert found.flow.probes == 1 and bool(found.flow.bits.isfinite().all())
    assert found.bound.steps.shape == (6, 9)
    again = bits_per_dim(denoiser, data, **options)
    assert bool((again.bound.total == found.bound.total).all() and (again.flow.bits == found.flow.bits).all())
    label = torch.tensor([0, 0, 0, 0, 0, 1])
    other = bits_per_dim(denoiser, data, label=label, **options)
    changed = (other.bound.total != found.bound.total).tolist()
    assert changed == [False] * 5 + [True]


def test_a_model_takes_the_labels_of_a_data_set() -> None:
    model = Model(Config(), Facts(shape=(1, 8, 8), classes=("a", "b"), std=0.5, train=2, heldout=0))
    with torch.no_grad():  # a new network gives zeros whatever it is told
        for parameter in model.denoiser.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    images = (torch.arange(2 * 64).reshape(2, 1, 8, 8) * 2).to(torch.uint8).numpy()
    data = Dataset(images, torch.tensor([0, 1]).numpy(), ("a", "b"), "ramp")
    options = {"flow": False, "steps": 3}
    found = bits_per_dim(model, data, **options).bound.total
    tensor, label = data.batch([0, 1]), torch.tensor([0, 1])
    assert bool((bits_per_dim(model, tensor, label=label, **options).bound.total == found).all())
    assert bool((bits_per_dim(model, tensor, label=label.flip(0), **options).bound.total != found).all())
    assert bool((bits_per_dim(model, tensor, **options).bound.total != found).all())
    with pytest.raises(InputError, match=r"of shape \(1, 8, 8\)"):
        bits_per_dim(model, tensor[..., :4], **options)
    plain = Model(Config(), Facts(shape=(1, 8, 8), std=0.5, train=2, heldout=0))
    with pytest.raises(InputError, match="without labels"):
        bits_per_dim(plain, tensor, label=label, **options)


def test_the_default_grid() -> None:
    assert len(default_levels(schedules.linear(100))) == 101
    assert len(default_levels(schedules.ContinuousLinear())) == 1001
    edm_grid = list(default_levels(schedules.Karras(), 50))
    assert len(edm_grid) == 51 and edm_grid[-2].sigma == pytest.approx(0.002)
    assert list(default_levels(schedules.Karras(), 50, bins=17))[-2].sigma == pytest.approx(0.125 / 4.0)
    # a schedule without an end of its own is entered where all but nothing of the data is left
    flow_grid = list(default_levels(schedules.RectifiedFlow(), bins=17))
    assert flow_grid[-2].noise_to_signal == pytest.approx(0.125 / 4.0)
    assert flow_grid[0].noise_to_signal == pytest.approx(80.0)


def test_one_and_two_steps() -> None:
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    two = schedules.Discrete([0.5, 0.998])
    found = bits_per_dim(TWO_D, x, bins=3, schedule=two, integrator=partial(rk4, steps=10))
    assert math.isfinite(found.bound.mean) and math.isfinite(found.flow.mean)
    one = schedules.Discrete([0.999])
    assert math.isfinite(bits_per_dim(TWO_D, x, bins=3, schedule=one, flow=False).bound.mean)
    with pytest.raises(InputError, match="schedules of one step"):
        bits_per_dim(TWO_D, x, bins=3, schedule=one)


def test_constant_and_single_pixel_images() -> None:
    for shape in ((3, 1), (2, 2)):
        oracle = ONE_D if shape[1] == 1 else TWO_D
        x, few = torch.ones(shape, dtype=torch.float64), partial(rk4, steps=10)
        found = bits_per_dim(oracle, x, schedule=schedules.linear(20), integrator=few)
        assert bool(found.bound.total.isfinite().all() and found.flow.bits.isfinite().all())


def test_wrong_inputs_are_refused() -> None:
    schedule, x = schedules.linear(20), torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="grid of 256 values"):
        bits_per_dim(TWO_D, x + 0.001, schedule=schedule)
    with pytest.raises(InputError, match="grid of 256 values"):
        bits_per_dim(TWO_D, x + 0.001, schedule=schedule, bound=False)
    with pytest.raises(InputError, match="carries no schedule"):
        bits_per_dim(TWO_D, x, bins=3)
    with pytest.raises(InputError, match="reaches the data"):
        bits_per_dim(TWO_D, x, bins=3, schedule=schedule, levels=schedule(torch.tensor([1.0, 0.5])))
    with pytest.raises(InputError, match="at least 2 values"):
        bits_per_dim(TWO_D, x, bins=1, schedule=schedule)
    with pytest.raises(InputError, match="Nothing was asked"):
        bits_per_dim(TWO_D, x, bins=3, schedule=schedule, bound=False, flow=False)
    with pytest.raises(InputError, match="at least 1 image"):
        bits_per_dim(TWO_D, x[:0], bins=3, schedule=schedule)
    with pytest.raises(InputError, match="3 rows for 2 images"):
        bits_per_dim(TWO_D, x, bins=3, schedule=schedule, label=torch.zeros(3))
    with pytest.raises(InputError, match="probes must be at least 1"):
        bits_per_dim(TWO_D, x, bins=3, schedule=schedule, probes=-1)
    with pytest.raises(InputError, match="at least 1 step"):
        bits_per_dim(TWO_D, x, bins=3, schedule=schedule, steps=0)
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


def test_denoisers_that_cannot_be_used_are_refused() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)

    def detached(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        with torch.no_grad():
            return TWO_D(x.detach(), level)

    def broken(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        return Prediction.of_x0(x, x * math.nan, level)

    with pytest.raises(InputError, match="derivative of the denoiser"):
        log_density(detached, schedules.Karras(), x)
    for integrator in (rk4, dormand_prince):
        with pytest.raises(InputError, match="not finite"):
            log_density(broken, schedules.Karras(), x, integrator=integrator)


def test_the_bound_of_parts_is_joined_in_order() -> None:
    part = Bound(grids.uniform(schedules.linear(3), 3), *(torch.zeros(n).double() for n in ((1,), (1, 2), (1,))))
    assert Bound.join([part, part]).steps.shape == (2, 2)
