r"""Four families of generative models on one small problem: a ring of eight Gaussians, whose density is known.

A VAE, a normalizing flow, a GAN and a diffusion model of equal size are trained with the same number of
multiply-accumulates, and compared by their samples, their likelihood and the cost of a sample.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from sfumato import random
from sfumato.diffusion.denoiser import Denoiser, embed_log_sigma
from sfumato.diffusion.likelihood import log_density, rk4
from sfumato.diffusion.objective import denoising_loss
from sfumato.diffusion.oracle import Covariances, MixtureOracle
from sfumato.diffusion.parameterization import edm
from sfumato.diffusion.schedule import Karras
from sfumato.diffusion.times import LogNormal
from sfumato.diffusion.weighting import edm_weight
from sfumato.errors import InputError
from sfumato.networks.mlp import MLP
from sfumato.random import Draws
from sfumato.sampling.grids import karras
from sfumato.sampling.sample import initial, sample
from sfumato.sampling.steps import heun

Points = Float[Tensor, "batch 2"]
Nats = Float[Tensor, "batch"]
Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, from 0 to 1, and the name of the family at work."""

STEPS, BATCH, RATE = 2000, 512, 2e-3
"""Training of the diffusion model: steps, points per step, and Adam's learning rate, which falls to 0 by a cosine."""
SAMPLES = 2000
"""The points that are generated, and the held-out points whose likelihood is measured."""


