"""Features of real data kept in the user's cache, and files of statistics as others publish them."""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data import Dataset
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io import files
from sfumato.io.files import SaveError, atomic_write
from sfumato.io.progress import Progress
from sfumato.io.tensors import read_tensors, write_tensors
from sfumato.metrics.features import Features, extract
from sfumato.metrics.frechet import Moments

_BLOCK = 1 << 24  # bytes of images that are hashed at once
_PROBES = 2  # images whose features are computed again
_TOLERANCE = 1e-3  # of the largest feature: how far those may be from what was kept, on another machine


def content_hash(data: Dataset | Float[Tensor, "count channels *space"]) -> str:
    """A sha256 over the stored values, shape and type of images, and their order: a second for 1.4 GB in memory.

    Images in files are read, and decoded, once for it.
    """
    images: Any = data.images if isinstance(data, Dataset) else data.detach()
    digest = hashlib.sha256(f"{images.dtype} {tuple(map(int, images.shape))}".encode())
    step = max(1, _BLOCK // max(1, math.prod(images.shape[1:]) * images.dtype.itemsize))
    for start in range(0, len(images), step):
        block = images[start : min(start + step, len(images))]
        block = block.cpu().numpy() if isinstance(block, Tensor) else np.asarray(block)
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def cached_features(
    features: Features,
    data: Dataset | Float[Tensor, "count channels *space"],
    *,
    progress: Progress = None,
    folder: Path | None = None,
) -> Float[Tensor, "rows features"]:
    """:func:`extract`, or what it gave for the same pictures and features before.

    The features are kept in ``features`` of the user's cache under a sha256 of the content of the pictures and of
    :attr:`Features.identity`. What is read is checked: its shape, its own sha256, that it is finite, and that the first
    pictures still have these features (of functions of one's own no hash knows all that they depend on). What fails is
    computed again, with a warning. Pixels are not kept.

    Args:
        features, data, progress: as for :func:`extract`.
        folder: where features are kept (default: ``features`` in the cache of decoded images).
    """

    def compute() -> Tensor:
        return extract(features, data, progress=progress)

    if features.name == "pixels":
        return compute()
    count, content = len(data), content_hash(data)
    meta = {"features": features.name, "identity": features.identity, "content": content, "count": count}

    def check(found: Tensor) -> str | None:
        expected = extract(features, data, indices=range(min(_PROBES, count)), progress=False)
        if found.ndim != 2 or found.shape != (count, expected.shape[1]) or found.dtype != torch.float32:
            return f"they are {found.dtype} of shape {tuple(found.shape)}, not of {(count, expected.shape[1])}"
        if not bool(torch.isfinite(found).all()):
            return "they hold NaN or infinite values"
        difference = float((found[:_PROBES] - expected).abs().max())
        if difference > _TOLERANCE * float(expected.abs().max()):
            return f"those of the first picture differ from what {features.name} gives now by {difference:.3g}"
        return None

    return kept(meta, compute, check, folder)


def kept(
    meta: dict[str, Any],
    compute: Callable[[], Tensor],
    check: Callable[[Tensor], str | None],
    folder: Path | None = None,
) -> Tensor:
    """What was computed before, if its file in the user's cache is sound; else it is computed, and kept there.

    Args:
        meta: all that it depends on, and ``count``, how many rows it has.
        compute: makes it.
        check: says what is wrong with it, if anything is.
        folder: where it is kept (default: ``features`` in the cache of decoded images).
    """
    key = hashlib.sha256(repr(sorted(meta.items())).encode()).hexdigest()
    path = (folder or files.cache_folder() / "features") / f"{key[:32]}.safetensors"
    if path.is_file():
        try:
            tensors, known = read_tensors(path)
            found = tensors.get("values", torch.empty(0))
            if any(known.get(name) != value for name, value in meta.items()):
                trouble = "they are of other pictures or features"
            elif known.get("sha256") != _sha256(found):
                trouble = "their bytes have changed"
            else:
                trouble = check(found)
            if trouble is None:
                return found
        except InputError as error:
            trouble = str(error)
        text = f"what is kept in {path} is computed again: {trouble.rstrip('.')}."
        warnings.warn(text, SfumatoWarning, stacklevel=3)
    result = compute()
    try:
        write_tensors(path, {"values": result}, {**meta, "sha256": _sha256(result)})
    except SaveError as error:
        warnings.warn(
            f"{meta['count']:,} features are not kept for the next time. {error}", SfumatoWarning, stacklevel=3
        )
    return result


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()


class Statistics(NamedTuple):
    """What a file of statistics holds: the moments of the features of a data set, in float64."""

    mean: Float[Tensor, " features"]
    covariance: Float[Tensor, "features features"]  # unbiased
    samples: int | None  # None where the file does not say


def read_statistics(path: Path | str, features: Features | None = None, *, width: int | None = None) -> Statistics:
    """The mean and covariance of an ``.npz`` file with the arrays ``mu`` and ``sigma``, as pytorch-fid writes them.

    Files of others do not say what features they are of, nor of how many images; those of :func:`write_statistics` do,
    and are refused for other features.

    Args:
        path: the file.
        features: those that the statistics are to be compared in.
        width: the number of those features.
    """
    path = Path(path).expanduser()
    arrays = dict(_arrays(path))
    if missing := [name for name in ("mu", "sigma") if name not in arrays]:
        held = ", ".join(arrays) or "nothing"
        raise InputError(f"{path} holds {held} and no {missing[0]!r}; statistics are arrays 'mu' and 'sigma'.")
    mean, covariance = arrays["mu"], arrays["sigma"]
    if "identity" in arrays and features is not None and str(arrays["identity"]) != features.identity:
        whose = str(arrays.get("features", "others"))
        same = " of another version or with other weights" if whose == features.name else ""
        raise InputError(
            f"{path} holds statistics of the features {whose}{same}, which cannot be compared with {features.name}; "
            "compute them again."
        )
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f" or covariance.shape != 2 * mean.shape or mean.ndim != 1:
        shapes = f"mu {mean.dtype} {mean.shape} and sigma {covariance.dtype} {covariance.shape}"
        raise InputError(f"{path} holds {shapes}; expected floats of shapes (d,) and (d, d).")
    if width is not None and len(mean) != width:
        name = features.name if features is not None else "these features"
        raise InputError(f"{path} holds statistics of {len(mean)} features, and {name} has {width}: it is of others.")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise InputError(f"{path} holds NaN or infinite values; it is damaged.")
    count = arrays.get("count")
    whole = count is not None and count.ndim == 0 and count.dtype.kind in "iu"
    first, second = (torch.from_numpy(array.astype(np.float64)) for array in (mean, covariance))
    return Statistics(first, second, int(count) if whole and count is not None else None)


def _arrays(path: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The arrays of an .npz file that are of use; published ones may hold many images beside them."""
    if not path.is_file():
        raise InputError(f"there is no file of statistics {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                yield name, file[name] if name in ("mu", "sigma", "count", "features", "identity") else np.empty(0)
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as .npz statistics ({error or type(error).__name__}).") from None


def write_statistics(path: Path | str, moments: Moments, features: Features) -> None:
    """Write moments as an ``.npz`` that pytorch-fid and others read: ``mu`` and ``sigma``, in float64.

    It also says how many images (``count``) and which features they are of (``features``, ``identity``).
    """
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise InputError(f"statistics are written as .npz, and {path} has another ending; call it {path.stem}.npz.")
    arrays: dict[str, Any] = {
        "mu": moments.mean.cpu().numpy(),
        "sigma": moments.covariance.cpu().numpy(),
        "count": np.int64(moments.samples),
        "features": features.name,
        "identity": features.identity,
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, NumPy would append an ending
            np.savez(file, **arrays)

    atomic_write(path, write)
