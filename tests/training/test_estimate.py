"""The cost of a step against what it must be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.networks.unet import UNet
from sfumato.training.estimate import PER_PARAMETER, _Peak, cost, matmul_speed, training_memory


class Chain(nn.Module):
    """Keeps the result of each of its links for the backward pass."""

    def __init__(self, links: int) -> None:
        super().__init__()
        self.links, self.scale = links, nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x = x * self.scale
        for _ in range(self.links):
            x = x.tanh()
        return x


@pytest.mark.parametrize("links", [10, 40])
def test_a_chain_keeps_each_of_its_links(links: int) -> None:
    one = 4 * 8 * 3 * 16 * 16
    memory = training_memory(Chain(links), (3, 16, 16), 8) - PER_PARAMETER
    # beside them the input, its product, the square and some gradients
    assert links * one < memory < (links + 6) * one


def test_it_grows_with_the_batch_and_shrinks_with_checkpointing() -> None:
    def memory(batch: int, checkpointing: bool) -> int:
        return training_memory(UNet(3, 3, (32, 32), blocks=2, checkpointing=checkpointing), (3, 16, 16), batch)

    fixed = 20 * sum(p.numel() for p in UNet(3, 3, (32, 32), blocks=2).parameters())
    one, two = (memory(batch, False) - fixed for batch in (8, 16))
    assert two == pytest.approx(2 * one, rel=0.05)
    assert memory(16, True) < 0.7 * memory(16, False)


@pytest.mark.parametrize("attention", [(), (0, 1)])
def test_it_is_what_a_real_step_keeps(attention: tuple[int, ...]) -> None:
    """With the kernels of a real step, whose attention keeps no matrix of all pairs of places."""
    network = UNet(3, 3, (16, 32), blocks=1, attention=attention, groups=8)
    with _Peak() as followed:
        network(torch.randn(4, 3, 32, 32), torch.rand(4)).square().mean().backward()
    real = followed.peak + PER_PARAMETER * sum(p.numel() for p in network.parameters())
    assert training_memory(network, (3, 32, 32), 4) == pytest.approx(real, rel=0.05)
    assert all(p.device.type == "cpu" for p in network.parameters())


def test_it_is_said_in_words() -> None:
    network = UNet(1, 1, (8,), blocks=1)
    said = cost(network, (1, 8, 8), 4, 2, 10**6, bf16=False)
    assert "GiB of memory; at least" in said and "GFLOP/s" in said
    assert cost(network, (1, 8, 8), 4, 2, 10**6, bf16=True).startswith("at most")


def test_the_speed_of_matrix_products() -> None:
    """More than a thousand million a second anywhere that trains, and less than any machine has."""
    assert 1e8 < matmul_speed(torch.device("cpu"), torch.float32, 256, 0.01) < 1e15
