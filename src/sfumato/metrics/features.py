"""Features of images by name: what the distances of an evaluation are measured in."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.data import Dataset
from sfumato.errors import InputError, nearest
from sfumato.io.progress import Progress, progress_bar
from sfumato.metrics.classifier import ClassifierFeatures, train_classifier
from sfumato.metrics.pictures import check_images, check_picture
from sfumato.networks.execution import copy_sharing_weights
from sfumato.random import sent

VERSION = 2
"""Of what is computed here; another one makes the identity of all features another."""

_BATCHES = {"cpu": 32, "cuda": 256}
_AHEAD = 2  # batches that are read while the network works


@dataclass(frozen=True, eq=False)
class Features:
    """A function from images to feature vectors, with a name that says which; made by :func:`features`."""

    name: str  # "pixels", "classifier", "efficientnet-lite0", "inception (pytorch-fid)", ...
    identity: str  # a sha256 over all that decides the numbers: name, weights, resizing and version
    embed: Callable[[Tensor], Tensor]  # of images on the device
    device: torch.device
    head: Callable[[Tensor], Tensor] | None = None  # from features to the logits of classes
    classes: Int[Tensor, " classes"] | None = None  # the label of each logit, where they are those of the data
    pictures: bool = False  # whether it is a published network, for pictures of 1 or 3 channels

    def check(self, shape: tuple[int, ...]) -> None:
        """An InputError where images of shape ``(C, *space)`` are none that these features are for."""
        if self.pictures:
            check_picture(self.name, shape)

    def __call__(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch features"]:
        """The features of one batch of images in [-1, 1], on :attr:`device`, without gradients.

        Published networks see them as they would see them in a file: clipped, in 8 bits, grey as R = G = B. They
        compute in full float32 on a GPU too, so that numbers do not depend on the machine.
        """
        check_images("images", images)
        self.check(tuple(images.shape[1:]))
        with torch.no_grad(), full_precision() if self.pictures else contextlib.nullcontext():
            found: Any = self.embed(images.to(self.device))
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"the features {self.name} of {len(images)} images are {shape}; expected a tensor (batch, features): "
                "flatten or pool what the network gives."
            )
        if not found.is_floating_point() or not bool(torch.isfinite(found).all()):
            raise InputError(f"the features {self.name} are NaN, infinite or no floats; check the network's weights.")
        return found

    def logits(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch classes"]:
        """The logits of one batch of images, of networks that have classes: the :attr:`head` of its features."""
        if self.head is None:
            raise InputError(f"the features {self.name} have no classes; take 'classifier' or 'inception'.")
        with torch.no_grad():
            return self.head(self(images))

    def logits_of(self, vectors: Float[Tensor, "rows features"]) -> Float[Tensor, "rows classes"] | None:
        """The logits of features that are known, on the CPU; None of networks without classes."""
        if self.head is None:
            return None
        with torch.no_grad():
            return torch.cat([self.head(part.to(self.device)).cpu() for part in vectors.split(4096)])


@contextlib.contextmanager
def full_precision() -> Generator[None]:
    """Products and convolutions of a GPU in float32 and not in TF32, whatever it does elsewhere."""
    # since torch 2.9 these two switches have other names, and reading the old ones may fail
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    new = hasattr(cudnn, "conv")
    places = (matmul, cudnn.conv if new else cudnn)
    switch, off = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = [getattr(place, switch) for place in places]
    try:
        for place in places:
            setattr(place, switch, off)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, switch, value)


def identity_of(**parts: str | int | float | Sequence[int]) -> str:
    """A sha256 over what decides features."""
    return hashlib.sha256(json.dumps({"version": VERSION, **parts}, sort_keys=True).encode()).hexdigest()


def weights_hash(state: dict[str, Tensor]) -> str:
    """A sha256 over tensors and their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Request:
    """What :func:`features` was asked for."""

    name: str
    device: torch.device
    weights: Path | str | None
    resize: str | None
    train: tuple[Tensor, Tensor] | None


def _pixels(request: _Request) -> Features:
    return Features("pixels", identity_of(name="pixels"), lambda images: images.flatten(1), request.device)


