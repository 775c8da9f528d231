"""Large pictures by tiles: the weights of the blend, and predictions that do not know of tiles."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from sfumato.diffusion.denoiser import Denoiser, embed_log_snr
from sfumato.diffusion.level import Level
from sfumato.diffusion.parameterization import v
from sfumato.diffusion.schedule import ContinuousCosine
from sfumato.errors import InputError
from sfumato.sampling.tiles import Tiled, spans


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 0), (32, 8), (32, 16), (32, 24), (64, 10)])
def test_tiles_cover_an_axis_and_weigh_one_everywhere(tile: int, overlap: int, multiple: int, exact: bool) -> None:
    for length in range(tile, 300, 4 if multiple == 4 else 7):
        parts = spans(length, tile, overlap, multiple, exact=exact)
        total = torch.zeros(length)
        for start, stop, weights in parts:
            assert start % multiple == 0 and stop % multiple == 0 and len(weights) == stop - start <= tile
            assert float(weights.min()) >= 0.0 and (not exact or stop - start == tile)
            total[start:stop] += weights
        assert torch.allclose(total, torch.ones(length), atol=1e-6)
        assert all(a.stop - b.start >= overlap for a, b in itertools.pairwise(parts))
        assert len(parts) == 1 or (parts[0].start, parts[-1].stop) == (0, length)


def test_tiles_are_few_and_the_edge_of_a_tile_counts_nothing() -> None:
    parts = spans(528, 300, 16)
    assert [(part.start, part.stop) for part in parts] == [(0, 272), (256, 528)]
    assert parts[0].weights[-6:].tolist() == [0.0] * 6 and parts[1].weights[:6].tolist() == [0.0] * 6
    assert 0.0 < float(parts[0].weights[-7]) < 0.5 < float(parts[0].weights[-10]) < 1.0
    assert [len(part.weights) for part in spans(20, 32, 8)] == [20]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((40, 16, 16, 1), "overlap below their size"),
        ((41, 16, 4, 2), "multiples of 2"),
        ((40, 15, 4, 2), "multiples of 2"),
    ],
)
def test_tiles_that_make_no_sense_are_refused(sizes: tuple[int, int, int, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        spans(*sizes)
    with pytest.raises(InputError, match="shorter than a tile"):
        spans(12, 16, 4, exact=True)


class Convolutions(nn.Module):
    """Sees 3 pixels in each direction, and a picture at half the size and a number beside ``x``."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, outputs, 3, padding=1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, time: Tensor, small: Tensor, number: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = self.first(torch.cat([x, large], 1)) + (time + number)[:, None, None, None]
        return self.last(torch.sin(h))


def levels(count: int) -> list[Level]:
    """One level of the batch, and one for each sample."""
    schedule = ContinuousCosine()
    return [schedule(0.3), schedule(torch.linspace(0.2, 0.9, count))]


@pytest.mark.parametrize("pixels", [1, 5000, 10**6])
@pytest.mark.parametrize("learned", [False, True])
def test_a_prediction_of_tiles_is_that_of_the_whole(pixels: int, learned: bool) -> None:
    torch.manual_seed(0)
    network = Convolutions(4 if learned else 2)
    denoiser = Denoiser(network, ContinuousCosine(), v, embed_log_snr, learned_variance=learned)
    x, small, number = torch.randn(2, 2, 76, 52), torch.randn(2, 1, 38, 26), torch.tensor([0.1, 0.7])
    told: list[tuple[int, int]] = []
    tiled = Tiled(denoiser, (32, 32), 14, 2, False, {"small": 2}, pixels, lambda *now: told.append(now))
    with torch.no_grad():
        for level in levels(2):
            whole = denoiser(x, level, small=small, number=number)
            network.seen.clear()
            told.clear()
            parts = tiled(x, level, small=small, number=number)
            assert torch.allclose(parts.x0, whole.x0, atol=1e-5)
            assert torch.allclose(parts.eps, whole.eps, atol=1e-5)
            if learned:
                assert parts.variance_fraction is not None and whole.variance_fraction is not None
                assert torch.allclose(parts.variance_fraction, whole.variance_fraction, atol=1e-5)
            largest = max(batch * height * width for batch, _, height, width in network.seen)
            side = network.seen[0][2] * network.seen[0][3]
            assert largest <= max(pixels, 2 * side) and told[-1][0] == told[-1][1] == len(tiled.windows(76, 52))
    # what is seen beyond the overlap shows: the test can fail
    narrow = Tiled(denoiser, (32, 32), 2, 2, False, {"small": 2})
    with torch.no_grad():
        assert not torch.allclose(narrow(x, level, small=small, number=number).x0, whole.x0, atol=1e-3)
