"""The families of generative models: what they claim of their likelihood is true, and the comparison is fair."""

from __future__ import annotations

import math

import pytest
import torch

from sfumato.analysis import families, taxonomy
from sfumato.analysis.families import FAMILIES, VAE, Diffusion, Flow, compare, create, ring, sliced_wasserstein, train
from sfumato.errors import InputError


def plane(points: int = 201, end: float = 4.0) -> tuple[torch.Tensor, float]:
    axis = torch.linspace(-end, end, points)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def test_the_entropy_is_that_of_separate_bumps() -> None:
    # the 8 bumps hardly overlap: log 8 and the entropy of one Gaussian
    expected = math.log(8.0) + math.log(2.0 * math.pi * math.e * 0.15**2)
    assert families.entropy() == pytest.approx(expected, abs=2e-3)
    nats = ring().log_prob(ring().sample(20000, 0).double())
    assert -float(nats.mean()) == pytest.approx(families.entropy(), abs=0.02)


def test_the_distance_is_that_of_a_shift() -> None:
    points = ring().sample(500, 0)
    assert sliced_wasserstein(points, points) == 0.0
    # a shift by d moves the projection on each direction by d cos(angle): a root mean square of d / sqrt(2)
    shift = torch.tensor([0.6, 0.8], dtype=points.dtype)
    assert sliced_wasserstein(points, points + shift) == pytest.approx(1.0 / math.sqrt(2.0), rel=1e-6)


def test_a_flow_is_a_density_with_an_inverse() -> None:
    flow = train(create(Flow)[0], 20)
    assert isinstance(flow, Flow)
    x, area = plane(end=6.0)
    with torch.no_grad():
        assert float(flow.log_prob(x).exp().sum()) * area == pytest.approx(1.0, abs=0.02)
        z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(flow.encode(flow.decode(z))[0], z, atol=1e-4, rtol=0.0)


def test_the_bounds_of_a_vae_are_in_order() -> None:
    vae = train(create(VAE)[0], 40)
    assert isinstance(vae, VAE)
    x = ring().sample(200, 5).float()
    with torch.no_grad():
        elbo, closer = vae.likelihoods(x, 0).values()
        # the density by quadrature over the latents
        z, area = plane(161, 5.0)
        log_joint = families._normal_nats(x[:, None], vae.decoder(z), vae.log_std) + families._normal_nats(z)
        exact = log_joint.logsumexp(1) + math.log(area)
    assert float(elbo.mean()) < float(closer.mean()) <= float(exact.mean()) + 0.01
    assert float(closer.mean()) == pytest.approx(float(exact.mean()), abs=0.2)


def test_a_diffusion_model_integrates_to_one() -> None:
    diffusion = train(create(Diffusion)[0], 60)
    x, area = plane(61, 6.0)
    with torch.no_grad():
        (nats,) = diffusion.likelihoods(x, 0).values()
    assert float(nats.exp().sum()) * area == pytest.approx(1.0, abs=0.05)


def test_the_comparison_is_fair_and_repeatable() -> None:
    sizes = [sum(p.numel() for p in create(family)[0].parameters()) for family in FAMILIES]
    assert max(sizes) < 1.05 * min(sizes)
    told: list[float] = []
    results = compare(steps=40, count=400, progress=lambda share, name: told.append(share))
    assert told == sorted(told) and told[0] == 0.0 and told[-1] == 1.0
    costs = [result.training_macs for result in results]
    assert max(costs) < 1.03 * min(costs)
    again = compare(steps=40, count=400)
    assert all(torch.equal(a.samples, b.samples) for a, b in zip(results, again, strict=True))
    assert not torch.equal(compare(1, steps=1, count=10)[0].samples, compare(2, steps=1, count=10)[0].samples)
    assert [len(result.likelihoods) for result in results] == [2, 1, 0, 1]
    assert [result.evaluations for result in results] == [1, 1, 1, 39]
    assert all(result.name in taxonomy.summary(results) for result in results)
    taxonomy.plot(results)


def test_training_brings_the_samples_nearer() -> None:
    early, late = compare(steps=1, count=500), compare(steps=150, count=500)
    for before, after in zip(early, late, strict=True):
        if before.name != "GAN":  # whose game has not settled by then
            assert after.distance < 0.8 * before.distance, before.name


def test_the_families_of_the_lecture() -> None:
    names = [kind.name for kind in taxonomy.KINDS]
    assert len(names) == 6 and len(set(names)) == 6
    taxonomy.plot()


def test_too_little_is_refused() -> None:
    for options in ({"steps": 0}, {"count": 1}):
        with pytest.raises(InputError, match="at least"):
            compare(**options)
