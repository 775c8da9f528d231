"""Where images are written: a grid, numbers or single files, and what may be replaced for them.

Nothing is replaced without ``--overwrite``: a name that a person chose and that is taken is refused, one that nobody
chose gets a number.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.flags import Fields, option
from sfumato.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.models.storage import Info

OUT: Fields = {
    "out": option(
        Path | None,
        "A .png for one grid, an .npz for the numbers, or a folder for single images "
        "(default: a grid in the samples of the run, numbered if the name is taken).",
    ),
    "overwrite": option(bool, "Replace existing files: one file, or all numbered images of a folder.", False),
}


def check_free(path: Path | None, overwrite: bool) -> None:
    """Refuse a file that a person named and that is there."""
    if path is not None and path.exists() and not overwrite:
        raise InputError(f"{path} already exists; choose another name, or replace it with --overwrite.")


def free_name(folder: Path, name: str, suffixes: Iterable[str], overwrite: bool, kept: Collection[Path] = ()) -> str:
    """A name that nobody chose, for files with these suffixes: with a number behind it where it is taken.

    Files that are ``kept``, such as those that the same command wrote, are not overwritten either.
    """
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    ends = tuple(suffixes)

    def taken(path: Path) -> bool:
        return path in kept or (not overwrite and path.exists())

    return next(name for name in names if not any(taken(folder / f"{name}{end}") for end in ends))


def out_of(options: Any, name: str) -> Path:
    """Where the images of a command go: as ``--out`` says, or a grid of that name in the samples of the run."""
    folder: Path = options.run / "samples"
    return options.out or folder / f"{free_name(folder, name, ['.png'], options.overwrite)}.png"


def check_out(out: Path | None, count: int, first: int = 0, overwrite: bool = False) -> None:
    """Check, before any work, that images ``first ... first + count - 1`` can be written there.

    Images of other numbers can be added to a folder; other images never are replaced, nor mixed with these.
    """
    if out is None:
        return
    if out.suffix not in ("", ".png", ".npz"):
        raise InputError(f"Images are written as .png, .npz or into a folder; got {out}.")
    if out.suffix or not out.is_dir():
        check_free(out, overwrite)
        return
    numbered, others = _pictures(out)
    if others:
        raise InputError(f"The folder {out} holds other images, such as {others[0]}; choose an empty or a new one.")
    same = numbered & _names(first, count)
    if same and not overwrite:
        left = len(numbered) - len(same)
        rest = f", and {left} others would stay beside the new ones" if left else ""
        raise InputError(
            f"The folder {out} holds {len(numbered)} images, of which {len(same)} would be replaced{rest}; choose "
            "another folder, or replace all of them with --overwrite."
        )


def write_images(
    images: Tensor,
    out: Path,
    first: int = 0,
    given: Tensor | None = None,
    *,
    info: Info | None = None,
    overwrite: bool = False,
    above: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> None:
    """Write images as :data:`OUT` says, a grid with what was ``given`` at its start, and say where.

    The numbers of vectors that were standardized are written in the units of their data, which ``info`` knows; what
    ``facts`` say of how images were made goes into the metadata of PNGs, with the number of each image, and ``more``
    arrays into an .npz. A grid has a column for each of the names that stand ``above``.
    """
    import torch

    from sfumato.io import images as image_files

    beside = ""
    if out.suffix == ".png":
        numbers = None if facts is None else {**facts, "first": first, "count": len(images)}
        image_files.save_grid(images if given is None else torch.cat([given, images]), out, numbers, above)
    elif out.suffix == ".npz":
        image_files.save_array(images if info is None else info.in_units(images), out, **(more or {}))
    else:
        image_files.save_each(images, out, first, facts)
        rest = _pictures(out)[0] - _names(first, len(images))
        for name in rest if overwrite else ():
            (out / name).unlink()
        beside = f", beside {len(rest)} others" if rest and not overwrite else ""
    print(f"{len(images)} images: {out}{beside}")


def _names(first: int, count: int) -> set[str]:
    """As :func:`sfumato.io.images.save_each` names them."""
    return {f"{number:06d}.png" for number in range(first, first + count)}


def _pictures(folder: Path) -> tuple[set[str], list[str]]:
    """The numbered images of a folder, and its other ones."""
    from sfumato.io.reading import suffixes

    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in suffixes())
    numbered = {name for name in names if re.fullmatch(r"\d{6,}\.png", name)}
    return numbered, [name for name in names if name not in numbered]