def ring() -> MixtureOracle:
    """The truth: 8 Gaussians of standard deviation 0.15 on a circle of radius 1.4, with equal weights."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4.0)
    means = 1.4 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return MixtureOracle(means, Covariances.isotropic(torch.full((8,), 0.15**2, dtype=torch.float64), 2))


def entropy(points: int = 501) -> float:
    r"""The entropy of the ring in nats, :math:`-\int p \log p`, by the trapezoidal rule on a grid.

    Its negative is the greatest mean log-likelihood that a model can reach on the ring.
    """
    axis = torch.linspace(-3.0, 3.0, points, dtype=torch.float64)
    nats = ring().log_prob(torch.cartesian_prod(axis, axis))
    return -float((nats.exp() * nats).sum() * (axis[1] - axis[0]) ** 2)


def sliced_wasserstein(a: Points, b: Points, directions: int = 90) -> float:
    r"""The sliced 2-Wasserstein distance of two equally large sets of points (Bonneel et al. 2015), in their units.

    :math:`\mathrm{SW}_2^2 = \frac1\pi \int_0^\pi W_2^2(u_\theta^T a, u_\theta^T b)\, d\theta`; in one dimension the
    optimal transport pairs the sorted points.
    """
    angle = torch.arange(directions, dtype=torch.float64) * (math.pi / directions)
    lines = torch.stack([angle.cos(), angle.sin()])
    left, right = ((points.double() @ lines).sort(dim=0).values for points in (a, b))
    return float((left - right).square().mean().sqrt())


def _mlp(inputs: int, width: int, outputs: int, hidden: int = 2) -> nn.Sequential:
    """A plain network with ``hidden`` hidden layers."""
    sides = [inputs] + [width] * hidden
    layers = [module for i, o in itertools.pairwise(sides) for module in (nn.Linear(i, o), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _normal_nats(x: Tensor, mean: Tensor | float = 0.0, log_std: Tensor | float = 0.0) -> Tensor:
    """The log-density of a normal distribution with independent coordinates, the last axis."""
    log_std = torch.as_tensor(log_std, dtype=x.dtype)
    return (-0.5 * ((x - mean) * (-log_std).exp()).square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


class Family(nn.Module):
    """A generative model of points of the plane, with what the comparison needs of it."""

    name = ""

    def parts(self) -> dict[str, nn.Module]:
        """What is trained in turn, each with a loss of its own; only a GAN has two."""
        return {"model": self}

    def loss(self, part: str, x: Points, draws: Draws) -> Tensor:
        """What ``part`` minimizes, averaged over the points."""
        raise NotImplementedError

    def sample(self, count: int, seed: int) -> Points:
        raise NotImplementedError

    def evaluations(self) -> int:
        """How often its network is called, one call after the other, for a sample."""
        return 1

    def likelihoods(self, x: Points, seed: int) -> dict[str, Nats]:
        """The log-likelihood of each point in nats, by the name of the estimate; none where there is none."""
        return {}


class VAE(Family):
    r"""A variational autoencoder (Kingma and Welling 2014) with a latent space of 2 dimensions.

    It maximizes :math:`\mathbb E_{q(z|x)}[\log p(x|z)] - D_{KL}(q(z|x) \| p(z)) \le \log p(x)`. The decoder is
    :math:`p(x|z) = \mathcal N(\mu(z), \varsigma^2 I)` with a learned standard deviation.
    """

    name = "VAE"

    def __init__(self, width: int = 105) -> None:
        super().__init__()
        self.encoder, self.decoder = _mlp(2, width, 4), _mlp(2, width, 2)
        self.log_std = nn.Parameter(torch.tensor(-1.0))

    def weights(self, x: Points, noise: Float[Tensor, "*latents batch 2"]) -> Float[Tensor, "*latents batch"]:
        r""":math:`\log p(x, z) - \log q(z|x)` at :math:`z = \mu(x) + \sigma(x) \epsilon`: the ELBO before its mean."""
        mean, log_std = self.encoder(x).chunk(2, dim=-1)
        z = mean + log_std.exp() * noise
        return _normal_nats(x, self.decoder(z), self.log_std) + _normal_nats(z) - _normal_nats(z, mean, log_std)

    def loss(self, part: str, x: Points, draws: Draws) -> Tensor:
        return -self.weights(x, draws.normal("latent", (2,))).mean()

    def sample(self, count: int, seed: int) -> Points:
        x = self.decoder(random.normal(seed, "latent", 0, count, (2,)))
        return x + self.log_std.exp() * random.normal(seed, "pixel", 0, count, (2,))

    def likelihoods(self, x: Points, seed: int, latents: int = 100) -> dict[str, Nats]:
        r"""The ELBO, and the closer bound of importance weighting (Burda et al. 2016),
        :math:`\mathbb E \log \frac1K \sum_k p(x, z_k) / q(z_k|x)`.
        """
        noise = random.normal(seed, "importance", 0, len(x), (latents, 2)).transpose(0, 1)
        weights = self.weights(x, noise)
        closer = weights.logsumexp(0) - math.log(latents)
        return {"ELBO (lower bound)": weights.mean(0), f"importance-weighted bound, {latents} latents": closer}


class Flow(Family):
    r"""A normalizing flow of affine couplings (RealNVP, Dinh et al. 2017), :math:`x = f(z)` with an exact density.

    It maximizes :math:`\log p(x) = \log \mathcal N(f^{-1}(x)) + \log |\det \partial f^{-1} / \partial x|`. A coupling
    scales and shifts one coordinate by functions of the other, so that its Jacobian is triangular.
    """

    name = "Normalizing flow"

    def __init__(self, width: int = 52, couplings: int = 8) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(_mlp(1, width, 2) for _ in range(couplings))

    def _affine(self, network: nn.Module, fixed: Tensor) -> tuple[Tensor, Tensor]:
        # a bound on the log-scale keeps the first steps of training stable
        log_scale, shift = network(fixed).chunk(2, dim=1)
        return 2.0 * torch.tanh(0.5 * log_scale), shift

    def encode(self, x: Points) -> tuple[Points, Nats]:
        r"""The noise :math:`z = f^{-1}(x)` and :math:`\log |\det \partial z / \partial x|`."""
        fixed, moved, volume = x[:, :1], x[:, 1:], x.new_zeros(len(x))
        for network in self.couplings:
            log_scale, shift = self._affine(network, fixed)
            fixed, moved = (moved - shift) * (-log_scale).exp(), fixed  # the other coordinate is next
            volume = volume - log_scale[:, 0]
        return torch.cat([fixed, moved], dim=1), volume

    def decode(self, z: Points) -> Points:
        """The inverse of :meth:`encode`."""
        fixed, moved = z[:, :1], z[:, 1:]
        for network in reversed(self.couplings):
            log_scale, shift = self._affine(network, moved)
            fixed, moved = moved, fixed * log_scale.exp() + shift
        return torch.cat([fixed, moved], dim=1)

    def log_prob(self, x: Points) -> Nats:
        z, volume = self.encode(x)
        return _normal_nats(z) + volume

    def loss(self, part: str, x: Points, draws: Draws) -> Tensor:
        return -self.log_prob(x).mean()

    def sample(self, count: int, seed: int) -> Points:
        return self.decode(random.normal(seed, "latent", 0, count, (2,)))

    def likelihoods(self, x: Points, seed: int) -> dict[str, Nats]:
        return {"exact": self.log_prob(x)}


class GAN(Family):
    r"""A generative adversarial network (Goodfellow et al. 2014) with the non-saturating loss of its sec. 3.

    The discriminator maximizes :math:`\mathbb E \log D(x) + \mathbb E \log(1 - D(G(z)))`, the generator
    :math:`\mathbb E \log D(G(z))`.
    """

    name = "GAN"

    def __init__(self, width: int = 105) -> None:
        super().__init__()
        self.generator, self.discriminator = _mlp(2, width, 2), _mlp(2, width, 1)

    def parts(self) -> dict[str, nn.Module]:
        return {"discriminator": self.discriminator, "generator": self.generator}

    def loss(self, part: str, x: Points, draws: Draws) -> Tensor:
        fake = self.generator(draws.normal(part, (2,)))
        if part == "generator":
            return functional.softplus(-self.discriminator(fake)).mean()
        real = functional.softplus(-self.discriminator(x)).mean()
        return real + functional.softplus(self.discriminator(fake.detach())).mean()

    def sample(self, count: int, seed: int) -> Points:
        return self.generator(random.normal(seed, "latent", 0, count, (2,)))


class Diffusion(Family):
    r"""A diffusion model with EDM's schedule, preconditioning and weighting (Karras et al. 2022).

    It minimizes :math:`\mathbb E\, w(\sigma)\, \|\hat\epsilon - \epsilon\|^2`. Samples take 20 steps of Heun's method;
    the likelihood is that of its probability flow (Y. Song et al. 2021), exact up to the error of the integrator.
    """

    name = "Diffusion"

    def __init__(self, width: int = 41) -> None:
        super().__init__()
        network = MLP(2, 2, width=width, depth=2, time_features=16, time_kind="fourier")
        schedule = Karras(sigma_max=20.0)
        self.denoiser = Denoiser(network, schedule, edm(1.0), embed_log_sigma)
        self.times, self.weight = LogNormal(schedule), edm_weight(1.0)

    def loss(self, part: str, x: Points, draws: Draws) -> Tensor:
        level = self.times.sample(draws.stratified("time"))
        return denoising_loss(self.denoiser, x, level, draws.normal("noise", (2,)), weight=self.weight).mean()

    def sample(self, count: int, seed: int) -> Points:
        levels = karras(self.denoiser.schedule, 20)
        *_, last = sample(self.denoiser, initial(levels, (2,), seed, count=count), levels, heun)
        return last.x

    def evaluations(self) -> int:
        calls: list[int] = []

        def called(module: nn.Module, inputs: Any, output: Any) -> None:
            calls.append(1)

        hook = self.denoiser.network.register_forward_hook(called)
        self.sample(1, 0)
        hook.remove()
        return len(calls)

    def likelihoods(self, x: Points, seed: int) -> dict[str, Nats]:
        integrator = functools.partial(rk4, steps=50)
        return {"probability flow": log_density(self.denoiser, self.denoiser.schedule, x, integrator=integrator).nats}


FAMILIES: tuple[type[Family], ...] = (VAE, Flow, GAN, Diffusion)
"""The families of the comparison, whose default widths make their sizes equal within 5 %."""


@dataclass(frozen=True)
class Likelihood:
    """The mean log-likelihood of held-out points, in nats per point, and its standard error."""

    name: str
    nats: float
    error: float


@dataclass(frozen=True, eq=False)
class Result:
    """What a family reached, and at what cost; MACs are multiply-accumulates in linear layers."""

    name: str
    parameters: int
    steps: int  # of training
    training_macs: int
    samples: Points
    distance: float  # sliced Wasserstein distance of the samples to the truth
    likelihoods: tuple[Likelihood, ...]
    evaluations: int  # of networks in sequence, per sample
    sampling_macs: int  # per sample


def _macs(run: Callable[[], Any]) -> int:
    """The multiply-accumulates of what ``run`` computes, counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def _step(model: Family, optimizers: Mapping[str, torch.optim.Optimizer], seed: int, step: int) -> None:
    """One training step of every part, on new points of the ring."""
    first = step * BATCH
    x = ring().sample(BATCH, random.fold(seed, "training"), first=first)
    for part, optimizer in optimizers.items():
        parameters = list(model.parts()[part].parameters())
        loss = model.loss(part, x, Draws(seed, first, BATCH, BATCH).within(model.name))
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()