def _classifier(request: _Request) -> Features:
    if request.train is None:
        raise InputError("the features 'classifier' are those of the data: give train=(images, labels).")
    return _of_classifier(train_classifier(*request.train))


def _of_classifier(trained: ClassifierFeatures) -> Features:
    state = {**trained.network.state_dict(), **{f"head.{k}": v for k, v in trained.head.state_dict().items()}}
    identity = identity_of(name="classifier", weights=weights_hash(state), scale=trained.scale)
    device = next(trained.head.parameters()).device
    return Features(
        "classifier", identity, trained, device, lambda found: trained.head(found * trained.scale), trained.classes
    )


def _efficientnet(request: _Request) -> Features:
    from sfumato.metrics import efficientnet

    network, digest = efficientnet.load(_file(request.weights))
    _place(network, request.device)
    return Features(
        "efficientnet-lite0",
        identity_of(name="efficientnet-lite0", weights=digest, resize="bicubic"),
        lambda images: network(efficientnet.prepare(images)),
        request.device,
        network.fc,
        pictures=True,
    )


def _inception(request: _Request) -> Features:
    from sfumato.metrics import inception

    resize, prepare = inception.resizing(request.resize)
    network, digest = inception.load(_file(request.weights))
    _place(network, request.device)
    name = f"inception ({resize})"
    return Features(
        name,
        identity_of(name=name, weights=digest),
        lambda images: network(prepare(images)),
        request.device,
        network.logits,
        pictures=True,
    )


def _transformer(request: _Request) -> Features:
    from sfumato.metrics import pretrained

    found = (pretrained.dinov2 if request.name == "dinov2" else pretrained.clip)(request.weights)
    _place(found.network, request.device)
    identity = identity_of(name=found.name, weights=weights_hash(found.network.state_dict()))
    return Features(found.name, identity, found.embed, request.device, pictures=True)


def _file(weights: Path | str | None) -> Path | None:
    return None if weights is None else Path(weights).expanduser()


def _place(network: nn.Module, device: torch.device) -> None:
    network.to(device)
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # a fifth faster there


NAMED: dict[str, tuple[Callable[[_Request], Features], frozenset[str]]] = {
    "pixels": (_pixels, frozenset()),
    "classifier": (_classifier, frozenset({"train"})),
    "efficientnet-lite0": (_efficientnet, frozenset({"weights"})),
    "inception": (_inception, frozenset({"weights", "resize"})),
    "dinov2": (_transformer, frozenset({"weights"})),
    "clip": (_transformer, frozenset({"weights"})),
}
"""Features by name, and which options they have."""


def features(
    which: str | Features | ClassifierFeatures | nn.Module | Callable[[Tensor], Tensor],
    *,
    device: torch.device | str | None = None,
    weights: Path | str | None = None,
    resize: str | None = None,
    train: tuple[Float[Tensor, "batch channels *space"], Int[Tensor, " batch"]] | None = None,
    name: str | None = None,
) -> Features:
    """Features by name, or of a network or function of one's own.

    - ``pixels``: the values themselves.
    - ``classifier``: a small classifier of the data, trained with a pinned seed (:func:`train_classifier`).
    - ``efficientnet-lite0``: 1280 features of a network for photographs (``pip install "sfumato[efficientnet]"``).
    - ``inception``: 2048 features of FID's own network of 2015-12-05, from ``weights``, or fetched once (96 MB); its
      ``resize`` is pytorch-fid (default), torch-fidelity or clean-fid.
    - ``dinov2``: 1024 features of ViT-L/14, as FD-DINOv2 uses them; ``clip``: 768 of ViT-L/14 at 336 pixels, as CMMD
      does. They come from a folder (``weights``) or the Hugging Face hub (``pip install "sfumato[transformers]"``).

    Args:
        which: one of these names; or a module or function from images in [-1, 1] ``(N, C, *space)`` to ``(N, d)``.
        device: where to compute (default: on the GPU if there is one; a module stays where it is).
        weights: a file of published weights; of dinov2 and clip a folder, or a model of the hub such as OWNER/NAME.
        resize: which of the published resizings.
        train: images and labels for the classifier.
        name: what features of one's own are called.
    """
    at = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not isinstance(which, str):
        if isinstance(which, Features):
            return which
        if isinstance(which, ClassifierFeatures):
            return _of_classifier(which)
        if not callable(which):
            expected = f"a name ({', '.join(NAMED)}), a module or a function"
            raise InputError(f"features are {expected}, and not a {type(which).__name__}.")
        return _of_module(which, device, name) if isinstance(which, nn.Module) else _of_function(which, at, name)
    if which not in NAMED:
        raise InputError(f"there are no features {which!r}{nearest(which, NAMED)}")
    make, options = NAMED[which]
    for option, value in (("weights", weights), ("resize", resize), ("train", train), ("name", name)):
        if value is not None and option not in options and option != "train":
            raise InputError(f"the features {which} have no option {option!r}; leave it out.")
    return make(_Request(which, at, weights, resize, train))


