"""What images are compared by: their pixels, or the features of a small classifier."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import InputError
from sfumato.random import permutation

_CHUNK = 512


def check_images(what: str, images: Tensor) -> None:
    """Raise an error unless ``images`` is a finite float batch ``(N, C, *space)`` of vectors, signals or images.

    Args:
        what: The name of the batch in the message, for example ``"samples"``.
        images: The batch.

    Raises:
        InputError: The type, the number of dimensions or a value is wrong, or the batch is empty.
    """
    if not images.is_floating_point() or images.ndim not in (2, 3, 4):
        raise InputError(
            f"{what} must be a floating-point tensor of shape (N, C), (N, C, length) or (N, C, height, width),"
            f" not {images.dtype} of shape {tuple(images.shape)}."
        )
    if images.numel() == 0:
        raise InputError(f"{what} of shape {tuple(images.shape)} holds no image; give at least one.")
    if not bool(torch.isfinite(images).all()):
        raise InputError(f"{what} holds NaN or infinite values; the model or file they come from is broken.")


@runtime_checkable
class Extractor(Protocol):
    """A function from images to feature vectors, with a name to report it by."""

    @property
    def name(self) -> str:
        """The name in reports, for example ``"pixels"``."""
        ...

    def __call__(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch features"]:
        """The features of ``images`` ``(N, C, *space)``, of shape ``(N, features)``."""
        ...


@dataclass(frozen=True)
class Pixels:
    """The image itself: features are its ``C * prod(space)`` values."""

    name: str = "pixels"

    def __call__(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch features"]:
        """``images`` ``(N, C, *space)`` flattened to ``(N, C * prod(space))``."""
        return images.flatten(1)


pixels = Pixels()


def _convolutions(channels: int, space: tuple[int, ...]) -> tuple[nn.Module, int]:
    """The body of a classifier of signals or images, and how many features it has."""
    flat = len(space) == 1
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if flat else (nn.Conv2d, nn.BatchNorm2d)
    pool, last = (nn.MaxPool1d, nn.AdaptiveAvgPool1d) if flat else (nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    layers: list[nn.Module] = []
    side, inner, outer = max(space), channels, 32
    while not layers or side > 3:
        layers += [conv(inner, outer, 3, padding=1, bias=False), norm(outer), nn.ReLU()]
        layers += [pool(2, ceil_mode=True)]
        side, inner, outer = -(-side // 2), outer, min(2 * outer, 64)
    return nn.Sequential(*layers, last(2), nn.Flatten()), inner * 2 ** len(space)


def _linears(channels: int) -> tuple[nn.Module, int]:
    """The body of a classifier of vectors, and how many features it has."""
    layers: list[nn.Module] = []
    for inner in (channels, 64):
        layers += [nn.Linear(inner, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers), 64


class _Classifier(nn.Module):
    """Convolution, batch normalization and pooling until the sides are 2 or 3; then one hidden layer.

    Vectors have no sides: two linear layers with batch normalization.
    """

    def __init__(self, channels: int, space: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
        self.body, features = _convolutions(channels, space) if space else _linears(channels)
        self.hidden = nn.Linear(features, width)
        self.head = nn.Linear(width, classes)

    def forward(
        self, images: Float[Tensor, "batch channels *space"], drop: float = 0.0
    ) -> Float[Tensor, "batch features"]:
        """The hidden layer ``(N, width)``; in training its input is dropped with chance ``drop``."""
        return F.relu(self.hidden(F.dropout(self.body(images), drop, training=self.training)))


@dataclass(frozen=True)
class ClassifierFeatures:
    """The penultimate layer of a trained classifier, an `Extractor`; made by `train_classifier`.

    Features are divided by one number, the root of their mean variance over the training images, so that the
    unit of a distance is the same whatever the data: ``width`` is the total variance of the training images.
    """

    network: nn.Module
    """Images ``(N, C, *space)`` to unscaled features ``(N, width)``; in evaluation mode."""
    head: nn.Module
    """Unscaled features ``(N, width)`` to logits ``(N, classes)``."""
    classes: Int[Tensor, " classes"]
    """The label that each logit stands for, ascending."""
    shape: tuple[int, ...]
    """``(C, *space)`` of the images that it was trained on."""
    scale: float
    """What features are divided by."""
    name: str = "classifier"

    def __call__(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch features"]:
        """The features ``(N, width)`` of ``images`` ``(N, C, *space)``, computed in chunks.

        Raises:
            InputError: ``images`` are not finite or not of the shape that the classifier was trained on.
        """
        return self._hidden(images) / self.scale

    def predict(self, images: Float[Tensor, "batch channels *space"]) -> Int[Tensor, " batch"]:
        """The most probable label of each image, ``(N,)``.

        Raises:
            InputError: ``images`` are not finite or not of the shape that the classifier was trained on.
        """
        with torch.no_grad():
            return self.classes[self.head(self._hidden(images)).argmax(dim=1)]

    def accuracy(self, images: Float[Tensor, "batch channels *space"], labels: Int[Tensor, " batch"]) -> float:
        """The fraction of ``images`` whose predicted label is the given one.

        Raises:
            InputError: There are more or fewer labels than images, or the images do not fit.
        """
        _check_labels(images, labels)
        return float((self.predict(images) == labels).double().mean())

    def _hidden(self, images: Tensor) -> Tensor:
        check_images("images", images)
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(
                f"the classifier was trained on images of shape {self.shape}, not {tuple(images.shape[1:])};"
                " evaluate samples against the data that they imitate."
            )
        with torch.no_grad():
            return torch.cat([self.network(chunk.float()) for chunk in images.split(_CHUNK)])


def train_classifier(
    images: Float[Tensor, "batch channels *space"],
    labels: Int[Tensor, " batch"],
    *,
    seed: int = 0,
    width: int = 64,
    steps: int = 300,
    batch: int = 64,
    learning_rate: float = 3e-3,
    drop: float = 0.25,
) -> ClassifierFeatures:
    """Train the small convolutional classifier whose penultimate layer serves as features.

    It works for vectors, signals and images of any size. It belongs to the data and not to the model under evaluation,
    so give it the training split and a pinned seed: all its randomness comes from ``seed``,
    none from the global generators, which it leaves as they were. It runs on one thread, so that the features
    do not depend on the number of cores. AdamW, with a learning rate that falls along a cosine.

    Args:
        images: The labelled training images, ``(N, C, *space)``, in [-1, 1].
        labels: Their labels, ``(N,)``; any integers.
        seed: The seed of the initial weights, the order of the images and dropout.
        width: The number of features.
        steps: The number of optimizer steps, which bounds the cost whatever the amount of data.
        batch: The number of images in a step.
        learning_rate: The highest learning rate.
        drop: The chance that an input of the hidden layer is dropped in training.

    Raises:
        InputError: The images are not finite or of a wrong shape, the labels are not one per image, or there
            are fewer than two classes.
    """
    check_images("images", images)
    _check_labels(images, labels)
    classes, targets = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError("classifier features need at least two classes; leave the labels out to do without.")
    images = images.detach().float()
    with _one_thread(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = _Classifier(images.shape[1], tuple(images.shape[2:]), len(classes), width)
        network.to(images.device).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        batches = _batches(seed, len(images), batch)
        for _ in range(steps):
            chosen = next(batches).to(images.device)
            logits = network.head(network(images[chosen], drop))
            loss = F.cross_entropy(logits, targets[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        network.eval().requires_grad_(False)
        extractor = ClassifierFeatures(network, network.head, classes, tuple(images.shape[1:]), 1.0)
        variance = float(extractor(images).double().var(dim=0, correction=0).mean())
    scale = variance**0.5 if variance > 0 else 1.0
    return ClassifierFeatures(network, network.head, classes, tuple(images.shape[1:]), scale)


def _batches(seed: int, size: int, batch: int) -> Iterator[Int[Tensor, " batch"]]:
    """Endless batches of indices: each epoch is a fresh order, and its last incomplete batch is left out."""
    batch = min(batch, size)
    epoch = 0
    while True:
        order = torch.from_numpy(permutation(seed, "classifier", epoch, size))
        yield from order[: size - size % batch].split(batch)
        epoch += 1


@contextmanager
def _one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_labels(images: Tensor, labels: Tensor) -> None:
    if labels.is_floating_point() or labels.ndim != 1 or len(labels) != len(images):
        raise InputError(
            f"labels must be {len(images)} integers, one per image, not {labels.dtype} of shape {tuple(labels.shape)}."
        )