def create(family: type[Family], seed: int = 0) -> tuple[Family, int]:
    """A family before its training, and the multiply-accumulates of a training step, forward and backward."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.fold(seed, family.name))
        model = family()
    # a rate of 0: the step is only counted
    still = torch.optim.SGD(model.parameters(), 0.0)
    return model, _macs(lambda: _step(model, dict.fromkeys(model.parts(), still), seed, 0))


def train(model: Family, steps: int, seed: int = 0, progress: Callable[[float], None] | None = None) -> Family:
    """Train a family with Adam, whose learning rate falls from ``RATE`` to 0 by a cosine."""
    optimizers = {name: torch.optim.Adam(part.parameters(), RATE) for name, part in model.parts().items()}
    for step in range(steps):
        for optimizer in optimizers.values():
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        _step(model, optimizers, seed, step)
        if progress is not None and step % 50 == 0:
            progress(step / steps)
    return model.eval()


@torch.no_grad()
def measure(model: Family, steps: int, training_macs: int, seed: int = 0, count: int = SAMPLES) -> Result:
    """The samples, the likelihood and the costs of a trained family."""
    held_out = ring().sample(count, random.fold(seed, "held out"))
    found = model.likelihoods(held_out, seed).items()
    nats = [Likelihood(name, float(n.mean()), float(n.std() / math.sqrt(count))) for name, n in found]
    samples = model.sample(count, random.fold(seed, "samples"))
    parameters, macs = sum(p.numel() for p in model.parameters()), _macs(lambda: model.sample(1, seed))
    distance = sliced_wasserstein(samples, held_out)
    cost = (steps, training_macs, samples, distance, tuple(nats), model.evaluations(), macs)
    return Result(model.name, parameters, *cost)


def floor(seed: int = 0, count: int = SAMPLES, pairs: int = 10) -> float:
    """The mean distance of two sets of true points: what a perfect model would reach."""
    sets = [ring().sample(count, random.fold(seed, f"truth {k}")) for k in range(2 * pairs)]
    found = [sliced_wasserstein(one, other) for one, other in zip(sets[::2], sets[1::2], strict=True)]
    return sum(found) / pairs


def compare(
    seed: int = 0, steps: int | None = None, *, count: int = SAMPLES, progress: Progress | None = None
) -> list[Result]:
    """Train every family and measure it.

    Args:
        seed: decides the weights, the data and the noise; the same seed gives the same numbers.
        steps: training steps of the diffusion model, by default ``STEPS``; the others take as many as the same number
            of multiply-accumulates allows.
        count: points that are generated, and held-out points whose likelihood is measured.
        progress: called with the share of the work that is done and the name of the family at work.
    """
    steps = STEPS if steps is None else steps
    if steps < 1 or count < 2:
        raise InputError(f"A comparison needs at least 1 step and 2 points; got {steps} and {count}.")
    budget, results = steps * create(Diffusion, seed)[1], list[Result]()
    for k, family in enumerate(FAMILIES):
        model, macs = create(family, seed)
        own = max(1, round(budget / macs))

        def tell(share: float, done: int = k, name: str = family.name) -> None:
            if progress is not None:
                progress((done + share) / len(FAMILIES), name)

        tell(0.0)
        train(model, own, seed, tell)
        results.append(measure(model, own, own * macs, seed, count))
        tell(1.0)
    return results
