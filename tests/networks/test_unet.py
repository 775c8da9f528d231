"""The U-Net: shapes, sizes, what it starts as, what it depends on."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sfumato.conditioning import Conditioned, Label
from sfumato.conditioning.base import null_of
from sfumato.errors import InputError
from sfumato.networks.attention import Attention
from sfumato.networks.blueprint import Blueprint
from sfumato.networks.dit import DiT
from sfumato.networks.embeddings import RandomFourier, Sinusoidal
from sfumato.networks.layers import group_norm
from sfumato.networks.mlp import MLP
from sfumato.networks.unet import ResBlock, UNet


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Weights without the zeros that residual branches start with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return module.eval()


@pytest.mark.parametrize(
    ("shape", "channels", "dims"),
    [
        ((1, 8, 8), (8, 16), 2),
        ((3, 12, 20), (8, 8, 16), 2),
        ((4, 16, 8), (8,), 2),
        ((2, 64), (8, 8, 8), 1),
        ((7, 6), (8, 16), 1),
    ],
)
def test_any_channels_and_sizes_that_divide(shape: tuple[int, ...], channels: tuple[int, ...], dims: int) -> None:
    network = UNet(shape[0], shape[0] + 1, channels, blocks=1, attention=(len(channels) - 1,), groups=4, dims=dims)  # type: ignore[arg-type]
    out = network(torch.randn(2, *shape), torch.tensor([0.1, 3.0]))
    assert out.shape == (2, shape[0] + 1, *shape[1:])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 30, 32), "28x32 or 32x32"),
        ((3, 3, 8), "4x8"),
        ((1, 32, 32), "3 channels"),
        ((3, 32), "2 spatial axes"),
    ],
)
def test_sizes_that_do_not_divide_are_named(shape: tuple[int, ...], words: str, unchecked: None) -> None:
    network = UNet(3, 3, (8, 8, 8), groups=4)
    with pytest.raises(InputError, match=words):
        network(torch.randn(1, *shape), torch.zeros(1))


def test_it_starts_at_zero_and_learns_everywhere() -> None:
    network = UNet(1, 1, (8, 16), blocks=1, attention=(1,), groups=4)
    x, time = torch.randn(4, 1, 8, 8), torch.randn(4)
    assert network(x, time).abs().max() == 0.0
    randomized(network)
    network(x, time).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("skips", ["all", "blocks"])
@pytest.mark.parametrize("resample", ["learned", "fixed"])
@pytest.mark.parametrize("dims", [1, 2])
def test_every_way_to_join_and_to_resample(skips: str, resample: str, dims: int) -> None:
    network = UNet(2, 2, (8, 8, 16), blocks=2, groups=4, skips=skips, resample=resample, middle=1, dims=dims)  # type: ignore[arg-type]
    x = torch.randn(2, 2, *[16] * dims)
    randomized(network)(x, torch.zeros(2)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    ups = sum(isinstance(m, ResBlock) for m in network.up.modules())
    assert ups == (9 if skips == "all" else 6)


def test_it_depends_on_time_and_on_the_vector_but_not_across_samples() -> None:
    network = randomized(UNet(1, 1, (8, 16), blocks=1, attention=(1,), groups=4, embedding=12))
    x, time, vector = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 2.0]), torch.randn(3, 12)
    out = network(x, time, vector)
    assert not torch.allclose(out, network(x, time + 1.0, vector))
    assert not torch.allclose(out, network(x, time, vector + 1.0))
    assert torch.allclose(out[1:2], network(x[1:2], time[1:2], vector[1:2]), atol=1e-5)


def test_attention_is_softmax_attention() -> None:
    """Against the definition, head by head, with explicit loops."""
    layer = randomized(Attention(group_norm(8, 4), 2))
    x = torch.randn(2, 8, 3, 4)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)  # type: ignore[operator]
    q, k, v = functional.linear(tokens, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1)  # type: ignore[union-attr, arg-type]
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2.0
        heads.append(scores.softmax(-1) @ v[..., part])
    expected = x + layer.out(torch.cat(heads, -1)).transpose(1, 2).reshape(x.shape)  # type: ignore[operator]
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_adaptive_group_norm_scales_and_shifts() -> None:
    block = randomized(ResBlock(Blueprint(channels=(4,), embedding=6, groups=2), 4, 4))
    x, embedding = torch.randn(2, 4, 5, 5), torch.randn(2, 6)
    scale, shift = block.modulation(embedding)[:, :, None, None].chunk(2, 1)  # type: ignore[operator, index]
    h = block.norm2(block.conv1(functional.silu(block.norm1(x)))) * (1 + scale) + shift  # type: ignore[operator]
    assert torch.allclose(block(x, embedding), x + block.conv2(functional.silu(h)), atol=1e-5)  # type: ignore[operator]


def test_sinusoidal_features() -> None:
    out = Sinusoidal(6, period=1000.0, scale=2.0)(torch.tensor([0.7]))
    w = 2.0 * torch.tensor([1.0, 0.1, 0.01])
    assert torch.allclose(out, torch.cat([(0.7 * w).cos(), (0.7 * w).sin()])[None], atol=1e-6)


def test_random_fourier_features_are_those_of_a_gaussian_kernel() -> None:
    """Their products are exp(-s^2 (t - t')^2 / 2), to the error of Monte Carlo."""
    count, scale = 20_000, 2.5
    features = RandomFourier(2 * count, scale)
    times = torch.tensor([0.0, 0.1, 0.35, 1.0])
    out = features(times)
    expected = torch.exp(-0.5 * scale**2 * (times[:, None] - times).square())
    assert (out @ out.T / count - expected).abs().max() < 5.0 / count**0.5
    assert torch.equal(RandomFourier(6).frequencies, RandomFourier(6).frequencies)
    assert list(features.state_dict()) == ["frequencies"]


def test_an_additive_embedding_is_the_same_at_every_position() -> None:
    block = randomized(ResBlock(Blueprint(channels=(4,), embedding=6, groups=2, modulation="additive"), 4, 4))
    x, embedding = torch.randn(2, 4, 5, 5), torch.randn(2, 6)
    h = block.conv1(functional.silu(block.norm1(x)))  # type: ignore[operator]
    h = block.norm2(h + block.modulation(embedding)[:, :, None, None])  # type: ignore[operator, index]
    assert torch.allclose(block(x, embedding), x + block.conv2(functional.silu(h)), atol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier"])
@pytest.mark.parametrize("modulation", ["adaptive", "additive"])
def test_every_way_to_tell_the_time(kind: str, modulation: str) -> None:
    options = {"time_kind": kind, "modulation": modulation}
    network = randomized(UNet(1, 1, (8, 8), blocks=1, groups=4, **options))  # type: ignore[arg-type]
    x = torch.randn(2, 1, 4, 4)
    one, other = network(x, torch.tensor([0.1, 0.1])), network(x, torch.tensor([0.1, 0.9]))
    assert torch.allclose(one[0], other[0], atol=1e-6) and not torch.allclose(one[1], other[1], atol=1e-3)


def test_labels() -> None:
    network = UNet(1, 1, (8,), blocks=1, groups=4, embedding=12)
    model = randomized(Conditioned(network, {"label": Label(names=("a", "b", "c"))}, (1, 4, 4)))
    x, time = torch.randn(3, 1, 4, 4), torch.zeros(3)
    labels = torch.tensor([0, 1, 2])
    out = model(x, time, label=labels)
    assert not torch.allclose(out[0], model(x, time, label=torch.tensor([1, 1, 2]))[0])
    dropped = null_of(labels, torch.tensor([True, False, True]))
    mixed = model(x, time, label=dropped)
    assert torch.allclose(mixed[1], out[1], atol=1e-6)
    # a missing condition is the null condition
    assert torch.allclose(mixed[[0, 2]], model(x, time)[[0, 2]], atol=1e-6)
    with pytest.raises(InputError, match="did you mean 'label'"):
        model(x, time, labels=labels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": ()}, "are at least 1"),
        ({"blocks": 0}, "are at least 1"),
        ({"middle": -1}, "middle at least 0"),
        ({"skip_scale": 0.0}, "is above 0; got 0"),
        ({"tokens": 4, "middle": 0}, "where there is self-attention"),
        ({"attention": (3,)}, "resolution 3"),
        ({"heads": 3, "channels": (8, 8)}, "do not divide"),
        ({"time_features": 5}, "even number .* from 2 on"),
        ({"channels": (1, 8)}, "even number .* from 2 on"),
        ({"tokens": 4, "middle_attention": False}, "where there is self-attention"),
    ],
)
def test_bad_settings(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        UNet(1, 1, **{"channels": (8, 16), "groups": 4, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"vector": torch.zeros(2, 11)}, r"vectors have shape \(2, 11\); expected \(2, 12\)"),
        ({"vector": torch.zeros(3, 12)}, r"expected \(2, 12\)"),
        ({"tokens": torch.zeros(2, 5, 3)}, r"tokens have shape \(2, 5, 3\); expected \(2, any number, 4\)"),
        ({"tokens": torch.zeros(2, 4)}, "any number, 4"),
        (
            {"tokens": torch.zeros(2, 5, 4), "mask": torch.ones(2, 6, dtype=torch.bool)},
            r"got torch.bool of shape \(2, 6\)",
        ),
        ({"channels": torch.zeros(3, 1, 8, 8)}, r"each of 2 samples; got shape \(3, 1, 8, 8\)"),
    ],
)
def test_conditions_of_another_shape(given: dict[str, torch.Tensor], words: str, unchecked: None) -> None:
    network = UNet(1, 1, (8,), blocks=1, groups=4, embedding=12, tokens=4, concatenated=1)
    with pytest.raises(InputError, match=words):
        network(torch.zeros(2, 1, 8, 8), torch.zeros(2), **given)


def test_vectors_of_another_width_in_the_other_networks(unchecked: None) -> None:
    with pytest.raises(InputError, match=r"expected \(2, 8\)"):
        MLP(3, 3, width=8)(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(InputError, match=r"expected \(2, 8\)"):
        DiT(1, 1, (4, 4), width=8, depth=1, heads=2)(torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.zeros(1, 8))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("options", [{}, {"residual_input": True, "resample": "projected", "concatenated": 1}])
def test_a_patch_is_one_position(dims: Literal[1, 2], options: dict[str, Any]) -> None:
    """A network of patches is the plain one of inputs whose patches are channels."""
    network = randomized(UNet(2, 3, (8, 16), blocks=1, groups=4, patch=2, dims=dims, **options))
    size, told = (8,) * dims, options.get("concatenated", 0)
    x, time = torch.randn(2, 2, *size), torch.rand(2)
    channels = torch.randn(2, told, *size) if told else None
    out = network(x, time, channels=channels)
    assert out.shape == (2, 3, *size)
    plain = UNet(
        2 * 2**dims, 3 * 2**dims, (8, 16), blocks=1, groups=4, dims=dims, **{**options, "concatenated": told * 2**dims}
    )
    plain.load_state_dict(network.state_dict())

    def cut(values: Tensor) -> Tensor:
        parts = [values[(..., *[slice(i, None, 2) for i in at])] for at in product(range(2), repeat=dims)]
        return torch.stack(parts, dim=2).flatten(1, 2)

    expected = plain.eval()(cut(x), time, channels=None if channels is None else cut(channels))
    assert torch.allclose(cut(out), expected, atol=1e-6)
    with pytest.raises(InputError, match="not divisible by the down-sampling of 4"):
        network(torch.zeros(1, 2, *[6] * dims), time[:1])
    with pytest.raises(InputError, match="are at least 1"):
        UNet(1, 1, (8,), patch=0)
