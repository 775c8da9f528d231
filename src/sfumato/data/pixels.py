"""Size and channels of one image, or of an array of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sfumato.data.dataset import Dataset
from sfumato.data.options import CHANNELS, Options
from sfumato.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
else:
    Picture = object  # Pillow is imported only where there are pixels to change

Array = npt.NDArray[Any]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)[:, None, None]  # ITU-R BT.601


def fit(picture: Picture, size: tuple[int, int], crop: str) -> Picture:
    """The picture at exactly ``size = (H, W)``, by antialiased bicubic interpolation.

    ``crop="center"`` scales it until it just covers the size and cuts the longer side equally at both ends (a pure cut,
    exact to the bit, where no scaling is needed); ``crop="none"`` keeps all of it and stretches.
    """
    from PIL import Image

    height, width = size
    scale = max(height / picture.height, width / picture.width)
    if crop == "none" or picture.size == (width, height):
        return picture.resize((width, height), Image.Resampling.BICUBIC)
    if scale == 1.0:
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))
    # Resizing from a box of the source makes one pass, and centres the cut to a fraction of a pixel.
    across, down = min(width / scale, picture.width), min(height / scale, picture.height)
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    box = (left, top, min(left + across, picture.width), min(top + down, picture.height))
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box)


def to_array(picture: Picture) -> npt.NDArray[np.uint8]:
    """``(C, H, W)`` uint8 of a picture in mode L, RGB or RGBA."""
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def to_channels(image: Array, wanted: str) -> Array:
    """A ``(C, H, W)`` image, uint8 or float in [-1, 1], as grey, rgb or rgba.

    Colour becomes grey by the luma of ITU-R BT.601; transparent pixels are laid over white, as a browser shows them;
    what has no alpha becomes opaque.

    Raises:
        InputError: if the image has not 1, 3 or 4 channels.
    """
    count = image.shape[0]
    if count == CHANNELS[wanted]:
        return image
    if count not in CHANNELS.values():
        raise InputError(f"channels={wanted!r} needs images of 1, 3 or 4 channels; these have {count}.")
    white = 255.0 if image.dtype == np.uint8 else 1.0
    if wanted != "rgba":
        values = image.astype(np.float32)
        if count == 4:
            opacity = values[3] / 255.0 if image.dtype == np.uint8 else (values[3] + 1.0) / 2.0
            values = values[:3] * opacity + white * (1.0 - opacity)
        if wanted == "grey":
            values = (values * _LUMA).sum(axis=0, keepdims=True)
        elif count == 1:
            values = np.repeat(values, 3, axis=0)
        return np.rint(values).astype(np.uint8) if image.dtype == np.uint8 else values.astype(image.dtype)
    colour = image if count == 3 else np.repeat(image, 3, axis=0)
    return np.concatenate([colour, np.full_like(image[:1], white)])


def prepare(dataset: Dataset, options: Options) -> Dataset:
    """The dataset at the size and with the channels asked for.

    Raises:
        InputError: if a size is asked of what has no height and width, or channels of what has not 1, 3 or 4.
    """
    images, size, channels = dataset.images, options.size, options.channels
    resize = size is not None and size != dataset.shape[1:]
    recolour = channels is not None and dataset.shape[0] != CHANNELS[channels]
    if not (resize or recolour):
        return dataset
    if images.ndim != 4:
        raise InputError(
            f"{dataset.name} has shape {dataset.shape} without height and width; leave out size and channels."
        )

    def change(image: Array) -> Array:
        if resize and size is not None:
            image = _resize(image, size, options.crop)
        return image if channels is None else to_channels(image, channels)

    first = change(images[0])
    changed = np.empty((len(images), *first.shape), dtype=first.dtype)

    def store(index: int) -> None:
        changed[index] = change(images[index])

    run(store, len(images), options.workers)
    return Dataset(changed, dataset.labels, dataset.classes, dataset.name)


def run(task: Callable[[int], None], count: int, workers: int) -> None:
    """``task(0) ... task(count - 1)`` in threads (Pillow works outside the interpreter's lock).

    Each thread takes the next number when it is free, so that a million tasks need no more memory than a few; an error
    or an interruption ends them all.
    """
    left, lock = iter(range(count)), Lock()

    def drain() -> None:
        nonlocal left
        with lock:
            left = iter(range(0))

    def work() -> None:
        while True:
            with lock:
                index = next(left, None)
            if index is None:
                return
            try:
                task(index)
            except BaseException:
                drain()
                raise

    threads = max(1, min(workers, count))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            for future in [pool.submit(work) for _ in range(threads)]:
                future.result()
        finally:
            drain()


def _resize(image: Array, size: tuple[int, int], crop: str) -> Array:
    from PIL import Image

    if image.dtype == np.uint8 and image.shape[0] in CHANNELS.values():
        pixels = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)
        return to_array(fit(Image.fromarray(np.ascontiguousarray(pixels)), size, crop))
    planes = image.astype(np.float32)
    transparent = planes.shape[0] == 4 and image.dtype == np.float32
    if transparent:  # weigh colours by their opacity, lest invisible colours bleed into visible ones
        planes = (planes + 1.0) / 2.0
        planes[:3] *= planes[3]
    fitted = np.stack([np.asarray(fit(Image.fromarray(np.ascontiguousarray(p)), size, crop)) for p in planes])
    if transparent:
        fitted[:3] /= np.maximum(fitted[3], 1e-6)
        fitted = fitted * 2.0 - 1.0
    if image.dtype == np.uint8:
        return np.rint(fitted).clip(0, 255).astype(np.uint8)
    return fitted.clip(-1.0, 1.0).astype(np.float32)
