"""TF32: asked for on a GPU while a training lasts, and said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sfumato.training.precision import multiplies_in_tf32, prefers_channels_last, tf32

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def test_it_holds_within_and_not_after() -> None:
    with pytest.raises(ZeroDivisionError), tf32(GPU):
        assert torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"
    with tf32(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("medium")
    with tf32(GPU):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "medium"


def test_it_is_said_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda able=able: able)
        assert not multiplies_in_tf32(GPU) and not multiplies_in_tf32(CPU)
        with tf32(GPU):
            assert multiplies_in_tf32(GPU) is able
            assert not multiplies_in_tf32(CPU)


@pytest.mark.parametrize(
    ("network", "prefers"), [(nn.Conv2d(1, 1, 3), True), (nn.Conv1d(1, 1, 3), False), (nn.Linear(2, 2), False)]
)
def test_kernels_of_two_dimensions_prefer_the_channels_last(network: nn.Module, prefers: bool) -> None:
    assert prefers_channels_last(network, CPU) is prefers and prefers_channels_last(network, GPU) is prefers
    assert not prefers_channels_last(network, torch.device("mps"))
