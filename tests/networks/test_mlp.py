"""The perceptron, and the features of time that are learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from sfumato.config import ModelConfig, parse
from sfumato.diffusion.denoiser import embed_log_sigma, embed_log_snr
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.networks.embeddings import Learned, Sinusoidal
from sfumato.networks.mlp import MLP, ModulatedBlock
from tests.networks.test_dit import randomized


def test_a_block_is_its_definition() -> None:
    block = randomized(ModulatedBlock(6, 4))
    p = dict(block.named_parameters())
    x, embedding = torch.randn(5, 6), torch.randn(5, 4)
    shift, scale, gate = (embedding @ p["modulation.weight"].T + p["modulation.bias"]).chunk(3, 1)
    h = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt() * (1 + scale) + shift
    h = h @ p["first.weight"].T + p["first.bias"]
    h = (h * h.sigmoid()) @ p["second.weight"].T + p["second.bias"]
    assert torch.allclose(block(x, embedding), x + gate * h, atol=1e-4)


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier", "learned"])
def test_it_starts_at_zero_and_learns_everywhere(kind: Any) -> None:
    network = MLP(2, 3, width=8, depth=2, embedding=12, time_features=6, time_kind=kind)
    x, time, vector = torch.randn(4, 2), torch.randn(4), torch.randn(4, 12)
    assert network(x, time).shape == (4, 3) and network(x, time).abs().max() == 0.0
    randomized(network)
    out = network(x, time, vector)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert not torch.allclose(out, network(x, time + 1.0, vector), atol=1e-3)
    assert not torch.allclose(out, network(x, time, vector + 1.0), atol=1e-3)
    assert torch.allclose(out[1:2], network(x[1:2], time[1:2], vector[1:2]), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x, time, vector).float()
    assert 0.0 < functional.mse_loss(rough, out) < 1e-3 * out.var()


def test_learned_features_start_as_sinusoids() -> None:
    time = torch.tensor([0.0, 0.3, -2.0])
    features = Learned(8, scale=3.0)
    assert torch.allclose(features(time), Sinusoidal(8, scale=3.0)(time), atol=1e-6)
    assert sum(p.numel() for p in features.parameters()) == 16


@pytest.mark.parametrize(
    "options", [{"width": 0}, {"depth": 0}, {"time_features": 3}, {"time_features": 0}, {"inputs": 0}]
)
def test_bad_settings(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"at least 1|even number"):
        MLP(**{"inputs": 2, "outputs": 2, **options})


@pytest.mark.parametrize("shape", [(1, 3), (1, 2, 4)])
def test_another_length(shape: tuple[int, ...], unchecked: None) -> None:
    with pytest.raises(InputError, match="vectors of length 2"):
        MLP(2, 2)(torch.randn(shape), torch.zeros(1))


def test_what_networks_are_told() -> None:
    """A quarter of the log-SNR and of log(sigma / alpha), by their definitions."""
    level = Level(torch.tensor([0.5]), torch.tensor([0.6]), torch.tensor([0.8]))
    assert torch.allclose(torch.as_tensor(embed_log_snr(level)), torch.tensor(0.36 / 0.64).log() / 4)
    assert torch.allclose(torch.as_tensor(embed_log_sigma(level)), torch.tensor(0.8 / 0.6).log() / 4)
    values = {"schedule": {"kind": "cosine"}, "network": {"kind": "mlp"}, "time": "log_snr"}
    assert parse(ModelConfig, values).build((2,)).embed is embed_log_snr


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        ("unet", (2,), "model.network.kind mlp"),
        ("dit", (2,), "model.network.kind mlp"),
        ("mlp", (1, 8, 8), "model.network.kind unet or dit"),
    ],
)
def test_data_that_a_network_does_not_take(network: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(ModelConfig, {"network": {"kind": network}}).build(shape)


def test_log_snr_where_there_is_no_signal() -> None:
    with pytest.raises(InputError, match=r"model\.time is log_snr"):
        parse(ModelConfig, {"schedule": {"kind": "flow"}, "time": "log_snr"})
