"""DALL-E 2 (unCLIP; Ramesh et al. 2022): a prior, a decoder and up-samplers; variations, blends and text edits.

A picture is what its embedding says, and the noise that the decoder makes it of with that embedding, by DDIM inversion
(sec. 3). Both together give the picture back; either can be changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sfumato.conditioning.contrast import IMAGE
from sfumato.conditioning.low_resolution import LowResolution
from sfumato.config import SamplingConfig, parse
from sfumato.diffusion.denoiser import Denoiser
from sfumato.errors import InputError, check_arguments, shown
from sfumato.io.progress import Progress, progress_bar
from sfumato.models.batch import SamplingBatch, collected
from sfumato.models.cascade import Cascade
from sfumato.models.edit import invert
from sfumato.models.embeddings import as_seen, contrast_of, embed_captions, embed_images
from sfumato.models.model import Model
from sfumato.models.prior import Prior
from sfumato.sampling.editing import slerp
from sfumato.sampling.sample import initial

STEPS = 50
"""Steps of inversion and of sampling again, of each stage."""


class Unclip(Cascade):
    """A :class:`Cascade` of a prior, a decoder and up-samplers, with the model whose embeddings they share.

    Args:
        stages: the models by name: the prior, the decoder, and up-samplers if there are any.
        embedder: the contrastive model that prior and decoder were trained with.
        run: the folder of the system.
    """

    def __init__(self, stages: Mapping[str, Model], embedder: Model, *, run: Path | None = None) -> None:
        contrast_of(embedder)
        names = list(stages)
        first = stages[names[0]] if names else None
        if first is None or len(first.info.shape) != 1:
            raise InputError(f"The first stage of unCLIP is a prior of embeddings; got {', '.join(names) or 'none'}.")
        prior = first if isinstance(first, Prior) else Prior(first, embedder)
        super().__init__({**stages, names[0]: prior}, run=run)
        self.embedder, self.prior = embedder, prior
        self.painters = {name: stages[name] for name in names[1:]}
        decoder = self.painters[names[1]]
        self.embedding = next(n for n, c in decoder.conditions.items() if c.columns == (IMAGE,))

    def to(self, device: str | torch.device) -> Model:
        """Move the weights of all stages to a device, also those of the model of the embeddings."""
        self.embedder.to(device)
        return super().to(device)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Pictures as unCLIP has them.

    Attributes:
        embedding: of unit length, ``(N, features)``.
        noise: what each stage makes them of, by its name, ``(N, C, *space)``.
    """

    embedding: Float[Tensor, "batch features"]
    noise: Mapping[str, Tensor]

    def rows(self, index: Any) -> Encoded:
        """Those of these pictures."""
        return Encoded(self.embedding[index], {name: noise[index] for name, noise in self.noise.items()})


def encode(
    model: Unclip, pictures: Float[Tensor, "batch channels *space"], *, steps: int = STEPS, progress: Progress = None
) -> Encoded:
    """The embeddings of pictures, and the noise that each stage makes them of, by DDIM inversion.

    Args:
        model: the system.
        pictures: ``(N, C, *space)`` in [-1, 1], of the size of the last stage.
        steps: of the inversion of each stage.
        progress: as for :meth:`Model.sample`.
    """
    check_arguments(encode, locals())
    _require_unclip(model)
    shape, pictures = tuple(model.info.shape), _tensor(pictures)
    if pictures.ndim != len(shape) + 1 or tuple(pictures.shape[1:]) != shape:
        raise InputError(
            f"The pictures have shape {tuple(pictures.shape)}; expected (N, {', '.join(map(str, shape))})."
        )
    names = list(model.painters)
    images = {names[-1]: pictures}
    for before, name in zip(names[-2::-1], names[:0:-1], strict=True):
        images[before] = _low(model.painters[name])[1].of(images[name], {})
    embedding = embed_images(model.embedder, as_seen(model.embedder, pictures))
    noise: dict[str, Tensor] = {}
    with progress_bar("inverting", len(names), progress) as advance:
        for number, name in enumerate(names, 1):
            stage = model.painters[name]
            given = _given(model, name, embedding, images[names[number - 2]] if number > 1 else None)
            found = invert(stage, images[name], progress=False, sampling=_how(stage, steps, 0.0), **given).noise
            noise[name] = found - _base(stage, found, steps, given)
            advance(number)
    return Encoded(embedding, noise)


