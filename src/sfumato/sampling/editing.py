"""Editing: steps and grids for inpainting, SDEdit and DDIM inversion, and interpolation of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.gaussian import diffuse, forward_transition
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.sampling.sample import Memory, Predict, Step, sample


def below(levels: Level, start: Level) -> Level:
    """A grid from any noisy level down to the data: that level, then the levels of ``levels`` with less noise."""
    if float(start.sigma) == 0.0:
        raise InputError("Sampling can't start at the data (sigma = 0); start at a level with noise.")
    return Level.cat([start, levels[torch.as_tensor(levels.t) < float(start.t)]])


def resampled(levels: Level, repeats: int, jump: int = 1) -> Level:
    r"""The levels of RePaint (Lugmayr et al. 2022, sec. 4.2): after ``jump`` steps down, back up, repeatedly.

    Every section of ``jump`` steps, except the one that ends at the data, is sampled ``repeats`` times, so that the
    known and the unknown part can adapt to each other. For :func:`~sfumato.sampling.sample.sample` with ``any_order``,
    and :class:`Inpainting`.
    """
    if repeats < 1 or jump < 1:
        raise InputError(f"Resampling needs at least 1 repetition and a jump of 1; got {repeats} and {jump}.")
    last, order = len(levels) - 1, list[int]()
    for i in range(last + 1):
        order.append(i)
        # sections are counted back from the last level with noise
        if jump <= i < last and (last - 1 - i) % jump == 0:
            order += [*range(i - jump, i + 1)] * (repeats - 1)
    return levels[order]


@dataclass(frozen=True, slots=True)
class Inpainting:
    r"""A step that keeps the known part of an image (Lugmayr et al. 2022, eq. 8).

    .. math::
        x_s = m \odot (\alpha_s x^{\text{known}} + \sigma_s \epsilon) + (1 - m) \odot x_s^{\text{step}}

    with fresh noise, and none at the data. A step to a level with more noise is a step of the forward process,
    :math:`x_s \sim q(x_s | x_t)`, after which a multistep solver starts again. The ``image`` and the ``mask``, true
    where the image is known, broadcast to the batch.
    """

    step: Step
    image: Float[Tensor, "..."]
    mask: Bool[Tensor, "..."]

    def __call__(self, denoise: Predict, x: Tensor, t: Level, s: Level, memory: Memory) -> Tensor:
        if s.t > t.t:
            memory.state.clear()
            return forward_transition(x, s, t).sample(memory.noise(x))
        return self.place(self.step(denoise, x, t, s, memory), s, memory)

    def place(self, x: Tensor, level: Level, memory: Memory) -> Tensor:
        """``x`` with its known part replaced by the image, diffused to the level."""
        for name, given in (("mask", self.mask), ("image", self.image)):
            apart = any(n not in (1, m) for n, m in zip(reversed(given.shape), reversed(x.shape), strict=False))
            if given.ndim > x.ndim or apart:
                raise InputError(f"The {name} has shape {tuple(given.shape)}, which does not fit {tuple(x.shape)}.")
        if self.mask.dtype != torch.bool:
            raise InputError(f"The mask must hold booleans, true where the image is kept; got {self.mask.dtype}.")
        image = self.image.to(x).expand_as(x)
        known = image if level.sigma == 0.0 else diffuse(image, level, memory.noise(x))
        return torch.where(self.mask.to(x.device), known, x)


def _step_up(denoise: Predict, x: Tensor, t: Level, s: Level, memory: Memory, *, step: Step) -> Tensor:
    r"""A deterministic step from the data towards the noise, as in DDIM inversion (Song et al. 2021, sec. 4.3).

    A step of the flow is the same in both directions, except at the ends. At the data there is nothing to denoise, so
    the first step uses the noise predicted for :math:`\alpha_s x_0` at its end, which is one fixed-point iteration of
    the inverse of sampling's last step. A step to :math:`\alpha_s = 0` is first order.
    """
    if t.sigma == 0.0:
        if s.alpha == 0.0:
            raise InputError("A grid of one step from the data to pure noise leaves nothing to invert; use more steps.")
        start = x * (s.alpha / t.alpha)
        return start + s.sigma * denoise(start, s).eps
    return denoise(x, t).mix(s.alpha, s.sigma) if s.alpha == 0.0 else step(denoise, x, t, s, memory)


@dataclass(frozen=True, eq=False)
class Inversion:
    """The noise of images at the first level of the grid, their reconstruction from it, and its RMS error."""

    noise: Float[Tensor, "batch *shape"]
    reconstruction: Float[Tensor, "batch *shape"]
    error: Float[Tensor, "batch"]


def _refuse_noise(x: Tensor) -> Tensor:
    raise InputError(
        "DDIM inversion follows the probability flow, but this sampler adds noise; use a deterministic one, such as "
        "ddim with eta 0."
    )


def invert(
    denoiser: Denoise,
    x0: Float[Tensor, "batch *shape"],
    levels: Level,
    step: Step,
    *,
    up: Step | None = None,
    **cond: Tensor,
) -> Inversion:
    """DDIM inversion: follow a grid backwards from images to their noise, and reconstruct the images from it.

    The error of the reconstruction falls with the number of steps, at the order of the deterministic ``step``. ``up``
    handles both ends of the way up itself, such as :func:`~sfumato.sampling.adaptive.adaptive`.
    """

    def constant(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        zero = torch.zeros_like(x)
        return Prediction.of_x0(x, zero, level, variance_fraction=zero)

    # steps that add noise on the way down are rejected first: on the way up their noise has zero variance
    for _ in sample(constant, torch.zeros_like(x0[:1]), levels, step, noise=_refuse_noise):
        pass
    rising, up = levels.map(lambda value: torch.as_tensor(value).flip(0)), up or partial(_step_up, step=step)
    x = noise = x0
    for frame in sample(denoiser, x0, rising, up, noise=_refuse_noise, previews=False, any_order=True, **cond):
        noise = frame.x
    for frame in sample(denoiser, noise, levels, step, noise=_refuse_noise, previews=False, any_order=False, **cond):
        x = frame.x
    return Inversion(noise, x, (x - x0).flatten(1).square().mean(1).sqrt())


def slerp(
    start: Float[Tensor, "*shape"], end: Float[Tensor, "*shape"], fractions: Float[Tensor, "frames"]
) -> Float[Tensor, "frames *shape"]:
    r"""Spherical interpolation of two noises (Shoemake 1985; Song et al. 2021, app. D.5).

    The direction turns at a constant rate along the great circle, :math:`\frac{\sin((1 - f)\theta)}{\sin\theta} a +
    \frac{\sin(f \theta)}{\sin\theta} b`, and the length changes linearly.
    """
    if start.shape != end.shape:
        raise InputError(f"Noises to interpolate must have one shape; got {tuple(start.shape)} and {tuple(end.shape)}.")
    a, b = start.double().flatten(), end.double().flatten()
    lengths = a.norm(), b.norm()
    if float(lengths[0]) == 0.0 or float(lengths[1]) == 0.0:
        raise InputError("A noise that is zero everywhere has no direction to interpolate from.")
    a, b = a / lengths[0], b / lengths[1]
    # from the chord, accurate for small angles where the arc cosine is not
    theta = 2.0 * math.atan2(float((a - b).norm()), float((a + b).norm()))
    if math.pi - theta < 1e-6:
        raise InputError("Noises in opposite directions have no shortest path between them.")
    f = fractions.double().reshape(-1, 1)
    if theta < 1e-6:
        turned = a + f * (b - a)
    else:
        turned = (torch.sin((1.0 - f) * theta) * a + torch.sin(f * theta) * b) / math.sin(theta)
    points = (lengths[0] + f * (lengths[1] - lengths[0])) * turned
    return points.to(start.dtype).reshape(-1, *start.shape)
