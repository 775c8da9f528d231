"""The U-Nets of the papers, by their settings; and the slots of conditions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.conditioning import Conditioned, LowResolution
from sfumato.errors import InputError
from sfumato.networks.attention import Attention
from sfumato.networks.unet import ResBlock, UNet
from tests.networks.test_unet import randomized

FAMILY: dict[str, dict[str, Any]] = {
    "ddpm": {"resample": "asymmetric", "modulation": "additive", "attention": (1,), "initialization": "xavier"},
    "adm": {"resample": "block", "head_channels": 4, "attention": (1, 2), "dropout": 0.1},
    "ddpm++": {"resample": "projected", "rescale": True, "up_attention": "last", "attention": (1,), "first": 4},
    "ncsn++": {
        "resample": "projected",
        "taps": (1.0, 3.0, 3.0, 1.0),
        "rescale": True,
        "residual_input": True,
        "time_kind": "fourier",
        "vector_in": "features",
        "time_features": 12,
        "attention": (1,),
    },
    "fixed": {"resample": "fixed", "taps": (1.0, 3.0, 3.0, 1.0)},
}


def make(name: str, **more: Any) -> UNet:
    return UNet(2, 3, (8, 8, 12), **{"blocks": 1, "groups": 4, **FAMILY[name], **more})


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("name", FAMILY)
def test_all_of_it_computes_and_learns(name: str, dims: int) -> None:
    network = make(name, dims=dims)
    x, time = torch.randn(2, 2, *[8] * dims), torch.tensor([0.3, 2.0])
    assert network(x, time).abs().max() == 0.0
    randomized(network)
    out = network(x, time, vector=torch.randn(2, network.width), keys=torch.arange(2))
    assert out.shape == (2, 3, *[8] * dims)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("name", FAMILY)
def test_checkpointing_changes_no_number(name: str) -> None:
    plain, saving = randomized(make(name)), randomized(make(name, checkpointing=True))
    x, time, keys = torch.randn(2, 2, 8, 8), torch.tensor([0.3, 2.0]), torch.tensor([5, 6])
    outs = [network(x, time, keys=keys) for network in (plain, saving)]
    assert torch.equal(*outs)
    for out in outs:
        out.square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_attention_is_where_it_is_asked() -> None:
    def places(network: UNet) -> list[int]:
        return [sum(isinstance(m, Attention) for m in stage.modules()) for stage in (*network.down, *network.up)]

    # three resolutions down, then up from the coarsest: two blocks each on the way up
    assert places(make("adm")) == [0, 1, 1, 2, 2, 0]
    assert places(make("ddpm++")) == [0, 1, 0, 0, 1, 0]
    assert next(m for m in make("adm").down[2].modules() if isinstance(m, Attention)).heads == 3


def test_xavier_has_its_variance_and_leaves_zeros() -> None:
    network = UNet(3, 3, (64, 64), initialization="xavier", attention=(1,), blocks=1)
    weight = network.down[0][0].res.conv1.weight.detach()  # type: ignore[index, union-attr]
    assert float(weight.var()) == pytest.approx(2.0 / (64 * 9 + 64 * 9), rel=0.05)  # type: ignore[union-attr]
    assert not network.last.weight.any() and not network.first.bias.any()  # type: ignore[union-attr, operator]
    blocks = [m for m in network.modules() if isinstance(m, ResBlock)]
    assert not any(bool(block.conv2.weight.any()) for block in blocks)


def test_dropout_acts_with_keys_only() -> None:
    network = randomized(make("adm", dropout=0.5)).train()
    x, time = torch.randn(4, 2, 8, 8), torch.zeros(4)
    assert torch.equal(network(x, time), network(x, time))
    keys = torch.tensor([1, 2, 3, 4])
    out = network(x, time, keys=keys)
    assert not torch.allclose(out, network(x, time), atol=1e-2)
    assert torch.allclose(out[2:], network(x[2:], time[2:], keys=keys[2:]), atol=1e-5)


def test_tokens() -> None:
    network = randomized(make("adm", tokens=5, middle_attention=True))
    x, time, tokens = torch.randn(2, 2, 8, 8), torch.zeros(2), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    out = network(x, time, tokens=tokens, mask=mask)
    changed = tokens.clone()
    changed[0, 2] += 1.0
    assert torch.equal(out, network(x, time, tokens=changed, mask=mask))
    changed[0, 1] += 1.0
    assert not torch.allclose(out[0], network(x, time, tokens=changed, mask=mask)[0], atol=1e-3)
    # a sample without tokens is one whose tokens are all masked
    assert torch.allclose(out[1], network(x, time)[1], atol=1e-6)
    with pytest.raises(InputError, match="not made to attend to tokens"):
        make("adm")(x, time, tokens=tokens)


def test_channels_are_concatenated_at_any_size_of_the_condition() -> None:
    network = randomized(make("ddpm", concatenated=3))
    x, time, small = torch.randn(2, 2, 8, 8), torch.zeros(2), torch.rand(2, 3, 4, 4)
    model = Conditioned(network, {"low_res": LowResolution(up="bilinear")}, (3, 8, 8))
    upsampled = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    assert torch.allclose(model(x, time, low_res=small), network(x, time, channels=upsampled), atol=1e-6)
    assert torch.allclose(model(x, time), network(x, time), atol=1e-6)
    assert not torch.allclose(model(x, time, low_res=small), model(x, time), atol=1e-3)


def test_channels_of_another_size_are_refused(unchecked: None) -> None:
    with pytest.raises(InputError, match="3 channels of condition at the size of its input, 8x8"):
        make("ddpm", concatenated=3)(torch.zeros(1, 2, 8, 8), torch.zeros(1), channels=torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": (0, 7)}, "resolution 7: there are 3"),
        ({"attention": (-1,)}, "resolution -1"),
        ({"head_channels": 5, "attention": (0,)}, "heads of 5 channels do not divide 8"),
        ({"groups": 0}, "at least 1 group"),
        ({"dropout": 1.5}, "at least 0 and below 1"),
        ({"taps": (1.0, 2.0, 1.0)}, "even number of taps"),
    ],
)
def test_bad_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make("fixed", **options)
