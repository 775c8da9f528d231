"""Muon: the orthogonal factor, PyTorch's own on matrices, AdamW on the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sfumato.training.optimization import Muon, orthogonalized


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int, rate: float) -> None:
    for i, parameter in enumerate(module.parameters()):
        parameter.grad = random(*parameter.shape, seed=1000 * seed + i)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (1, 9), (9, 1), (80, 300)])
def test_the_orthogonal_factor(shape: tuple[int, int]) -> None:
    """The singular vectors stay, and the singular values come near 1."""
    given = random(5, *shape)
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    turned = u.mT @ orthogonalized(given) @ v.mT
    values = turned.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.3 and values.max() < 1.25 and 0.6 < values.mean() < 1.1
    assert (turned - torch.diag_embed(values)).abs().max() < 0.05


def test_nothing_comes_of_nothing() -> None:
    assert torch.equal(orthogonalized(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_matrices_move_as_by_the_optimizer_of_torch() -> None:
    peer = getattr(torch.optim, "Muon", None)
    if peer is None:
        pytest.skip("this torch has no Muon")
    ours = nn.Sequential(nn.Linear(12, 20, bias=False), nn.Linear(20, 12, bias=False), nn.Linear(12, 20, bias=False))
    theirs = copy.deepcopy(ours)
    one = Muon(ours, momentum=0.9, weight_decay=0.1)
    two = peer(theirs.parameters(), lr=0.0, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = copy.deepcopy(ours)
    for k in range(4):
        step(ours, one, k, 0.02)
        step(theirs, two, k, 0.02)
    for a, b, start in zip(ours.parameters(), theirs.parameters(), before.parameters(), strict=True):
        moved = (b - start).norm()
        # theirs computes in bfloat16
        assert (a - b).norm() < 0.02 * moved


def test_a_kernel_is_a_matrix_in_either_layout() -> None:
    kernel, flat = nn.Conv2d(6, 10, 3, bias=False), nn.Linear(54, 10, bias=False)
    with torch.no_grad():
        flat.weight.copy_(kernel.weight.flatten(1))
    last = copy.deepcopy(kernel).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    start = flat.weight.detach().clone()
    made = [(module, Muon(module)) for module in (kernel, flat, last)]
    for k in range(3):
        step(*made[0], k, 0.01)
        step(*made[2], k, 0.01)
        flat.weight.grad = random(10, 6, 3, 3, seed=1000 * k).flatten(1)
        for group in made[1][1].param_groups:
            group["lr"] = 0.01
        made[1][1].step()
    assert torch.equal(kernel.weight.flatten(1), flat.weight)
    assert torch.equal(last.weight, kernel.weight) and last.weight.is_contiguous(memory_format=torch.channels_last)
    # three steps whose root mean square is about a fifth of the rate
    assert 0.1 < float((flat.weight.detach() - start).square().mean().sqrt()) / 0.01 < 0.6


def test_other_weights_move_as_by_adamw() -> None:
    module = nn.ModuleList([nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Embedding(3, 4)])
    twin = copy.deepcopy(module)
    ours = Muon(module, betas=(0.8, 0.95), weight_decay=0.1)
    plain = [twin[0].bias, twin[1].weight, twin[1].bias]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": [twin[2].weight], "weight_decay": 0.1}]
    theirs = torch.optim.AdamW(groups, lr=0.0, betas=(0.8, 0.95), fused=True)
    for k in range(3):
        step(module, ours, k, 0.02)
        step(twin, theirs, k, 0.02)
    for (name, a), b in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b) == (name != "0.weight"), name


def test_its_copy_and_its_loaded_state_go_on_alike() -> None:
    module = nn.ModuleList([nn.Linear(4, 4), nn.GroupNorm(2, 4)])
    optimizer = Muon(module)
    step(module, optimizer, 0, 0.02)
    twin, (other, copied) = copy.deepcopy(module), copy.deepcopy((module, optimizer))
    loaded = Muon(twin)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, by in ((module, optimizer), (twin, loaded), (other, copied)):
        step(one, by, 1, 0.02)
    for three in zip(module.parameters(), twin.parameters(), other.parameters(), strict=True):
        assert torch.equal(three[0], three[1]) and torch.equal(three[0], three[2])


def test_weights_without_a_gradient_stay() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = copy.deepcopy(module)
    optimizer = Muon(module, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    module[0].weight.grad = torch.ones(3, 3)
    optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True)]
    assert same == [False, True, True, True]
