"""The diffusion transformer: published sizes, its parts against their definitions, what it starts as and depends on."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sfumato.conditioning import Conditioned, Tokens
from sfumato.errors import InputError
from sfumato.networks.dit import DiT, DiTBlock, patchify, positions, unpatchify
from tests.networks.weights import randomized


def small(size: tuple[int, ...] = (4, 6), **options: Any) -> DiT:
    torch.manual_seed(0)
    return DiT(2, 3, size, **{"patch": 2, "width": 8, "depth": 2, "heads": 2, "time_features": 8, **options})


@pytest.mark.parametrize(
    ("preset", "millions"), [("DiT-S/2", 33), ("DiT-B/4", 130), ("DiT-L/2", 458), ("DiT-XL/2", 675)]
)
def test_published_sizes(preset: Any, millions: int) -> None:
    """For latents of 32x32x4 with a learned variance and 1000 classes, as published (their count has the positions)."""
    with torch.device("meta"):
        network = DiT(4, 8, (32, 32), preset=preset)
        counted = sum(p.numel() for p in network.parameters()) + 1001 * network.width
    assert round((counted + network.positions.numel()) / 1e6) == millions
    w, depth, p = network.width, len(network.blocks), network.patch**2
    attention, feedforward, modulation = 4 * w * w + 4 * w, 8 * w * w + 5 * w, 6 * w * w + 6 * w
    ends = (4 * p + 1) * w + (w + 1) * 8 * p + 2 * w * (w + 1)
    time, labels = 257 * w + (w + 1) * w, 1001 * w
    assert counted == depth * (attention + feedforward + modulation) + ends + time + labels


def test_every_preset_is_what_its_name_says() -> None:
    for size, patch in itertools.product(("S", "B", "L", "XL"), (2, 4, 8)):
        with torch.device("meta"):
            network = DiT(3, 3, (16, 16), preset=f"DiT-{size}/{patch}", depth=1)  # type: ignore[arg-type]
        assert network.patch == patch and len(network.blocks) == 1
    with torch.device("meta"):
        other = DiT(3, 3, (16, 16), preset="DiT-B/2", patch=4, width=96, depth=3, heads=3)
    assert (other.patch, other.width, len(other.blocks)) == (4, 96, 3)


def test_an_unknown_preset(unchecked: None) -> None:
    with pytest.raises(InputError, match="no preset 'DiT-M/2'"):
        DiT(3, 3, (16, 16), preset="DiT-M/2")  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "patch"), [((3, 6, 10), 2), ((1, 9, 3), 3), ((2, 12), 4), ((4, 5, 7), 1)])
def test_patches_are_cut_and_joined(shape: tuple[int, ...], patch: int) -> None:
    x = torch.randn(2, *shape)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, math.prod(shape[1:]) // patch ** len(shape[1:]), shape[0] * patch ** len(shape[1:]))
    assert torch.equal(unpatchify(tokens, patch, shape[1:]), x)


def test_a_patch_is_where_it_should_be() -> None:
    x = torch.randn(1, 3, 4, 6)
    second_row_third = patchify(x, 2)[0, 5].reshape(2, 2, 3)
    assert torch.equal(second_row_third, x[0, :, 2:4, 4:6].permute(1, 2, 0))


def test_positions_in_closed_form() -> None:
    found = positions((3, 5), 12)
    for row in range(3):
        for column in range(5):
            angles = [[place / 10_000 ** (i / 3) for i in range(3)] for place in (column, row)]
            expected = [wave(a) for angle in angles for wave in (math.sin, math.cos) for a in angle]
            assert found[5 * row + column].tolist() == pytest.approx(expected, abs=1e-6)
    line = positions((4,), 6)
    assert line[3].tolist() == pytest.approx(
        [wave(3 / 10_000 ** (i / 3)) for wave in (math.sin, math.cos) for i in range(3)], abs=1e-6
    )


def _norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention, head by head, with explicit loops."""
    size = q.shape[-1] // heads
    out: list[Tensor] = []
    for h in range(heads):
        part = slice(size * h, size * (h + 1))
        out.append((q[..., part] @ k[..., part].mT / math.sqrt(size)).softmax(-1) @ v[..., part])
    return torch.cat(out, -1)


