"""What a system of unCLIP on shapes does with pictures, read by the parser: reconstructions, variations, blends, edits.

- Decoded embeddings: whole captions that are right, of pictures decoded from their own embeddings, from those that the
  prior samples, from its mean (regression), and from the embedding of the caption in the place of that of the image;
  each without a caption, and with it.
- Reconstructions: PSNR of pictures after inversion and sampling again, with eta 0.
- Variations: what they keep of the facts of their picture, and how far things move, by eta.
- Blends: which facts pictures on the way share with either end.
- Text edits: whether the fact that was asked for changes and the others stay, by strength, of pictures of one thing.

    OMP_NUM_THREADS=1 python benchmarks/unclip.py runs/unclip --count 100
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import sfumato
from sfumato.config import GuidanceConfig
from sfumato.data.dataset import as_tensor
from sfumato.data.shapes import COLOURS, SHAPES, Facts, Parsed, agreement, facts_of, parse, scene
from sfumato.data.shapes.facts import SIZES, Thing, held_out_pairs
from sfumato.errors import InputError
from sfumato.metrics.estimate import wilson
from sfumato.models.embeddings import as_seen, embed_captions, embed_images
from sfumato.models.unclip import Unclip, blend, decode, edit_text, encode

BY: tuple[Literal["prior", "captions"], ...] = ("prior", "captions")
PARTS = ("decoded", "reconstructed", "varied", "blended", "edited")


def scenes(count: int, things: int | None = None, split: str = "seen", size: int = 64) -> tuple[list[str], Tensor]:
    """Captions that state everything, of scenes that no training has, and their pictures."""
    every = (scene(index, seed=77, split=split, things=things) for index in itertools.count())
    whole = itertools.islice((one for one in every if facts_of(one.caption).count == one.facts.count), count)
    chosen = list(whole)
    return [one.caption for one in chosen], torch.stack([as_tensor(one.draw(size)) for one in chosen])


def percent(right: Sequence[bool]) -> str:
    low, high = wilson(sum(right), len(right))
    return f"{100 * sum(right) / max(len(right), 1):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    found = Table(*columns, title=title)
    for row in rows:
        found.add_row(*row)
    Console(width=140).print(found)


def painted(model: Unclip, embedding: Tensor, captions: Sequence[str] | None, seed: int) -> Tensor:
    """Pictures of embeddings, by the decoder and the stages behind it, sampled as they are by themselves."""
    images: Tensor | None = None
    count = len(embedding)
    for name, stage in model.painters.items():
        more: dict[str, Any] = {"seed": sfumato.random.fold(seed, name), "progress": False}
        more |= {"text": None if captions is None else list(captions)} if "text" in stage.conditions else {}
        given = {model.embedding: embedding} if images is None else {"low_resolution": images}
        images = stage.sample(count, **given, **more)
    assert images is not None
    return images


def decoded(model: Unclip, count: int, seed: int) -> None:
    rows: list[list[str]] = []
    for things in (1, 2):
        captions, pictures = scenes(count, things)
        prior = model.prior
        told = {"its own": embed_images(model.embedder, as_seen(model.embedder, pictures))}
        told["sampled"] = prior.info.in_units(prior.sample(count, text=captions, seed=seed, progress=False))
        alone = prior.config.sampling.model_copy(update={"guidance": GuidanceConfig(), "candidates": 1})
        found = [
            batch.denoise(batch.x, batch.levels[0], **batch.cond).x0
            for batch in prior.batches(count, text=captions, seed=seed, sampling=alone)
        ]
        told["the mean"] = functional.normalize(prior.info.in_units(torch.cat(found)), dim=1)
        told["the caption's"] = embed_captions(model.embedder, captions)
        for name, embedding in told.items():
            row = [str(things), name]
            for said in (None, captions):
                images = painted(model, embedding, said, seed)
                row.append(percent([agreement(c, x).whole for c, x in zip(captions, images, strict=True)]))
            own = functional.normalize(told["its own"], dim=1)
            row.append(f"{(functional.normalize(embedding, dim=1) * own).sum(1).mean().item():.3f}")
            rows.append(row)
    columns = ("things", "embedding", "whole, without caption", "whole, with caption", "cosine with its own")
    table("decoded embeddings, %", columns, rows)


def reconstructed(model: Unclip, count: int, seed: int) -> None:
    _, pictures = scenes(count)
    rows: list[list[str]] = []
    for steps in (10, 25, 50, 100):
        again = decode(model, encode(model, pictures, steps=steps, progress=False), steps=steps, progress=False)
        psnr = -10.0 * ((again - pictures).square().flatten(1).mean(1) / 4.0).log10()
        kept = [same(parse(a).facts, parse(b).facts) for a, b in zip(pictures, again, strict=True)]
        rows.append([str(steps), f"{psnr.mean():.1f}", f"{psnr.quantile(0.05):.1f}", percent(kept)])
    table("reconstructions", ("steps", "PSNR, mean", "PSNR, 5 %", "same facts, %"), rows)


def same(one: Facts | None, other: Facts | None) -> bool:
    return one is not None and other is not None and agreement(one, Parsed(other)).whole


def varied(model: Unclip, count: int, seed: int) -> None:
    rows: list[list[str]] = []
    for number, eta in itertools.product((1, 2), (0.0, 0.25, 0.5, 0.75, 1.0)):
        _, pictures = scenes(count, number)
        before = [parse(picture) for picture in pictures]
        images = decode(model, encode(model, pictures, progress=False), eta=eta, seed=seed, progress=False)
        kinds: dict[str, tuple[int, int]] = {"shape": (0, 0), "colour": (0, 0), "size": (0, 0)}
        whole, moved = list[bool](), list[float]()
        for one, image in zip(before, images, strict=True):
            assert one.facts is not None
            after = parse(image)
            found = agreement(Facts(one.facts.things), after)
            whole.append(found.whole)
            for kind in kinds:
                kinds[kind] = (kinds[kind][0] + found.right[kind], kinds[kind][1] + found.said[kind])
            if len(after.placed) == len(one.placed):
                pairs = zip(one.placed, after.placed, strict=True)
                moved += [((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 for a, b in pairs]
        difference = (images - pictures).square().mean().sqrt()
        shares = [f"{100 * right / max(said, 1):.1f}" for right, said in kinds.values()]
        moves = f"{sum(moved) / len(moved):.2f}" if moved else "-"
        rows.append([str(number), f"{eta:g}", percent(whole), *shares, moves, f"{difference:.3f}"])
    columns = ("things", "eta", "all kept, %", "shapes", "colours", "sizes", "moved, pixels of 32", "RMS difference")
    table("variations", columns, rows)


def blended(model: Unclip, count: int, seed: int) -> None:
    _, pictures = scenes(2 * count, 1)
    steps = 9
    ends = [parse(picture).facts for picture in pictures]
    rows: list[list[str]] = []
    shown: list[list[Facts | None]] = [[] for _ in range(steps)]
    for k in range(count):
        images = blend(model, pictures[2 * k : 2 * k + 2], steps, progress=False)
        for place, image in enumerate(images):
            shown[place].append(parse(image).facts)
    for place, facts in enumerate(shown):
        row = [f"{place / (steps - 1):.3g}", percent([one is not None for one in facts])]
        for side in (0, 1):
            row.append(percent([same(ends[2 * k + side], one) for k, one in enumerate(facts)]))
        seen = [one for one in facts if one is not None]
        row.append(percent([len(one.things) == 1 for one in seen]) if seen else "-")
        rows.append(row)
    table("blends", ("way", "parsed, %", "all of the first, %", "all of the second, %", "one thing, of parsed"), rows)


def edited(model: Unclip, count: int, seed: int) -> None:
    strengths = (0.25, 0.5, 0.75, 1.0)
    captions, pictures = scenes(count, 1)
    words = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
    rows: list[list[str]] = []
    for by, (kind, known) in itertools.product(BY, words.items()):
        changed: list[list[bool]] = [[] for _ in strengths]
        kept: list[list[bool]] = [[] for _ in strengths]
        for number, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
            thing = facts_of(caption).things[0]
            others = [replace(thing, **{kind: word}) for word in known if word != getattr(thing, kind)]
            others = [other for other in others if not held_out_pairs(Facts((other,)))]
            if not others:
                continue
            wanted = others[number % len(others)]
            images = edit_text(model, picture, said(thing), said(wanted), strengths, by=by, progress=False)
            for place, image in enumerate(images):
                facts = parse(image).facts
                one = facts.things[0] if facts is not None and len(facts.things) == 1 else None
                changed[place].append(one is not None and getattr(one, kind) == getattr(wanted, kind))
                rest = [name for name in words if name != kind]
                kept[place].append(one is not None and all(getattr(one, n) == getattr(wanted, n) for n in rest))
        for strength, asked, stayed in zip(strengths, changed, kept, strict=True):
            both = [a and b for a, b in zip(asked, stayed, strict=True)]
            rows.append([by, kind, f"{strength:g}", percent(asked), percent(stayed), percent(both)])
    table("text edits of one thing, %", ("by", "fact", "strength", "changed", "others kept", "both"), rows)


def said(thing: Thing) -> str:
    return f"a {thing.size} {thing.colour} {thing.shape}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--count", type=int, default=100, help="pictures of each part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = sfumato.load(options.system)
    if not isinstance(model, Unclip):
        raise InputError(f"{options.system} is no system of unCLIP.")
    parts = {"decoded": decoded, "reconstructed": reconstructed, "varied": varied, "blended": blended, "edited": edited}
    for name in options.parts:
        parts[name](model, options.count, options.seed)


if __name__ == "__main__":
    main()
