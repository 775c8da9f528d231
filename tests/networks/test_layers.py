"""Resampling, dropout and attention to tokens, against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.networks.attention import CrossAttention
from sfumato.networks.blueprint import Blueprint
from sfumato.networks.cpu_kernels import attend
from sfumato.networks.layers import Downsample, Dropout, Resample, conv, group_norm
from sfumato.networks.unet import ResBlock


@pytest.mark.parametrize("taps", [(1.0, 1.0), (1.0, 3.0, 3.0, 1.0), (1.0, 2.0)])
def test_resampling_is_its_sum(taps: tuple[float, ...]) -> None:
    """Written out, with explicit loops, in one dimension; in two it is separable."""
    f, p = torch.tensor(taps) / sum(taps), len(taps) // 2 - 1
    x = torch.randn(2, 3, 6)
    down, up = torch.zeros(2, 3, 3), torch.zeros(2, 3, 12)
    for j in range(len(taps)):
        for i in range(3):
            if 0 <= 2 * i + j - p < 6:
                down[..., i] += f[j] * x[..., 2 * i + j - p]
        for i in range(6):
            if 0 <= 2 * i + j - p < 12:
                up[..., 2 * i + j - p] += 2.0 * f[j] * x[..., i]
    assert torch.allclose(Resample(1, "down", taps)(x), down, atol=1e-6)
    assert torch.allclose(Resample(1, "up", taps)(x), up, atol=1e-6)
    plane = torch.randn(1, 2, 4, 6)
    for direction in ("down", "up"):
        line = Resample(1, direction, taps)  # type: ignore[arg-type]
        rows = line(plane.flatten(0, 2)[:, None]).reshape(1, 2, 4, -1)
        both = line(rows.mT.flatten(0, 2)[:, None]).reshape(1, 2, rows.shape[3], -1).mT
        assert torch.allclose(Resample(2, direction, taps)(plane), both, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("taps", [(), (1.0,), (1.0, 2.0, 1.0), (1.0, -1.0)])
def test_filters_that_are_none(taps: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="even number of taps with a positive sum"):
        Resample(2, "down", taps)


def test_asymmetric_downsampling_pads_at_the_far_end() -> None:
    layer = Downsample(2, 3, "asymmetric")
    x = torch.randn(1, 3, 6, 8)
    weight, bias = layer.resample.weight, layer.resample.bias
    expected = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)  # type: ignore[arg-type]
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert layer(x).shape == (1, 3, 3, 4)


def test_dropout_is_a_function_of_key_layer_and_position() -> None:
    layer, other = Dropout(0.3, 0), Dropout(0.3, 1)
    x, keys = torch.ones(64, 8, 16, 16), torch.arange(64)
    out = layer(x, keys)
    assert torch.equal(out[5:9], layer(x[5:9], keys[5:9]))
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    # binomial: the fraction within five standard deviations, over all and in each sample
    dropped = (out == 0.0).double()
    assert abs(float(dropped.mean()) - 0.3) < 5.0 * (0.21 / x.numel()) ** 0.5
    assert (dropped.flatten(1).mean(1) - 0.3).abs().max() < 5.0 * (0.21 / x[0].numel()) ** 0.5

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(((a - 0.3) * (b - 0.3)).mean().abs()) / 0.21

    limit = 5.0 / (63 * 2048) ** 0.5
    assert correlation(dropped[1:], dropped[:-1]) < limit
    assert correlation(dropped[..., 1:], dropped[..., :-1]) < limit
    assert correlation(dropped, (other(x, keys) == 0.0).double()) < limit
    assert torch.equal(layer(x), x)
    with pytest.raises(InputError, match="below 1"):
        Dropout(1.0)


def test_attention_to_tokens_is_softmax_attention_with_one_zero() -> None:
    """Against the definition, head by head: masked tokens are unseen, and a zero can always be attended to."""
    layer = CrossAttention(group_norm(8, 4), 2, 5).requires_grad_(False)
    layer.out.weight.normal_()
    x, tokens = torch.randn(3, 8, 3, 4), torch.randn(3, 4, 5)
    mask = torch.tensor([[True, True, False, True], [True] * 4, [False] * 4])
    q = layer.q(layer.norm(x).flatten(2).transpose(1, 2))
    k, v = layer.kv(tokens).chunk(2, dim=2)
    expected = []
    for sample in range(3):
        seen = mask[sample].nonzero()[:, 0]
        zero = torch.zeros(1, 8)
        keys, values = torch.cat([k[sample, seen], zero]), torch.cat([v[sample, seen], zero])
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            weights = (q[sample][:, head] @ keys[:, head].T / 2.0).softmax(-1)
            heads.append(weights @ values[:, head])
        expected.append(x[sample] + layer.out(torch.cat(heads, 1)).T.reshape(8, 3, 4))
    assert torch.allclose(layer(x, tokens, mask), torch.stack(expected), atol=1e-5)
    assert torch.equal(layer(x), x)
    assert torch.equal(layer(x, tokens, mask)[2], x[2])


def test_blocks_resample_both_branches_and_rescale() -> None:
    resample = Resample(2, "down", (1.0, 3.0, 3.0, 1.0))
    options = {"rescale": True, "resample": "projected", "taps": (1.0, 3.0, 3.0, 1.0)}
    blueprint = Blueprint(channels=(4,), embedding=6, groups=2, **options)  # type: ignore[arg-type]
    block = ResBlock(blueprint, 4, 4, "down").requires_grad_(False)
    block.conv2.weight.normal_()
    x, embedding = torch.randn(2, 4, 6, 6), torch.randn(2, 6)
    h = block.norm2(block.conv1(resample(functional.silu(block.norm1(x)))))
    expected = (block.skip(resample(x)) + block.conv2(functional.silu(h))) / 2.0**0.5
    assert torch.allclose(block(x, embedding), expected, atol=1e-5)


def test_groups_must_be_some() -> None:
    with pytest.raises(InputError, match="at least 1 group"):
        group_norm(8, 0)


@pytest.mark.parametrize(
    ("channels", "groups", "least", "expected"), [(32, 32, 4, 8), (96, 32, 4, 24), (128, 32, 4, 32), (2, 32, 4, 1)]
)
def test_groups_have_at_least_so_many_channels(channels: int, groups: int, least: int, expected: int) -> None:
    assert group_norm(channels, groups, group_channels=least).num_groups == expected
    with pytest.raises(InputError, match="at least 1 channel"):
        group_norm(channels, groups, group_channels=0)


@pytest.mark.parametrize("queries", [40, 600], ids=["plain", "kernel"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_that_in_fp32(queries: int, masked: bool) -> None:
    """Both ways it is computed, with its gradients, to the rounding of bfloat16."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 3, n, 8, generator=generator) for n in (queries, 500, 500)]

    seen = torch.rand(2, 1, 1, 500, generator=generator) > 0.5 if masked else None
    found: list[list[torch.Tensor]] = []
    for kind in (torch.float32, torch.bfloat16):
        q, k, v = (x.detach().to(kind).requires_grad_() for x in given)
        out = attend(q, k, v, seen)
        (out.float() * given[0]).sum().backward()
        found.append([out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)])
    for one, other in zip(*found, strict=True):
        assert other.dtype == torch.bfloat16
        assert (other.float() - one).norm() < 0.02 * one.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_convolution_is_one(layout: torch.memory_format) -> None:
    """In training as in use, with its gradients."""
    ours = conv(2, 6, 5, kernel=1).double()
    theirs = torch.nn.Conv2d(6, 5, 1).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 6, 4, 7, dtype=torch.float64).to(memory_format=layout)
    found: list[list[torch.Tensor]] = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        out = module(given)
        out.square().sum().backward()
        found.append([out.detach(), given.grad, *(p.grad for p in module.parameters())])  # type: ignore[list-item]
        with torch.no_grad():
            torch.testing.assert_close(module(x), out)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