@pytest.mark.parametrize("cross", [False, True])
def test_a_block_is_its_definition(cross: bool) -> None:
    block = randomized(DiTBlock(8, 2, cross))
    p = dict(block.named_parameters())
    x, embedding, context = torch.randn(3, 5, 8), torch.randn(3, 8), torch.randn(3, 4, 8)

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    b1, s1, g1, b2, s2, g2 = linear("modulation", embedding).reshape(3, 6, 1, 8).unbind(1)
    h = _norm(x) * (1 + s1) + b1
    expected = x + g1 * linear("attention.out", _attend(*linear("attention.qkv", h).chunk(3, -1), 2))
    if cross:
        q = linear("cross.q", _norm(expected) * p["cross.norm.weight"] + p["cross.norm.bias"])
        expected = expected + linear("cross.out", _attend(q, *linear("cross.kv", context).chunk(2, -1), 2))
    h = linear("first", _norm(expected) * (1 + s2) + b2)
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    expected = expected + g2 * linear("second", h)
    assert torch.allclose(block(x, embedding, context if cross else None), expected, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"tokens": 4}, {"tokens": 4, "conditioning": "context"}])
@pytest.mark.parametrize("size", [(4, 6), (12,)])
def test_it_starts_at_zero_and_learns_everywhere(size: tuple[int, ...], options: dict[str, Any]) -> None:
    network = small(size, **options)
    x, time = torch.randn(3, 2, *size), torch.randn(3)
    cond = {"tokens": torch.randn(3, 5, 4)} if options else {}
    out = network(x, time, **cond)
    assert out.shape == (3, 3, *size) and out.abs().max() == 0.0
    # every block starts as the identity
    h = torch.randn(3, 7, 8)
    context = torch.randn(3, 2, 8) if network.nothing is not None else None
    assert all(torch.equal(block(h, torch.randn(3, 8), context), h) for block in network.blocks)
    randomized(network)
    network(x, time, **cond).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_it_depends_on_time_and_on_the_vector_but_not_across_samples() -> None:
    network = randomized(small())
    x, time, vector = torch.randn(3, 2, 4, 6), torch.tensor([0.1, 0.5, 2.0]), torch.randn(3, 8)
    out = network(x, time, vector)
    assert not torch.allclose(out, network(x, time + 1.0, vector), atol=1e-3)
    assert not torch.allclose(out, network(x, time, vector + 1.0), atol=1e-3)
    assert torch.allclose(out[1:2], network(x[1:2], time[1:2], vector[1:2]), atol=1e-5)


def test_without_positions_it_moves_with_its_patches() -> None:
    """A transformer knows the place of a patch by its position alone."""
    network = small()
    randomized(network)
    x, time = torch.randn(2, 2, 4, 6), torch.randn(2)
    rolled = x.roll(2, dims=3)
    assert not torch.allclose(network(rolled, time), network(x, time).roll(2, dims=3), atol=1e-3)
    network.positions.zero_()
    assert torch.allclose(network(rolled, time), network(x, time).roll(2, dims=3), atol=1e-4)


@pytest.mark.parametrize("conditioning", ["cross", "context"])
def test_masked_tokens_have_no_influence(conditioning: str) -> None:
    network = randomized(small(tokens=4, conditioning=conditioning))
    x, time, tokens = torch.randn(2, 2, 4, 6), torch.randn(2), torch.randn(2, 5, 4)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    out = network(x, time, tokens=tokens, mask=mask)
    other = torch.where(mask[..., None], tokens, 100.0 * torch.randn(2, 5, 4))
    assert torch.allclose(network(x, time, tokens=other, mask=mask), out, atol=1e-5)
    kept = network(x[:1], time[:1], tokens=tokens[:1, mask[0]])
    assert torch.allclose(out[:1], kept, atol=1e-5)
    # no token at all is no condition
    assert torch.allclose(out[1:], network(x[1:], time[1:]), atol=1e-5)
    # those that are seen matter, in no order
    assert not torch.allclose(network(x, time, tokens=tokens), out, atol=1e-3)
    assert torch.allclose(network(x, time, tokens=tokens.flip(1)), network(x, time, tokens=tokens), atol=1e-5)


