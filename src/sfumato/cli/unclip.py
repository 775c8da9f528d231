"""``sfumato vary``, ``blend`` and ``edit-text``: what unCLIP does with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato import pretrained
from sfumato.cli import flags
from sfumato.cli.commands import DEVICE, TRUST, load_model
from sfumato.cli.flags import Fields, option, options_of
from sfumato.cli.output import check_free, free_name
from sfumato.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.models.unclip import Unclip

_FUNCTIONS = "sfumato.models.unclip"
_HEIGHT = 128
"""The least height of a picture in a grid, to which small ones are enlarged."""
_SHARED: Fields = {
    **options_of(f"{_FUNCTIONS}:vary", "steps"),
    "fit": option(bool, "Scale, crop and recolour pictures to what the model makes.", False),
    "out": option(
        Path | None, "A .png for a labelled grid (default: beside the picture, numbered if the name is taken)."
    ),
    "overwrite": option(bool, "Replace existing files.", False),
    "device": DEVICE,
    "trust": TRUST,
}
_MODEL = option(
    Path | None,
    "An unCLIP system, made by sfumato train --system unclip (default: the one for shapes that comes with sfumato).",
)


def vary(arguments: list[str]) -> int:
    fields: Fields = {
        "picture": option(Path, "A picture.", ..., positional="PICTURE"),
        "model": _MODEL,
        **options_of(f"{_FUNCTIONS}:vary", "count", "seed"),
        "eta": option(
            tuple[float, ...], "How much the picture varies: 0 reproduces it, 1 varies most; one row per value.", (1.0,)
        ),
        **_SHARED,
    }
    text = "Variations of a picture: what its embedding says stays, and the rest changes. The grid shows it first."
    options, model = _start("vary", arguments, fields, text)
    from sfumato.models.unclip import decode, encode

    (picture,) = _read(options, model, [options.picture])
    if options.count < 1:
        raise InputError(f"There is at least one variation; --count is {options.count}.")
    if not options.eta or not all(0.0 <= eta <= 1.0 for eta in options.eta):
        raise InputError(f"--eta is numbers from 0 to 1; got {' '.join(map('{:g}'.format, options.eta)) or 'none'}.")
    out = _out(options, f"{options.picture.stem}-varied", options.picture.parent)
    encoded = encode(model, picture[None], steps=options.steps).rows([0] * options.count)
    etas = [decode(model, encoded, eta=eta, seed=options.seed, steps=options.steps) for eta in options.eta]
    rows = [(f"eta {eta:g}", [picture, *images]) for eta, images in zip(options.eta, etas, strict=True)]
    _write(out, rows, ["picture", *(f"{k + 1}" for k in range(options.count))], model, options)
    return 0


def blend(arguments: list[str]) -> int:
    fields: Fields = {
        "pictures": option(tuple[Path, ...], "Two pictures.", (), positional="PICTURE"),
        "model": _MODEL,
        **options_of(f"{_FUNCTIONS}:blend", "count"),
        "film": option(Path | None, "Also write an animation there and back, .gif or .webp."),
        **_SHARED,
    }
    options, model = _start("blend", arguments, fields, "Blend one picture into another, step by step.")
    from sfumato.io import images as image_files
    from sfumato.models.unclip import blend as blended

    if len(options.pictures) != 2:
        raise InputError(f"A blend is between two pictures; got {len(options.pictures)}. See sfumato blend --help.")
    check_free(options.film, options.overwrite)
    if options.film is not None and options.film.suffix.lower() not in image_files.ANIMATIONS:
        raise InputError(f"A film is written as {' or '.join(image_files.ANIMATIONS)}; got {options.film}.")
    first, second = options.pictures
    pictures = _read(options, model, options.pictures)
    out = _out(options, f"{first.stem}-{second.stem}", first.parent)
    images = blended(model, pictures, options.count, steps=options.steps)
    above = [f"{k / (options.count - 1):.2g}" for k in range(options.count)]
    _write(out, [(f"{first.stem} to {second.stem}", list(images))], above, model, options)
    if options.film is not None:
        frames = [image_files.grid(image[None], 1, 2 * _HEIGHT) for image in (*images, *images[1:-1].flip(0))]
        image_files.save_animation(frames, options.film)
        print(f"{len(frames)} frames: {options.film}")
    return 0


def edit_text(arguments: list[str]) -> int:
    fields: Fields = {
        "words": option(
            tuple[str, ...],
            "A picture, a caption of what it shows, and a caption of what it should show.",
            (),
            positional="WORD",
        ),
        "model": _MODEL,
        "strengths": option(tuple[float, ...], "Strength of the edit, from 0 to 1; one picture per value.", (0.5, 1.0)),
        **options_of(f"{_FUNCTIONS}:edit_text", "by"),
        **_SHARED,
    }
    text = 'Change a picture from one caption to another:\n\n  sfumato edit-text PICTURE "a red circle" "a blue circle"'
    options, model = _start("edit-text", arguments, fields, text)
    from sfumato.models.unclip import edit_text as edited

    if len(options.words) != 3:
        raise InputError(
            f"Name a picture, and two texts in quotes; got {len(options.words)} words. Such as: sfumato edit-text "
            'PICTURE "a red circle" "a blue circle"'
        )
    path, before, after = Path(options.words[0]), *options.words[1:]
    (picture,) = _read(options, model, [path])
    out = _out(options, f"{path.stem}-edited", path.parent)
    images = edited(model, picture, before, after, options.strengths, by=options.by, steps=options.steps)
    above = ["picture", *(f"{strength:g}" for strength in options.strengths)]
    _write(out, [(f"{before} → {after}", [picture, *images])], above, model, options)
    return 0


def _start(name: str, arguments: list[str], fields: Fields, text: str) -> tuple[Any, Unclip]:
    """The options, and the system."""
    options = flags.parse(fields, arguments, prog=f"sfumato {name}", description=text)
    from sfumato.models.unclip import Unclip

    run = options.model or pretrained.path("unclip")
    if options.model is None:
        print(f"model: {pretrained.SAID['unclip']} ({run / 'card.md'})")
    model = load_model(options, run=run)
    if not isinstance(model, Unclip):
        raise InputError(f"{run} is no system of unCLIP; train one with: sfumato train --system unclip")
    return options, model


def _read(options: Any, model: Unclip, paths: Sequence[Path]) -> Tensor:
    """The pictures, as the system makes them."""
    import torch

    from sfumato.io import images as image_files

    return torch.stack([image_files.read(path, tuple(model.info.shape), fit=options.fit) for path in paths])


def _out(options: Any, name: str, folder: Path) -> Path:
    """Where the grid goes; what can't be written is refused before any work."""
    if options.out is None:
        return folder / f"{free_name(folder, name, ['.png'], options.overwrite)}.png"
    if options.out.suffix.lower() != ".png":
        raise InputError(f"The grid is written as .png; got {options.out}.")
    check_free(options.out, options.overwrite)
    return options.out


def _write(out: Path, rows: Sequence[tuple[str, list[Tensor]]], above: list[str], model: Unclip, options: Any) -> None:
    """Rows of pictures, each with its label, and a name above each column."""
    import torch

    from sfumato.io import images as image_files
    from sfumato.io.lettering import captioned

    sheets = [image_files.grid(torch.stack(images), len(images), _HEIGHT) for _, images in rows]
    said = ("steps", "seed", "eta", "strengths", "by", "words", "count")
    facts = {name: getattr(options, name) for name in said if hasattr(options, name)}
    image_files.save_png(
        captioned(sheets, [label for label, _ in rows], above), out, {"model": str(model.run), **facts}
    )
    print(f"{sum(len(images) for _, images in rows)} pictures: {out}")
