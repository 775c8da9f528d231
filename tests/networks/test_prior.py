"""The causal transformer of embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from sfumato.config import ModelConfig, parse
from sfumato.errors import InputError
from sfumato.networks.dit import positions
from sfumato.networks.execution import count
from sfumato.networks.prior import Prior
from tests.networks.test_dit import randomized


def network(**options: Any) -> Prior:
    return randomized(Prior(5, 5, **{"tokens": 3, "width": 8, "depth": 2, "heads": 2, "time_features": 6, **options}))


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * weight + bias


def test_it_is_its_definition() -> None:
    """Words, time, vector and query, one after the other; each attends to itself and to those before it."""
    model = network(depth=1, heads=1)
    p = dict(model.named_parameters())
    x, time, vector, tokens = torch.randn(1, 5), torch.tensor([0.3]), torch.randn(1, 8), torch.randn(1, 2, 3)

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    of_time = functional.silu(model.time(time) + vector)[0]
    words = linear("projection", tokens[0]) + positions([2], 8)
    ends = torch.stack([of_time, linear("first", x[0]), torch.zeros(8)]) + p["places"]
    h = torch.cat([words, ends])
    q, k, v = linear("blocks.0.attention.qkv", norm(h, p["blocks.0.norm1.weight"], p["blocks.0.norm1.bias"])).chunk(
        3, 1
    )
    rows: list[torch.Tensor] = []
    for place in range(5):
        share = (k[: place + 1] @ q[place] / 8**0.5).softmax(0)
        rows.append(share @ v[: place + 1])
    h = h + linear("blocks.0.attention.out", torch.stack(rows))
    inner = linear("blocks.0.first", norm(h, p["blocks.0.norm2.weight"], p["blocks.0.norm2.bias"]))
    h = h + linear("blocks.0.second", functional.gelu(inner))
    wanted = linear("last", norm(h[-1], p["norm.weight"], p["norm.bias"]))
    torch.testing.assert_close(model(x, time, vector, tokens)[0], wanted, atol=1e-5, rtol=1e-4)


def test_it_starts_at_zero_and_learns_everywhere() -> None:
    fresh = Prior(5, 5, tokens=3, width=8, depth=2, heads=2, time_features=6)
    x, time, vector, tokens = torch.randn(4, 5), torch.rand(4), torch.randn(4, 8), torch.randn(4, 3, 3)
    assert fresh(x, time, vector, tokens).abs().max() == 0.0
    model = network()
    out = model(x, time, vector, tokens)
    out.square().mean().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in model.parameters())
    for changed in ((x + 1.0, time, vector, tokens), (x, time + 1.0, vector, tokens), (x, time, vector + 1.0, tokens)):
        assert not torch.allclose(out, model(*changed), atol=1e-3)
    assert not torch.allclose(out, model(x, time, vector, tokens.flip(1)), atol=1e-3)  # the order of words counts
    assert torch.allclose(out[1:2], model(x[1:2], time[1:2], vector[1:2], tokens[1:2]), atol=1e-5)
    again = network(checkpointing=True)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x, time, vector, tokens), out)


def test_padding_changes_nothing() -> None:
    model = network()
    x, time, tokens = torch.randn(2, 5), torch.rand(2), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [False, False, False, False]])
    out = model(x, time, None, tokens, mask)
    other = torch.where(mask[..., None], tokens, 7.0)
    torch.testing.assert_close(model(x, time, None, other, mask), out)
    torch.testing.assert_close(model(x[:1], time[:1], None, tokens[:1, :2]), out[:1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(x[1:], time[1:]), out[1:], atol=1e-5, rtol=1e-4)
    assert out.isfinite().all()


def test_the_published_prior_has_its_size() -> None:
    """Width 2048, 24 blocks, 32 heads: 1.2 billion (Ramesh et al. 2022, app. C says 1B)."""
    with torch.device("meta"):
        model = Prior(1024, 1024, tokens=1024, width=2048, depth=24, heads=32)
    size = count(model, (1024,))
    assert size.parameters == pytest.approx(1.21e9, rel=0.02)


def test_bad_settings() -> None:
    for options in ({"width": 0}, {"depth": 0}, {"heads": 3}, {"heads": 0}):
        with pytest.raises(InputError, match=r"prior needs"):
            network(**options)
    with pytest.raises(InputError, match=r"vectors of length 5"):
        network()(torch.randn(2, 4), torch.rand(2))
    config = parse(ModelConfig, {"network": {"kind": "prior"}})
    with pytest.raises(InputError, match=r"unet or dit"):
        config.build_network((3, 8, 8))