@pytest.mark.parametrize("conditioning", ["cross", "context"])
def test_text_comes_in_as_tokens_and_as_their_pooled_vector(conditioning: str) -> None:
    """Through the condition for tokens: padding says nothing by either way, and both learn from what is seen."""
    text = Tokens(features=4, mask_column="seen")
    inner = small(tokens=4, conditioning=conditioning)
    model = randomized(Conditioned(inner, {"text": text}, (2, 4, 6)))
    x, time, value = torch.randn(2, 2, 4, 6), torch.randn(2), torch.randn(2, 5, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    seen: list[dict[str, Tensor]] = []
    inner.register_forward_pre_hook(lambda module, given, slots: seen.append(slots), with_kwargs=True)
    out = model(x, time, text=value, text_mask=mask)
    for slot in ("vector", "tokens"):
        (gradient,) = torch.autograd.grad(out.square().sum(), seen[0][slot], retain_graph=True)
        assert gradient.abs().sum() > 0
    (gradient,) = torch.autograd.grad(out.square().sum(), value)
    assert (gradient.abs().sum(2) > 0).equal(mask)
    padding = torch.where(mask[..., None], value, 50.0)
    torch.testing.assert_close(model(x, time, text=padding, text_mask=mask), out, rtol=0.0, atol=1e-5)


def test_concatenated_channels() -> None:
    network = randomized(small(concatenated=1))
    x, time, channels = torch.randn(2, 2, 4, 6), torch.randn(2), torch.randn(2, 1, 4, 6)
    out = network(x, time, channels=channels)
    assert out.shape == (2, 3, 4, 6)
    missing = network(x, time)
    assert not torch.allclose(out, missing, atol=1e-3)
    assert torch.equal(missing, network(x, time, channels=torch.zeros_like(channels)))


@pytest.mark.parametrize("options", [{}, {"tokens": 4}])
def test_checkpointing_changes_nothing_but_the_memory(options: dict[str, Any]) -> None:
    plain, saving = small(**options), small(checkpointing=True, **options)
    x, time = torch.randn(2, 2, 4, 6), torch.randn(2)
    cond = {"tokens": torch.randn(2, 3, 4)} if options else {}
    kept: list[int] = []
    for network in (plain, saving):
        randomized(network).train()
        elements = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal elements
            elements += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(x, time, **cond).square().mean()
        kept.append(elements)
        loss.backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)  # type: ignore[arg-type]
    assert kept[1] < 0.5 * kept[0]


def test_bf16_autocast_is_near_fp32() -> None:
    network = randomized(small(tokens=4))
    x, time, tokens = torch.randn(2, 2, 4, 6), torch.randn(2), torch.randn(2, 5, 4)
    out = network(x, time, tokens=tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x, time, tokens=tokens).float()
    assert 0.0 < functional.mse_loss(rough, out) < 1e-3 * out.var()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (5, 6)}, "5x6 is not divisible by the patch of 2; resize to 4x6 or 6x6"),
        ({"size": (4, 6, 2)}, "signals"),
        ({"size": ()}, "signals"),
        ({"heads": 3}, "3 attention heads do not divide a width of 8"),
        ({"width": 6, "heads": 1}, "multiple of 4"),
        ({"depth": 0}, "at least 1"),
        ({"patch": 0}, "at least 1"),
        ({"time_features": 3}, "even number"),
    ],
)
def test_bad_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        small(**options)


@pytest.mark.parametrize(
    ("shape", "cond", "words"),
    [
        ((2, 6, 4), {}, "2 channels of 4x6"),
        ((1, 4, 6), {}, "2 channels of 4x6"),
        ((2, 4, 6), {"tokens": (1, 5, 3)}, "any number, 4"),
        ((2, 4, 6), {"tokens": (1, 5, 4), "mask": (1, 4)}, "mask is True for"),
        ((2, 4, 6), {"channels": (1, 1, 4, 6)}, "0 channels of condition"),
    ],
)
def test_bad_input(shape: tuple[int, ...], cond: dict[str, tuple[int, ...]], words: str, unchecked: None) -> None:
    slots = {name: torch.ones(size, dtype=torch.bool if name == "mask" else None) for name, size in cond.items()}
    with pytest.raises(InputError, match=words):
        small(tokens=4)(torch.randn(1, *shape), torch.zeros(1), **slots)
    with pytest.raises(InputError, match="not made to attend to tokens"):
        small()(torch.randn(1, 2, 4, 6), torch.zeros(1), tokens=torch.randn(1, 2, 4))