def decode(
    model: Unclip,
    encoded: Encoded,
    *,
    eta: float = 0.0,
    seed: int = 0,
    steps: int = STEPS,
    progress: Progress = None,
) -> Float[Tensor, "batch channels *space"]:
    """The pictures of embeddings and noises; with ``eta`` 0 those that were encoded.

    Args:
        model: the system.
        encoded: embeddings and noises.
        eta: how much noise DDIM adds in each step, from 0 to 1: what the embedding does not say varies then.
        seed: of that noise.
        steps: of each stage.
        progress: as for :meth:`Model.sample`.
    """
    check_arguments(decode, locals())
    _require_unclip(model)
    features, wanted = encoded.embedding.shape[-1], model.prior.info.shape[0]
    if features != wanted or list(encoded.noise) != list(model.painters):
        raise InputError(
            f"These are embeddings of {features} numbers with noise of {', '.join(encoded.noise)}; this system has "
            f"{wanted} numbers and the stages {', '.join(model.painters)}."
        )
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"eta lies from 0, which gives a picture back, to 1; got {eta:g}.")
    images: Tensor | None = None
    count = len(encoded.embedding)
    with progress_bar("decoding", len(model.painters), progress) as advance:
        for number, (name, stage) in enumerate(model.painters.items(), 1):
            given = _given(model, name, encoded.embedding, images)
            noise = encoded.noise[name] + _base(stage, encoded.noise[name], steps, given)

            def edit(batch: SamplingBatch, noise: Tensor = noise) -> SamplingBatch:
                return dataclasses.replace(batch, x=noise[batch.start : batch.start + len(batch)].to(batch.x))

            batches = stage.batches(count, stepwise=True, seed=seed, sampling=_how(stage, steps, eta), **given)
            images = collected(batches, edit, count, False)
            advance(number)
    assert images is not None
    return images


def vary(
    model: Unclip,
    picture: Float[Tensor, "channels *space"],
    count: int = 8,
    *,
    eta: float = 1.0,
    seed: int = 0,
    steps: int = STEPS,
    progress: Progress = None,
) -> Float[Tensor, "count channels *space"]:
    """Variations of a picture: what its embedding says stays, and the rest changes with ``eta`` (sec. 3.1).

    Args:
        model: the system.
        picture: ``(C, *space)`` in [-1, 1].
        count: the number of variations.
        eta: from 0, which reproduces the picture, to 1.
        seed: the seed of the noise; each variation has its own.
        steps: steps of inversion and of sampling.
        progress: as for :meth:`Model.sample`.
    """
    check_arguments(vary, locals())
    if count < 1:
        raise InputError(f"There is at least one variation; count is {count}.")
    encoded = encode(model, _tensor(picture)[None], steps=steps, progress=progress)
    return decode(model, encoded.rows([0] * count), eta=eta, seed=seed, steps=steps, progress=progress)


def blend(
    model: Unclip,
    pictures: Float[Tensor, "2 channels *space"],
    count: int = 9,
    *,
    steps: int = STEPS,
    progress: Progress = None,
) -> Float[Tensor, "count channels *space"]:
    """Pictures on the way from one to another: embeddings and noises on the arcs between theirs (sec. 3.2).

    Between the ends up-samplers have fresh noise: theirs fits only the pictures that it was found for.

    Args:
        model: the system.
        pictures: the two, ``(2, C, *space)`` in [-1, 1]; the first and the last result are these again.
        count: the number of pictures, at least 3.
        steps, progress: as for :func:`vary`.
    """
    check_arguments(blend, locals())
    pictures = _tensor(pictures)
    if len(pictures) != 2 or torch.equal(pictures[0], pictures[1]):
        raise InputError(
            "A blend is between two different pictures; got "
            + ("the same twice." if len(pictures) == 2 else f"{len(pictures)}.")
        )
    if count < 3:
        raise InputError(f"A blend has at least 3 pictures, its ends and one between them; got {count}.")
    encoded = encode(model, pictures, steps=steps, progress=progress)
    fractions = torch.linspace(0.0, 1.0, count)
    way = Encoded(
        slerp(encoded.embedding[0], encoded.embedding[1], fractions),
        {name: slerp(noise[0], noise[1], fractions) for name, noise in encoded.noise.items()},
    )
    return decode(model, _with_fresh_details(model, way, slice(1, -1)), steps=steps, progress=progress)


