"""Denoisers as they are sampled from: bfloat16 where it pays, near float32, and never against the processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sfumato.models.inference as inference
from sfumato.config import Config, SamplingConfig, merge, parse
from sfumato.errors import SfumatoWarning
from sfumato.models.inference import prepared, samples_in_bf16
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.networks.execution import Bfloat16Copy, copy_sharing_weights
from sfumato.recipes import digits
from sfumato.training.ema import Ema, power_law
from sfumato.training.precision import supports_bf16

needs_bf16 = pytest.mark.skipif(not supports_bf16(torch.device("cpu")), reason="no native bfloat16 here")
WIDE = {"kind": "unet", "channels": (32, 64), "blocks": 1, "attention": (1,), "groups": 8, "heads": 4}
DIGITS = digits()["sampling"]


def model(network: Any = None, shape: tuple[int, ...] = (1, 8, 8)) -> Model:
    over = {} if network is None else {"model": {"network": network}}
    config = parse(Config, merge(digits(), over))
    torch.manual_seed(0)
    made = Model.build(config, Info(shape=shape, std=0.5, train=10, heldout=0))
    for parameter in made.denoiser.parameters():
        # last layers are zero at the start, and a network of zeros is exact in any precision
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    return made


def asked(precision: str, **more: Any) -> SamplingConfig:
    return parse(SamplingConfig, merge(DIGITS, {"precision": precision, **more}))


NETWORKS: list[Any] = [
    WIDE,
    {"kind": "dit", "patch": 2, "width": 64, "depth": 2, "heads": 2, "time_features": 32},
]


@needs_bf16
@pytest.mark.parametrize("network", NETWORKS)
def test_samples_in_bf16_are_near_those_in_fp32(network: Any) -> None:
    made = model(network)
    one, other = (made.sample(16, sampling=asked(precision)) for precision in ("fp32", "bf16"))
    assert one.dtype == other.dtype == torch.float32
    difference = (one - other).square().mean().sqrt() / one.std()
    # bfloat16 keeps 8 bits: a rounding is 2^-9, and there are some dozens of layers
    assert 1e-5 < float(difference) < 0.03


@needs_bf16
def test_the_combination_with_x_stays_in_fp32() -> None:
    made = model()
    denoiser = prepared(made.denoiser, (1, 8, 8), asked("bf16"))
    x = torch.randn(4, 1, 8, 8)
    level = next(iter(made.denoiser.schedule(torch.tensor([0.001]))))
    found, exact = denoiser(x, level), made.denoiser(x, level)
    assert found.x0.dtype == found.eps.dtype == torch.float32
    # at almost no noise the estimate is x itself, to the bits that bfloat16 would not have
    assert float((found.x0 - exact.x0).detach().abs().max()) < 1e-4


def test_the_twin_shares_what_it_does_not_halve() -> None:
    network = model(WIDE).denoiser.network
    same, half = copy_sharing_weights(network), copy_sharing_weights(network, torch.bfloat16)
    assert all(a is b for a, b in zip(network.parameters(), same.parameters(), strict=True))
    assert all(a is b for a, b in zip(network.buffers(), half.buffers(), strict=True))
    assert same is not network and not same.training and network.training
    for module in half.modules():
        wanted = torch.bfloat16 if isinstance(module, nn.Linear | nn.Conv2d) else torch.float32
        assert all(p.dtype == wanted for p in module.parameters(recurse=False))
    assert all(p.dtype == torch.float32 for p in network.parameters())


@needs_bf16
def test_samples_are_of_the_weights_of_the_moment() -> None:
    """A half-precision copy that outlived a change of the weights would draw yesterday's images."""
    made = model()
    before = made.sample(4, sampling=asked("bf16"))
    average = Ema(made.denoiser, power_law())
    for value in average.average.values():
        value.mul_(0.5)
    with average.applied():
        assert not torch.equal(made.sample(4, sampling=asked("bf16")), before)
    assert torch.equal(made.sample(4, sampling=asked("bf16")), before)


def test_auto_leaves_tiny_networks_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "supports_bf16", lambda device: True)
    tiny, large = model(), model(WIDE, (1, 32, 32))
    assert not samples_in_bf16(tiny.denoiser, (1, 8, 8), asked("auto"))
    assert samples_in_bf16(large.denoiser, (1, 32, 32), asked("auto"))
    assert samples_in_bf16(tiny.denoiser, (1, 8, 8), asked("bf16"))
    assert not samples_in_bf16(large.denoiser, (1, 32, 32), asked("fp32"))
    # the recipe of the digits draws as it did
    assert prepared(tiny.denoiser, (1, 8, 8), parse(SamplingConfig, DIGITS)) is tiny.denoiser
    assert isinstance(prepared(large.denoiser, (1, 32, 32), asked("auto")).network, Bfloat16Copy)


def test_a_processor_without_bf16_samples_in_fp32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "supports_bf16", lambda device: False)
    made = model(WIDE, (1, 32, 32))
    exact = made.sample(2, sampling=asked("fp32", steps=2))
    with pytest.warns(SfumatoWarning, match=r"no native bfloat16: sampling in fp32"):
        assert torch.equal(made.sample(2, sampling=asked("bf16", steps=2)), exact)
    # who did not ask is not told
    assert torch.equal(made.sample(2, sampling=asked("auto", steps=2)), exact)


@needs_bf16
def test_a_copy_in_bf16_has_the_layout_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(WIDE)
    made.denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    x, level = torch.randn(2, 1, 32, 32), next(iter(made.denoiser.schedule(torch.tensor([0.5]))))
    found: list[torch.Tensor] = []
    for faster in (True, False):
        monkeypatch.setattr(inference, "convolves_faster_last", lambda device, faster=faster: faster)
        denoiser = prepared(made.denoiser, (1, 32, 32), asked("bf16"))
        first = next(p for p in denoiser.parameters() if p.ndim == 4 and min(p.shape) > 1)
        assert first.is_contiguous(memory_format=torch.channels_last) == faster
        with torch.no_grad():
            found.append(denoiser(x, level).x0)
    assert all(p.is_contiguous() for p in made.denoiser.parameters())
    assert float((found[0] - found[1]).square().mean().sqrt() / found[1].std()) < 0.03
