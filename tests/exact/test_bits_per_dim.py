"""The two likelihoods of quantized data, in bits per dimension."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tests.round_mixtures import ONE_D, TWO_D, Mixture
from torch import Tensor, nn

from sfumato.config import Config, parse
from sfumato.data import Column, Dataset
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.bound import Bound
from sfumato.diffusion.denoiser import Denoiser, embed_thousand
from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import rk4
from sfumato.diffusion.parameterization import eps
from sfumato.errors import InputError
from sfumato.models.likelihood import bits_per_dim, default_levels
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.sampling import grids


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
    data = Dataset(images, name="ramp")
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
    classes = {"label": {"names": ("a", "b")}}
    info = parse(Info, {"shape": (1, 8, 8), "std": 0.5, "train": 2, "conditions": classes})
    model = Model.build(Config(), info)
    with torch.no_grad():  # a new network returns zeros for any input
        for parameter in model.denoiser.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    images = (torch.arange(2 * 64).reshape(2, 1, 8, 8) * 2).to(torch.uint8).numpy()
    data = Dataset(images, {"label": Column(torch.tensor([0, 1]).numpy(), ("a", "b"))}, "ramp")
    options = {"flow": False, "steps": 3}
    found = bits_per_dim(model, data, **options).bound.total
    tensor, label = data.batch([0, 1]), torch.tensor([0, 1])
    assert bool((bits_per_dim(model, tensor, label=label, **options).bound.total == found).all())
    assert bool((bits_per_dim(model, tensor, label=label.flip(0), **options).bound.total != found).all())
    assert bool((bits_per_dim(model, tensor, **options).bound.total != found).all())
    with pytest.raises(InputError, match=r"of shape \(1, 8, 8\)"):
        bits_per_dim(model, tensor[..., :4], **options)
    plain = Model.build(Config(), Info(shape=(1, 8, 8), std=0.5, train=2))
    with pytest.raises(InputError, match="no condition or option 'label'"):
        bits_per_dim(plain, tensor, label=label, **options)


def test_the_default_grid() -> None:
    assert len(default_levels(schedules.linear(100))) == 101
    assert len(default_levels(schedules.ContinuousLinear())) == 1001
    edm_grid = list(default_levels(schedules.Karras(), 50))
    assert len(edm_grid) == 51 and edm_grid[-2].sigma == pytest.approx(0.002)
    assert list(default_levels(schedules.Karras(), 50, bins=17))[-2].sigma == pytest.approx(0.125 / 4.0)


CONTINUOUS = {
    "flow": schedules.RectifiedFlow,
    "cosine": schedules.ContinuousCosine,
    "linear": schedules.ContinuousLinear,
    "linear from 0": lambda: schedules.ContinuousLinear(0.0, 20.0),
    "edm": schedules.Karras,
}


@pytest.mark.parametrize("schedule", CONTINUOUS.values(), ids=CONTINUOUS)
def test_the_default_grid_is_cheap_on_every_schedule(schedule: Callable[[], schedules.Schedule]) -> None:
    """Close to the exact probabilities of 8-bit data, for any number of steps, and never dearer than uniform steps."""
    x, exact = (rows[:64] for rows in quantized_gaussian(256, 0.25))
    oracle, noise = Mixture([[0.0] * 4], [0.25], [1.0]), schedule()

    def gap(levels: Level) -> float:
        found = bits_per_dim(oracle, x, schedule=noise, levels=levels, flow=False).bound
        assert found is not None
        return found.mean - float(exact.mean())

    # uniform steps of rectified flow reach 0.002 at about 500, and half of it at 1000
    for steps, most in ((300, 0.7), (499, 0.7), (1000, 0.5)):
        assert gap(default_levels(noise, steps)) < most
    assert gap(default_levels(noise, 100)) < gap(grids.uniform(noise, 100)) + 0.1


@pytest.mark.parametrize("schedule", CONTINUOUS.values(), ids=CONTINUOUS)
def test_the_excess_of_a_grid_is_that_of_gaussian_data(schedule: Callable[[], schedules.Schedule]) -> None:
    """Against the divergences of the bound itself, in continuous data, where the oracle is exact."""
    noise, count = schedule(), 40_000
    levels = grids.karras(noise, 12, 0.05, min(float(noise(1.0).noise_to_signal), 80.0))
    oracle = Mixture([[0.0]], [1.0], [1.0])
    x0 = oracle.draw(count)
    total = 0.0
    for k, (t, s) in enumerate(itertools.pairwise(levels[:-1])):
        x = t.alpha * x0 + t.sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(k)).double()
        k0, _, tilde = posterior_coefficients(t, s)
        divergence = 0.5 * k0**2 * (oracle(x, t).x0 - x0).square().mean() / tilde
        exact = 0.5 * math.log((1.0 + math.exp(s.log_snr)) / (1.0 + math.exp(t.log_snr)))
        total += float(divergence) - exact
    assert grids.excess(levels) == pytest.approx(total, rel=0.02)


def test_one_and_two_steps() -> None:
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    two = schedules.Discrete([0.5, 0.998])
    found = bits_per_dim(TWO_D, x, bins=3, schedule=two, integrator=partial(rk4, steps=10))
    assert math.isfinite(found.bound.mean) and math.isfinite(found.flow.mean)
    one = schedules.Discrete([0.999])
    assert math.isfinite(bits_per_dim(TWO_D, x, bins=3, schedule=one, flow=False).bound.mean)
    with pytest.raises(InputError, match="below the end of the schedule"):
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


def test_the_bound_of_parts_is_joined_in_order() -> None:
    part = Bound(grids.uniform(schedules.linear(3), 3), *(torch.zeros(n).double() for n in ((1,), (1, 2), (1,))))
    assert Bound.join([part, part]).steps.shape == (2, 2)