def edit_text(
    model: Unclip,
    picture: Float[Tensor, "channels *space"],
    before: str,
    after: str,
    strengths: Sequence[float] = (0.5, 1.0),
    *,
    by: Literal["prior", "captions"] = "prior",
    steps: int = STEPS,
    progress: Progress = None,
) -> Float[Tensor, "strengths channels *space"]:
    r"""A picture changed as one caption differs from another (text difference, sec. 3.3).

    By the ``prior``, its embedding :math:`z` becomes that of the direction :math:`z + s\, (z_b - z_a)`, with a strength
    :math:`s` and the embeddings that the prior samples from both captions with the same noise. By the ``captions``, as
    in the paper, it is turned by the part :math:`s` of the angle towards the direction :math:`z_b - z_a` of their own
    embeddings; those of small contrastive models lie far from any of an image. The decoder's noise stays, that of
    up-samplers is fresh.

    Args:
        model: the system.
        picture: ``(C, *space)`` in [-1, 1].
        before: what it shows, such as "a red circle".
        after: what it is to show, such as "a blue circle".
        strengths: how far, from 0 to 1; one result for each.
        by: which embeddings give the direction of the edit.
        steps, progress: as for :func:`vary`.
    """
    check_arguments(edit_text, locals())
    _require_unclip(model)
    if before.split() == after.split():
        raise InputError(f"The texts of an edit say what is different, and both are {before!r}.")
    if not strengths or not all(0.0 <= strength <= 1.0 for strength in strengths):
        raise InputError(f"The strengths of an edit lie from 0 to 1; got {', '.join(map(str, strengths)) or 'none'}.")
    first, second = embed_captions(model.embedder, [before, after])
    if torch.equal(first, second):
        raise InputError(f"The captions {before!r} and {after!r} are the same to {model.embedder.run}.")
    if by not in ("prior", "captions"):
        raise InputError(f"A text edit is by the prior or by the captions; got {shown(by)}.")
    encoded = encode(model, _tensor(picture)[None], steps=steps, progress=progress)
    z, parts = encoded.embedding[0], torch.tensor(list(strengths))
    if by == "prior":
        each = [model.prior.sample(1, text=text, seed=0, progress=False) for text in (before, after)]
        first, second = (functional.normalize(model.prior.info.in_units(one), dim=1)[0] for one in each)
        changed = functional.normalize(z + parts[:, None] * (second - first), dim=1)
    else:
        changed = slerp(z, functional.normalize(second - first, dim=0), parts)
    way = dataclasses.replace(encoded.rows([0] * len(strengths)), embedding=changed)
    return decode(model, _with_fresh_details(model, way, parts > 0.0), steps=steps, progress=progress)


def _with_fresh_details(model: Unclip, encoded: Encoded, rows: Any) -> Encoded:
    """The same with other noise of up-samplers in these rows, all alike."""
    _, *later = model.painters
    noise = dict(encoded.noise)
    for name in later:
        stage = model.painters[name]
        levels = stage.sampler(_how(stage, 2, 0.0))[1]
        noise[name] = noise[name].clone()
        noise[name][rows] = initial(levels, stage.info.shape, 0)[0]
    return Encoded(encoded.embedding, noise)


def _require_unclip(model: Any) -> None:
    if not isinstance(model, Unclip):
        raise InputError(
            f"This is done by a system of unCLIP, and not by a {type(model).__name__}; train one with: sfumato train "
            "--system unclip"
        )


def _tensor(pictures: Any) -> Tensor:
    """Pictures as a float32 tensor; a list of them one after the other."""
    try:
        many = isinstance(pictures, list | tuple)
        return (torch.stack([torch.as_tensor(one) for one in pictures]) if many else torch.as_tensor(pictures)).float()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"Pictures are tensors or arrays of one shape; got {shown(pictures)}.") from None


def _how(stage: Model, steps: int, eta: float) -> SamplingConfig:
    """How a stage is sampled: by DDIM, without all that no picture comes back by, such as guidance."""
    noisy = any(isinstance(c, LowResolution) and c.noise for c in stage.conditions.values())
    settings = {
        "sampler": {"kind": "ddim", "eta": eta},
        "steps": steps,
        "clip": False,
        "input_noise": 0.0 if noisy else None,
        "precision": "fp32",
        "batch_size": stage.config.sampling.batch_size,
    }
    return parse(SamplingConfig, settings)


def _given(model: Unclip, name: str, embedding: Tensor, low: Tensor | None) -> dict[str, Any]:
    """The conditions of a stage: the embedding or the picture before, and no caption."""
    stage = model.painters[name]
    given: dict[str, Any] = {n: None for n, c in stage.conditions.items() if c.columns and c.optional}
    if low is None:
        return {**given, model.embedding: embedding}
    link, _ = _low(stage)
    return {**given, link: low}


def _base(stage: Model, noise: Tensor, steps: int, given: Mapping[str, Any]) -> Tensor:
    """What a stage that models a residual adds to its noise at the start; zero for others."""
    if not isinstance(stage.denoiser, Denoiser) or stage.denoiser.base is None:
        return torch.zeros_like(noise)
    how = _how(stage, steps, 0.0)
    (batch,) = stage.batches(len(noise), stepwise=True, batch_size=len(noise), sampling=how, **given)
    zero = torch.zeros_like(batch.x)
    return stage.denoiser.start(zero, batch.levels[0], **batch.cond).cpu()


def _low(stage: Model) -> tuple[str, LowResolution]:
    """The low-resolution condition of an up-sampler."""
    ((name, condition),) = ((n, c) for n, c in stage.conditions.items() if isinstance(c, LowResolution))
    return name, condition
