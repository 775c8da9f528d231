"""Editing: steps and grids with which the loop paints what is missing, redraws, and finds the noise of an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.gaussian import diffuse, forward_transition
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.sampling.sample import Memory, Step, check_grid, sample, walk


def below(levels: Level, start: Level) -> Level:
    """A grid from any level down to the data: that level, then those of ``levels`` with less noise.

    Raises:
        InputError: if ``levels`` is no grid, or ``start`` is the data.
    """
    check_grid(levels)
    t = float(start.t)
    if t <= 0.0 or float(start.sigma) == 0.0:
        raise InputError("Sampling can't start at the data (sigma = 0); start at a level with noise.")
    kept = torch.as_tensor(levels.t) < t
    pairs = ((start.t, levels.t), (start.alpha, levels.alpha), (start.sigma, levels.sigma))
    return Level(
        *(torch.cat([torch.tensor([float(one)], dtype=torch.float64), torch.as_tensor(m)[kept]]) for one, m in pairs)
    )


def resampled(levels: Level, repeats: int, jump: int = 1) -> Level:
    r"""The levels of RePaint (Lugmayr et al. 2022, sec. 4.2): after ``jump`` steps down, back up, again and again.

    Every stretch of ``jump`` steps but the one that ends at the data is walked down ``repeats`` times, so that the
    known and the unknown part have time to agree. Walk them with :func:`~sfumato.sampling.sample.walk` and
    :class:`Inpainting`, which knows the way up.

    Args:
        levels: a grid.
        repeats: how often each stretch is walked; 1 is the grid itself.
        jump: its length in steps.

    Raises:
        InputError: if ``levels`` is no grid, or a number is below 1.
    """
    check_grid(levels)
    if repeats < 1 or jump < 1:
        raise InputError(f"Resampling needs at least 1 repetition and a jump of 1; got {repeats} and {jump}.")
    last = len(levels) - 1
    order: list[int] = [0]
    for i in range(1, last + 1):
        order.append(i)
        # stretches are counted from the last level with noise
        if i < last and (last - 1 - i) % jump == 0 and i >= jump:
            order += [*range(i - jump, i + 1)] * (repeats - 1)
    return Level(*(torch.as_tensor(value)[order] for value in (levels.t, levels.alpha, levels.sigma)))


@dataclass(frozen=True, slots=True)
class Inpainting:
    r"""A step that puts the known part of an image in place (Lugmayr et al. 2022, eq. 8).

    .. math::
        x_s = m \odot (\alpha_s x^{\text{known}} + \sigma_s \epsilon) + (1 - m) \odot x_s^{\text{step}}

    with fresh noise, and none at the data: what is known comes back exactly. A step to a level with more noise is one
    of the forward process, :math:`x_s \sim q(x_s | x_t)`, after which a multistep solver starts afresh.

    Attributes:
        step: what is done elsewhere, any step.
        image: the known image, of the shape of the batch or of one sample with a batch axis.
        mask: where it is known, of a shape that broadcasts to the batch.
    """

    step: Step
    image: Float[Tensor, "..."]
    mask: Bool[Tensor, "..."]

    def __call__(
        self, denoise: Callable[[Tensor, Level], Prediction], x: Tensor, t: Level, s: Level, memory: Memory
    ) -> Tensor:
        if s.t > t.t:
            memory.state.clear()
            return forward_transition(x, s, t).draw(memory.noise(x))
        return self.place(self.step(denoise, x, t, s, memory), s, memory)

    def place(self, x: Tensor, level: Level, memory: Memory) -> Tensor:
        """``x`` with the known part of the image, diffused to its level.

        Raises:
            InputError: if the mask is not of booleans, or it or the image does not broadcast to ``x``.
        """
        for name, given in (("mask", self.mask), ("image", self.image)):
            apart = any(n not in (1, m) for n, m in zip(reversed(given.shape), reversed(x.shape), strict=False))
            if given.ndim > x.ndim or apart:
                raise InputError(f"The {name} has shape {tuple(given.shape)}, which does not fit {tuple(x.shape)}.")
        if self.mask.dtype != torch.bool:
            raise InputError(f"The mask must hold booleans, true where the image is kept; got {self.mask.dtype}.")
        image = self.image.to(x).expand_as(x)
        known = image if level.sigma == 0.0 else diffuse(image, level, memory.noise(x))
        return torch.where(self.mask.to(x.device), known, x)


@dataclass(frozen=True, slots=True)
class Ascending:
    r"""A deterministic step on its way from the data to the noise (Song et al. 2021, sec. 4.3; "DDIM inversion").

    The probability flow is the same both ways, and so is a step of it. Only its ends differ: at the data there is
    nothing to denoise, so that the first step takes the noise that is seen in :math:`\alpha_s x_0` at its end, one
    fixed-point iteration of the inverse of the last step of sampling; and the step to where nothing of the data is left
    (:math:`\alpha_s = 0`) is first order.

    Attributes:
        step: a step that draws no noise.
    """

    step: Step

    def __call__(
        self, denoise: Callable[[Tensor, Level], Prediction], x: Tensor, t: Level, s: Level, memory: Memory
    ) -> Tensor:
        if t.sigma == 0.0:
            if s.alpha == 0.0:
                raise InputError("A grid of one step from the data to pure noise leaves nothing to invert; take more.")
            start = x * (s.alpha / t.alpha)
            return start + s.sigma * denoise(start, s).eps
        if s.alpha == 0.0:
            return denoise(x, t).mix(s.alpha, s.sigma)
        return self.step(denoise, x, t, s, memory)


@dataclass(frozen=True, eq=False)
class Inversion:
    """The noise that images come from, and the way back.

    Attributes:
        noise: the end of the way from the images to the first level of the grid; samplers that start there draw them.
        reconstruction: what the sampler draws from it.
        error: the root mean square of reconstruction less image, for each.
    """

    noise: Float[Tensor, "batch *shape"]
    reconstruction: Float[Tensor, "batch *shape"]
    error: Float[Tensor, "batch"]


def refuse_noise(x: Tensor) -> Tensor:
    """The source of noise of what must be deterministic.

    Raises:
        InputError: always.
    """
    raise InputError(
        "Inversion follows the probability flow, but this sampler draws noise; take a deterministic one, such as ddim "
        "with eta 0."
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
    """The noise of images, by walking a grid from its end to its start, and what comes of it on the way back.

    The error of the reconstruction falls with the number of steps, at the order of the step.

    Args:
        denoiser: any denoiser.
        x0: the images.
        levels: a grid for sampling.
        step: a deterministic step.
        up: a step that knows both ends of the way up, such as :func:`~sfumato.sampling.adaptive.adaptive`; by default
            ``step``, :class:`Ascending`.
        cond: conditions, the same both ways.

    Raises:
        InputError: if the grid does not go down to the data, or a step of it draws noise.
    """
    check_grid(levels)
    _check_deterministic(x0, levels, step)
    rising = Level(*(torch.as_tensor(value).flip(0) for value in (levels.t, levels.alpha, levels.sigma)))
    noise = x0
    for frame in walk(
        denoiser, x0, rising, up or Ascending(step), noise=refuse_noise, previews=False, reuse=False, **cond
    ):
        noise = frame.x
    x = noise
    for frame in sample(denoiser, x, levels, step, noise=refuse_noise, previews=False, reuse=False, **cond):
        x = frame.x
    return Inversion(noise, x, (x - x0).flatten(1).square().mean(1).sqrt())


def _check_deterministic(x0: Tensor, levels: Level, step: Step) -> None:
    """Refuse a step that draws noise, anywhere on the way down: up there is no variance to draw it with."""

    def nothing(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        zero = torch.zeros_like(x)
        return Prediction.of_x0(x, zero, level, variance_fraction=zero)

    for _ in sample(nothing, torch.zeros_like(x0[:1]), levels, step, noise=refuse_noise):
        pass


def slerp(
    start: Float[Tensor, "*shape"], end: Float[Tensor, "*shape"], fractions: Float[Tensor, "frames"]
) -> Float[Tensor, "frames *shape"]:
    r"""Spherical interpolation of two noises (Shoemake 1985; Song et al. 2021, app. D.5).

    Directions turn at a constant rate along the great circle, :math:`\frac{\sin((1 - f)\theta)}{\sin\theta} a +
    \frac{\sin(f \theta)}{\sin\theta} b`, and lengths go linearly from one to the other. Between two draws of the prior,
    every point has the length of a draw, which a straight line would cut short.

    Args:
        start: at 0.
        end: at 1.
        fractions: where between them.

    Raises:
        InputError: if the two differ in shape, or point in opposite directions or one in none.
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
        raise InputError("Noises in opposite directions have no shortest way between them.")
    f = fractions.double().reshape(-1, 1)
    if theta < 1e-6:
        turned = a + f * (b - a)
    else:
        turned = (torch.sin((1.0 - f) * theta) * a + torch.sin(f * theta) * b) / math.sin(theta)
    points = (lengths[0] + f * (lengths[1] - lengths[0])) * turned
    return points.to(start.dtype).reshape(-1, *start.shape)
