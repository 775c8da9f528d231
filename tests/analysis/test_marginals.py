"""Diffused marginals and flow lines against SciPy, quadrature and conservation laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from sfumato.analysis.processes import bumps, kernel_density, marginals, spiral
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.errors import InputError

SCHEDULES = [schedules.ContinuousCosine(), schedules.linear(1000), schedules.Karras(10.0)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_density_is_the_convolution_with_the_kernel(schedule: schedules.Schedule) -> None:
    """q(x_t) = int q(x_0) N(x_t; alpha x_0, sigma^2) dx_0, by quadrature."""
    level = schedule(0.5)
    parts = [(0.5, -1.7, 0.45), (0.35, 0.6, 0.18), (0.15, 2.1, 0.12)]

    def integrand(x0: float, x: float) -> float:
        data = sum(w * stats.norm.pdf(x0, m, s) for w, m, s in parts)
        return data * stats.norm.pdf(x, level.alpha * x0, level.sigma)

    at = torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64)
    expected = [integrate.quad(integrand, -4, 4, args=(float(x),), limit=200, points=[-1.7, 0.6, 2.1])[0] for x in at]
    assert bumps().marginal_log_prob(at[:, None], level).exp().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_flow_lines_conserve_the_distribution_function(schedule: schedules.Schedule) -> None:
    times = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
    view = marginals(bumps(), schedule, times, steps=1000)
    assert view.cdf is not None
    assert float((view.cdf - view.cdf[-1]).abs().max()) < 3e-4
    # so that no two lines ever cross
    assert bool((view.lines[..., 0].diff(dim=1) > 0.0).all())
    assert float(view.line_times[0]) == 0.0 and float(view.line_times[-1]) == 1.0


def test_the_distribution_function_is_that_of_scipy() -> None:
    level = schedules.linear(1000)(0.3)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    parts = [(0.5, -1.7, 0.45), (0.35, 0.6, 0.18), (0.15, 2.1, 0.12)]
    expected = sum(
        w * stats.norm.cdf(x.numpy(), level.alpha * m, math.hypot(level.alpha * s, level.sigma)) for w, m, s in parts
    )
    assert bumps().marginal_cdf(x, level).numpy() == pytest.approx(expected, abs=1e-12)


def test_densities_in_the_plane_have_mass_one_and_flow_ends_on_the_data() -> None:
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    view = marginals(spiral(), schedules.ContinuousCosine(), times, positions=161, lines=40, steps=200)
    cell = float(view.axis[1] - view.axis[0]) ** 2
    assert (view.density.sum((1, 2)) * cell).tolist() == pytest.approx([1.0, 1.0, 1.0], abs=5e-3)
    nearest = torch.cdist(view.lines[0], spiral().means).amin(1)
    assert float((nearest < 4 * 0.11).double().mean()) == 1.0
    assert view.cdf is None


def test_the_first_axis_of_a_plane_is_horizontal() -> None:
    view = marginals(
        GaussianOracle(torch.tensor([1.5, 0.0]), 0.01 * torch.eye(2)),
        schedules.linear(100),
        torch.zeros(1).double(),
        positions=41,
        lines=1,
        steps=5,
    )
    row, column = np.unravel_index(int(view.density[0].argmax()), (41, 41))
    assert float(view.axis[column]) == pytest.approx(1.5, abs=0.1) and float(view.axis[row]) == pytest.approx(
        0.0, abs=0.1
    )


def test_a_kernel_density_is_that_of_scipy() -> None:
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = kernel_density(points)
    width = float(points.std(0).mean()) * stats.gaussian_kde(points.T.numpy()).silverman_factor()
    assert found.covariances.rest.sqrt().tolist() == pytest.approx([width] * 50)
    at = torch.tensor([[0.3, -0.2], [2.0, 1.0]], dtype=torch.float64)
    expected = [stats.multivariate_normal(p, width**2).pdf(at.numpy()) for p in points.numpy()]
    assert found.log_prob(at).exp().tolist() == pytest.approx(np.mean(expected, 0).tolist())


@pytest.mark.parametrize(
    "make",
    [
        lambda: kernel_density(torch.zeros(5, 1)),
        lambda: kernel_density(torch.zeros(1, 1)),
        # three dimensions, images, and points without a density of their own
        lambda: marginals(GaussianOracle(torch.zeros(3), torch.eye(3)), schedules.linear(10), torch.ones(1).double()),
        lambda: marginals(
            GaussianOracle(torch.zeros(1, 2), torch.eye(2)), schedules.linear(10), torch.ones(1).double()
        ),
        lambda: marginals(
            GaussianOracle(torch.zeros(1), torch.zeros(1, 1)), schedules.linear(10), torch.zeros(1).double()
        ),
    ],
)
def test_bad_input(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