def _of_module(module: nn.Module, device: torch.device | str | None, name: str | None) -> Features:
    own = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    at = own if device is None else torch.device(device)
    # a copy: evaluation mode and another device are no business of the original
    network = copy_sharing_weights(module) if at == own else deepcopy(module).to(at).eval()
    name = name or type(module).__name__
    identity = identity_of(name=name, source=_source(type(module)), weights=weights_hash(module.state_dict()))
    return Features(name, identity, network, at)


def _of_function(function: Callable[[Tensor], Tensor], device: torch.device, name: str | None) -> Features:
    name = name or str(getattr(function, "__name__", type(function).__name__))
    return Features(name, identity_of(name=name, source=_source(function)), function, device)


def _source(thing: Any) -> str:
    """The text of a function or class; what it refers to is not in it, so caches also compare a few features."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def default_features(shape: tuple[int, ...], labelled: bool) -> str:
    """The features that images of shape ``(C, *space)`` are judged in unless others are named.

    ``efficientnet-lite0`` for colour pictures of 32 pixels and more where its package is installed; else ``classifier``
    for data with labels, else ``pixels``.
    """
    from sfumato.metrics.efficientnet import weights_file

    if len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= 32 and weights_file() is not None:
        return "efficientnet-lite0"
    return "classifier" if labelled else "pixels"


def extract(
    features: Features,
    data: Dataset | Float[Tensor, "count channels *space"],
    *,
    indices: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    batch: int | None = None,
    progress: Progress = None,
) -> Float[Tensor, "rows features"]:
    """The features of many images, ``(rows, features)`` float32 on the CPU, batch by batch.

    The next batches are read, and decoded where they are in files, while the network works on one. The memory is that
    of the result (410 MB for 50,000 images with 2048 features) and of a few batches.

    Args:
        features: which.
        data: a data set, or images in [-1, 1].
        indices: which images (default: all).
        batch: images at once (default: 32 on a CPU, 256 on a GPU).
        progress: what shows progress.
    """
    shape = data.shape if isinstance(data, Dataset) else tuple(data.shape[1:])
    features.check(shape)
    rows = np.arange(len(data)) if indices is None else np.asarray(indices, dtype=np.int64)
    size = batch or _BATCHES.get(features.device.type, 32)
    if len(rows) == 0:
        raise InputError("features of no images; give at least one.")
    if size < 1:
        raise InputError(f"batch={size}; expected at least 1 image at once.")

    def read(start: int) -> Tensor:
        chosen = rows[start : start + size]
        if isinstance(data, Dataset):
            return sent(data.batch(chosen), features.device)
        return data[start : start + size] if indices is None else data[torch.from_numpy(chosen).to(data.device)]

    starts = range(0, len(rows), size)
    result: Tensor | None = None
    with progress_bar(f"features {features.name}", len(rows), progress) as show, ThreadPoolExecutor(1) as reader:
        ahead = deque(reader.submit(read, start) for start in starts[:_AHEAD])
        for index, start in enumerate(starts):
            images = ahead.popleft().result()
            if index + _AHEAD < len(starts):
                ahead.append(reader.submit(read, starts[index + _AHEAD]))
            found = features(images)
            if result is None:
                result = torch.empty(len(rows), found.shape[1])
            result[start : start + len(found)] = found
            show(start + len(found))
    assert result is not None
    return result
