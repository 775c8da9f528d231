"""Attention to the tokens of a condition: joined to self-attention, after it, and in its place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.networks.attention import Attention, CrossAttention
from sfumato.networks.layers import group_norm
from sfumato.networks.unet import UNet
from tests.networks.test_unet import randomized

CROSS = ("separate", "joined", "only")


def by_hand(layer: Attention, x: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
    """The definition in float64, for each sample, head and position by itself, over the keys that are seen."""
    assert layer.kv is not None and isinstance(layer.norm, nn.GroupNorm)
    batch, channels, *space = x.shape
    out = x.clone()
    width, flat = channels // layer.heads, layer.norm(x).flatten(2)
    for i in range(batch):
        rows = [layer.qkv(flat[i, :, at]) for at in range(flat.shape[2])]
        queries = [row[:channels] for row in rows]
        pairs = [(row[channels : 2 * channels], row[2 * channels :]) for row in rows]
        for token in tokens[i][seen[i]]:
            both = layer.kv(token)
            pairs.append((both[:channels], both[channels:]))
        for at, query in enumerate(queries):
            heads: list[Tensor] = []
            for h in range(layer.heads):
                part = slice(h * width, (h + 1) * width)
                weights = torch.stack([(query[part] @ k[part] / math.sqrt(width)).exp() for k, _ in pairs])
                heads.append(sum(w * v[part] for w, (_, v) in zip(weights / weights.sum(), pairs, strict=True)))  # type: ignore[arg-type]
            where = divmod(at, space[1])
            out[(i, slice(None), *where)] += layer.out(torch.cat(heads))
    return out


def joined(features: int | None = 5) -> Attention:
    layer = randomized(Attention(group_norm(8, 4), 2, features).double())
    assert isinstance(layer, Attention)
    return layer


@torch.no_grad()
def test_joined_attention_is_softmax_over_positions_and_tokens() -> None:
    layer, x, tokens = joined(), torch.randn(3, 8, 2, 3).double(), torch.randn(3, 4, 5).double()
    seen = torch.tensor([[True, True, True, True], [True, False, True, False], [False] * 4])
    torch.testing.assert_close(layer(x, tokens, seen), by_hand(layer, x, tokens, seen))
    torch.testing.assert_close(layer(x, tokens), by_hand(layer, x, tokens, torch.ones_like(seen)))


@torch.no_grad()
def test_without_tokens_joined_attention_is_self_attention_alone() -> None:
    layer, x, tokens = joined(), torch.randn(2, 8, 3, 3).double(), torch.randn(2, 4, 5).double()
    plain = Attention(group_norm(8, 4), 2).double()
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if not name.startswith("kv")})
    assert torch.equal(layer(x), plain(x))
    masked = layer(x, tokens, torch.zeros(2, 4, dtype=torch.bool))
    torch.testing.assert_close(masked, plain(x), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(layer(x, tokens[:, :0]), plain(x), rtol=0.0, atol=1e-12)


def network(cross: str, **options: Any) -> UNet:
    made = randomized(UNet(1, 1, (8, 16), blocks=1, attention=(1,), groups=4, tokens=5, cross=cross, **options))
    assert isinstance(made, UNet)
    return made


@pytest.mark.parametrize("cross", CROSS)
@pytest.mark.parametrize("dims", [1, 2])
def test_tokens_are_attended_to_and_masked_ones_are_not(cross: str, dims: int) -> None:
    unet = network(cross, dims=dims)
    x, time, tokens = torch.randn(2, 1, *[8] * dims), torch.rand(2), torch.randn(2, 3, 5, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    out = unet(x, time, tokens=tokens, mask=mask)
    out.square().sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().sum(2) > 0).equal(mask)
    with torch.no_grad():
        others = torch.where(mask[..., None], tokens, 100.0)
        torch.testing.assert_close(unet(x, time, tokens=others, mask=mask), out, rtol=0.0, atol=1e-5)
        # all masked: as without; and in any order
        torch.testing.assert_close(unet(x, time)[1], out[1], rtol=0.0, atol=1e-5)
        assert not torch.allclose(unet(x, time)[0], out[0], atol=1e-3)
        swapped = unet(x, time, tokens=tokens.flip(1), mask=mask.flip(1))
        torch.testing.assert_close(swapped, out, rtol=0.0, atol=1e-5)


def test_which_attention_a_block_has() -> None:
    def kinds(cross: str) -> tuple[int, int]:
        modules = list(network(cross).modules())
        return sum(isinstance(m, Attention) for m in modules), sum(isinstance(m, CrossAttention) for m in modules)

    # one block on the way down, one in the middle, two on the way up
    assert [kinds(cross) for cross in CROSS] == [(4, 4), (4, 0), (0, 4)]


@pytest.mark.parametrize("cross", CROSS)
def test_attention_to_tokens_starts_at_zero_and_learns(cross: str) -> None:
    unet = UNet(1, 1, (8,), blocks=1, attention=(0,), groups=4, tokens=5, cross=cross)  # type: ignore[arg-type]
    x, time, tokens = torch.randn(2, 1, 4, 4), torch.rand(2), torch.randn(2, 3, 5)
    assert unet(x, time, tokens=tokens).abs().max() == 0.0
    randomized(unet)(x, time, tokens=tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())
    plain, saving = (network(cross, checkpointing=saves) for saves in (False, True))
    assert torch.equal(
        plain(torch.ones(1, 1, 8, 8), time[:1], tokens=tokens[:1]),
        saving(torch.ones(1, 1, 8, 8), time[:1], tokens=tokens[:1]),
    )
