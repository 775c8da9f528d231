"""How strong edges are in the cells of a grid, and which way they run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from sfumato.config import Config, parse
from sfumato.data import Dataset
from sfumato.data.edges import edges
from sfumato.data.selection import Made
from sfumato.data.shapes import shapes
from sfumato.errors import InputError
from sfumato.models.data import scaled_down

SIDE = 64


def test_a_slope_in_any_direction() -> None:
    """A plane of slope s at the angle a: the strength is s, the directions are those of 2a and 4a."""
    at = torch.arange(SIDE, dtype=torch.float64) / SIDE
    for angle in (0.0, 0.3, math.pi / 2, 2.5, 0.3 + math.pi):
        plane = 0.5 * (math.cos(angle) * at + math.sin(angle) * at[:, None])
        found = edges(plane[None, None], 8)[0, :, 3, 3]
        slope = 4.0 * 0.5 / SIDE
        wanted = [slope, *(slope * f(n * angle) for n in (2, 4) for f in (math.cos, math.sin))]
        assert np.allclose(found.numpy(), wanted, atol=1e-12)


def test_against_scipy() -> None:
    images = np.random.default_rng(0).uniform(-0.3, 0.3, (3, 16, 16))
    right, down = (ndimage.convolve1d(images, [0.5, 0.0, -0.5], axis=axis)[:, 1:-1, 1:-1] for axis in (2, 1))
    strength = np.sqrt((right**2 + down**2).sum(0))
    angle = np.arctan2((2.0 * right * down).sum(0), (right**2 - down**2).sum(0))
    wanted = [strength, *(strength * f(n * angle) for n in (1, 2) for f in (np.cos, np.sin))]
    found = edges(torch.from_numpy(images)[None], 1)[0, :, 1:-1, 1:-1]
    assert np.allclose(found.numpy(), np.clip(4.0 * np.stack(wanted), -1.0, 1.0), atol=1e-9)
    cells = edges(0.1 * torch.from_numpy(images)[None], 4)
    torch.testing.assert_close(cells, nn.functional.avg_pool2d(edges(0.1 * torch.from_numpy(images)[None], 1), 4))


def test_shapes_differ_wherever_they_are() -> None:
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)

    def of(mask: np.ndarray) -> np.ndarray:
        soft = ndimage.gaussian_filter(mask.astype(float), 1.0)
        return edges(torch.from_numpy(soft)[None, None], SIDE)[0, :, 0, 0].numpy()

    for cx, cy in ((30.0, 30.0), (22.0, 38.0)):
        disc = of(np.hypot(x - cx, y - cy) < 14)
        square = of(np.maximum(abs(x - cx), abs(y - cy)) < 14)
        ring = of((np.hypot(x - cx, y - cy) < 14) & (np.hypot(x - cx, y - cy) > 8))
        # edges of a square have two directions, whose fourfold angle is one
        assert square[3] > 0.8 * square[0] and abs(disc[3]) < 0.1 * disc[0]
        assert ring[0] == pytest.approx(disc[0] * (14 + 8) / 14, rel=0.05)
        assert max(abs(disc[[1, 2, 4]]).max(), abs(square[[1, 2, 4]]).max()) < 0.05 * disc[0]


def test_no_edge_has_no_direction() -> None:
    assert not edges(torch.full((1, 3, 8, 8), 0.4), 4).any()


def test_images_that_are_turned_have_none() -> None:
    data = {"source": "digits", "edges": True}
    for wrong in ({"data": {**data, "flip": True}}, {"data": data, "conditions": {"a": {"kind": "augmentation"}}}):
        with pytest.raises(InputError, match="edges"):
            parse(Config, wrong, origin="here")


@pytest.mark.parametrize("shape", [(3, 16), (5,), (3, 1, 8)], ids=str)
def test_what_is_no_image_has_none(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="Edges are those of images"):
        scaled_down(Dataset(np.zeros((4, *shape), np.float32)), 1, edges=True)


def test_grey_images_in_memory_and_none_at_all() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (3, 1, 8, 8)).astype(np.float32)
    found = scaled_down(Dataset(images), 2, edges=True)
    assert found.shape == (6, 4, 4)
    np.testing.assert_array_equal(found.images[:, 1:], edges(torch.from_numpy(images), 2).numpy())
    assert scaled_down(Dataset(images), 1, edges=True).shape == (6, 8, 8)
    empty = Made(lambda rows: images[rows], images.dtype, (0, 1, 8, 8))
    assert scaled_down(Dataset(empty), 2, edges=True).shape == (6, 4, 4)


def test_edges_are_channels_more() -> None:
    data = shapes(64, 10**6)
    lazy, stored = scaled_down(data, 8, edges=True), scaled_down(Dataset(data.images[:30]), 8, edges=True)
    assert lazy.shape == (8, 8, 8) and lazy.images.dtype == np.float32
    assert np.array_equal(lazy.images[:30], stored.images)
    plain = scaled_down(data, 8).batch(np.arange(30))
    assert (lazy.batch(np.arange(30))[:, :3] - plain).abs().max() <= 1.01 / 255
    assert torch.equal(lazy.batch(np.arange(2))[:, 3:], edges(data.batch(np.arange(2)), 8))
