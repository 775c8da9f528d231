"""What a training step will cost, before there is one."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sfumato.networks.replicas import twin

PER_PARAMETER = 16
"""Bytes per parameter beside the gradient: the weight, its average, and the two moments of Adam, all in float32.

Muon keeps one, and works on copies of few weights at a time."""


class _Peak(TorchDispatchMode):
    """Follows the memory of all tensors that are made and freed within."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Step(nn.Module):
    """A call and its backward pass; in one, because checkpointing calls the layers again in the latter."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor) -> None:
        self.network(x, time).square().mean().backward()


def training_memory(network: nn.Module, shape: Sequence[int], batch: int) -> int:
    """The bytes that a training step needs in float32: weights, gradients, optimizer, average, and activations.

    The step is followed on tensors without content, so that it takes neither their memory nor their time, but with the
    operations that are run on the processor: attention keeps its inputs and its output, and no matrix of all pairs.
    What libraries use within an operation is not seen.

    Args:
        network: called as ``network(x, time)``.
        shape: ``(channels, *space)`` of a sample.
        batch: samples that are computed at once.
    """

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="cpu")

    # a compiled network that is called here would not be compiled any more
    step = _Step(twin(network).train(network.training))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        state: dict[str, Any] = {n: empty(p).requires_grad_(p.requires_grad) for n, p in step.named_parameters()}
        parameters = sum(tensor.numel() for tensor in state.values())
        state |= {name: empty(tensor) for name, tensor in step.named_buffers()}
        with _Peak() as followed:
            functional_call(step, state, (torch.empty(batch, *shape), torch.empty(batch)))
    return PER_PARAMETER * parameters + followed.peak


def matmul_speed(device: torch.device, dtype: torch.dtype, size: int = 768, seconds: float = 0.03) -> float:
    """Multiply-accumulates per second of matrix products, the best of as many as take some ``seconds``."""
    a, b = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    best, began = 0.0, time.perf_counter()
    while best == 0.0 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        # reading one number waits for the result
        float((a @ b)[0, 0])
        best = max(best, size**3 / (time.perf_counter() - start))
    return best


def cost(
    network: nn.Module,
    shape: Sequence[int],
    batch: int,
    parts: int,
    macs: int,
    bf16: bool,
    *,
    sample_seconds: float | None = None,
) -> str:
    """What a step will take, in words: memory, and the time, or where it is not known, what it can't be faster than.

    Args:
        network: called as ``network(x, time)``.
        shape: ``(channels, *space)`` of a sample.
        batch: samples that are computed at once.
        parts: how often that is done for a step.
        macs: multiply-accumulates of one call for one sample.
        bf16: whether it computes in bfloat16.
        sample_seconds: what a forward and backward pass took per sample, where that was measured.
    """
    device = next(network.parameters()).device
    memory = training_memory(network, shape, batch)
    most = f"{'at most ' if bf16 else ''}{memory / 2**30:.2g} GiB of memory"
    if sample_seconds is not None:
        return f"{most}; about {sample_seconds * batch * parts:.2g} s per step, as measured here"
    speed = matmul_speed(device, torch.bfloat16 if bf16 else torch.float32)
    # the gradients of weights and of activations take as much again, each
    seconds = 3 * macs * batch * parts / speed
    return f"{most}; at least {seconds:.2g} s per step, at the {2e-9 * speed:,.0f} GFLOP/s of matrix products here"
