"""The features of a small classifier, by which images are compared."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import InputError
from sfumato.metrics.pictures import check_images
from sfumato.random import permutation

_CHUNK = 512
_BATCH = 64
_WIDTH = 64  # the number of features


def _network(channels: int, space: tuple[int, ...]) -> nn.Sequential:
    """Convolution, batch normalization and pooling until the sides are 2 or 3; then a hidden layer.

    Vectors have no sides: two linear layers with batch normalization.
    """
    layers: list[nn.Module] = []
    inner, outer = channels, 32
    if not space:
        for inner in (channels, 64):
            layers += [nn.Linear(inner, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
    else:
        flat, side = len(space) == 1, max(space)
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if flat else (nn.Conv2d, nn.BatchNorm2d)
        pool, last = (nn.MaxPool1d, nn.AdaptiveAvgPool1d) if flat else (nn.MaxPool2d, nn.AdaptiveAvgPool2d)
        while not layers or side > 3:
            layers += [conv(inner, outer, 3, padding=1, bias=False), norm(outer), nn.ReLU(), pool(2, ceil_mode=True)]
            side, inner, outer = -(-side // 2), outer, min(2 * outer, 64)
        layers += [last(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.25), nn.Linear(inner * 2 ** len(space), _WIDTH), nn.ReLU())


@dataclass(frozen=True)
class ClassifierFeatures:
    """The penultimate layer of a classifier; made by `train_classifier`, called with images ``(N, C, *space)``.

    Features are divided by the root of their mean variance over the training images, so that the unit of a distance
    does not depend on the data: the total variance of the training images is the number of features.
    """

    network: nn.Module  # images to unscaled features (N, features), in evaluation mode
    head: nn.Module  # unscaled features to logits (N, classes)
    classes: Int[Tensor, " classes"]  # the label of each logit, ascending
    shape: tuple[int, ...]  # (C, *space) of the images that it was trained on
    scale: float  # what features are divided by

    def __call__(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch features"]:
        """The features ``(N, features)`` of ``images`` ``(N, C, *space)``, computed in chunks."""
        return self._hidden(images) / self.scale

    def _hidden(self, images: Tensor) -> Tensor:
        check_images("images", images)
        if (shape := tuple(images.shape[1:])) != self.shape:
            raise InputError(f"the classifier was trained on images of shape {self.shape}, not {shape}.")
        with torch.no_grad():
            return torch.cat([self.network(chunk.float()) for chunk in images.split(_CHUNK)])


def train_classifier(
    images: Float[Tensor, "batch channels *space"], labels: Int[Tensor, " batch"], *, seed: int = 0, steps: int = 300
) -> ClassifierFeatures:
    """Train the small classifier whose penultimate layer serves as features, on images in [-1, 1] and integer labels.

    It belongs to the data and not to the model under evaluation, so give it the training split and a pinned seed: all
    its randomness comes from ``seed``, none from the global generators. It runs on one thread, so that the features do
    not depend on the number of cores. AdamW, with a cosine learning-rate schedule.
    """
    check_images("images", images)
    if labels.is_floating_point() or labels.shape != images.shape[:1]:
        raise InputError(f"labels must be {len(images)} integers, not {labels.dtype} of shape {tuple(labels.shape)}.")
    classes, targets = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError("classifier features need at least two classes; leave the labels out to do without.")
    images = images.detach().float()
    with _one_thread(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = _network(images.shape[1], tuple(images.shape[2:])).to(images.device)
        head = nn.Linear(_WIDTH, len(classes)).to(images.device)
        optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=3e-3, weight_decay=0.05)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        batches = _batches(seed, len(images))
        for _ in range(steps):
            chosen = next(batches).to(images.device)
            loss = F.cross_entropy(head(network(images[chosen])), targets[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        network.eval().requires_grad_(False)
        head.requires_grad_(False)
        extractor = ClassifierFeatures(network, head, classes, tuple(images.shape[1:]), 1.0)
        variance = float(extractor(images).double().var(dim=0, correction=0).mean())
    return replace(extractor, scale=variance**0.5 if variance > 0 else 1.0)


def _batches(seed: int, size: int) -> Iterator[Int[Tensor, " batch"]]:
    """Endless batches of indices: each epoch has a new order, and its last incomplete batch is left out."""
    batch = min(_BATCH, size)
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
