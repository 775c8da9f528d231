"""The optimizers and the learning rate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.training.precision import supports_bf16

Decay = Literal["constant", "cosine", "linear"]
LearningRate = Callable[[int], float]
"""The learning rate of optimizer step ``k = 1, 2, ...``."""


def learning_rate_schedule(
    peak: float, steps: int | None = None, *, warmup: int = 0, decay: Decay = "constant"
) -> LearningRate:
    r"""A linear warm-up to ``peak`` over ``warmup`` steps, then constant, or falling to zero at ``steps``.

    With :math:`p = (k - w) / (N + 1 - w)`, cosine is :math:`\tfrac12 (1 + \cos \pi p)` and linear is :math:`1 - p`.
    """
    if peak <= 0.0 or warmup < 0 or (steps is not None and steps < 1):
        raise InputError("The learning rate and steps must be positive, the warm-up not negative.")
    if decay != "constant" and steps is None:
        raise InputError(f"A {decay} decay of the learning rate needs the number of steps.")

    def rate(step: int) -> float:
        if step <= warmup:
            return peak * step / warmup
        if decay == "constant" or steps is None:
            return peak
        progress = min(1.0, (step - warmup) / max(1, steps + 1 - warmup))
        return peak * (0.5 * (1.0 + math.cos(math.pi * progress)) if decay == "cosine" else 1.0 - progress)

    return rate


def adamw(
    module: nn.Module, *, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused.

    Args:
        module: what is trained.
        betas: the decay of the two moments, each from 0 to below 1.
        weight_decay: decoupled weight decay, on matrices and kernels, not on biases and gains; at least 0.
    """
    _check(betas, weight_decay)
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices, rest = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=_fuses(parameters))


def _check(betas: tuple[float, ...], weight_decay: float) -> None:
    if not all(0.0 <= beta < 1.0 for beta in betas) or weight_decay < 0.0:
        needs = "betas and momentum in [0, 1), and weight_decay >= 0"
        raise InputError(f"An optimizer needs {needs}; got {betas} and {weight_decay}.")


def _fuses(parameters: list[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda", "xpu", "mps") and p.is_floating_point() for p in parameters)


_SMALL = 2**20  # the products of a matrix with itself up to which float32 is quicker: kernels of about 64 channels
_TOGETHER = 2**24  # numbers that are orthogonalized at once, unless one matrix has more: a balance of speed and memory


def orthogonalized(
    matrices: Float[Tensor, "count rows columns"], steps: int = 5
) -> Float[Tensor, "count rows columns"]:
    r"""About the nearest matrices with orthonormal rows (or columns, if they have fewer): singular values near 1.

    A matrix :math:`U S V^T` becomes :math:`U S' V^T` with :math:`S'` between 0.7 and 1.2, by ``steps`` of a quintic
    Newton-Schulz iteration :math:`X \leftarrow a X + (b X X^T + c (X X^T)^2) X` whose coefficients are chosen for speed
    near zero (Jordan et al. 2024). Singular values below a thousandth of the Frobenius norm come out smaller. It is
    computed in bfloat16 where the device has it, for any precision of the training; small matrices, which take
    longer so, in float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    short, long = sorted(matrices.shape[-2:])
    half = short * short * long > _SMALL and supports_bf16(matrices.device)
    x = matrices.bfloat16() if half else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    r"""Orthogonalized momentum for the matrices and kernels of a network, AdamW for its other weights.

    The momentum of a matrix, :math:`M \leftarrow \mu M + (1 - \mu) G` with a look ahead :math:`\mu M + (1 - \mu) G`,
    is replaced by the nearest orthogonal one, so that all directions of it move alike (Jordan et al. 2024). A kernel is
    a matrix of its outputs times all else. The step is :math:`0.2 \sqrt{\max(\text{rows}, \text{columns})}` times the
    learning rate, which makes its root mean square that of AdamW's, so that one rate serves both (Liu et al. 2025).

    PyTorch's own takes matrices only, and one at a time; here those of one shape are computed at once.

    Args:
        module: what is trained; weights of convolutions and linear layers are orthogonalized, tables of embeddings not.
        momentum: the decay of the momentum that is orthogonalized, from 0 to below 1.
        betas: the decay of AdamW's two moments for the other weights, each from 0 to below 1.
        weight_decay: decoupled weight decay, on matrices and kernels; at least 0.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        _check((*betas, momentum), weight_decay)
        layers = (m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d))
        inside = {id(layer.weight) for layer in layers}
        parameters = [p for p in module.parameters() if p.requires_grad]
        layered = [p for p in parameters if id(p) in inside]
        others = [p for p in parameters if id(p) not in inside]
        tables, rest = [p for p in others if p.ndim >= 2], [p for p in others if p.ndim < 2]
        adam = {"betas": betas, "fused": _fuses(others), "orthogonal": False}
        groups: list[dict[str, Any]] = [
            {"params": layered, "weight_decay": weight_decay, "orthogonal": True},
            {"params": tables, "weight_decay": weight_decay, **adam},
            {"params": rest, "weight_decay": 0.0, **adam},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; weights without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                self._orthogonal_steps(group)
        others = [group for group in self.param_groups if not group["orthogonal"]]
        if others:
            # of the groups and the state as they are now: those may have been loaded or copied
            adam = torch.optim.AdamW(others)
            adam.state = self.state
            adam.step()
        return loss

    def _orthogonal_steps(self, group: dict[str, Any]) -> None:
        shapes: defaultdict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                shapes[len(p), p[0].numel()].append(p)
        for shape, weights in shapes.items():
            count = max(1, _TOGETHER // math.prod(shape))
            for i in range(0, len(weights), count):
                self._orthogonal_step(shape, weights[i : i + count], group)

    def _orthogonal_step(self, shape: tuple[int, int], weights: list[Tensor], group: dict[str, Any]) -> None:
        rate, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        gradients = [p.grad for p in weights if p.grad is not None]
        for p in weights:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        past = [self.state[p]["momentum"] for p in weights]
        torch._foreach_lerp_(past, gradients, 1.0 - momentum)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        ahead = torch._foreach_lerp(gradients, past, momentum)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        directions = orthogonalized(torch.stack([a.reshape(shape) for a in ahead]))
        if weight_decay:
            torch._foreach_mul_(weights, 1.0 - rate * weight_decay)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        moves = [d.view(p.shape) for d, p in zip(directions, weights, strict=True)]
        torch._foreach_add_(weights, moves, alpha=-rate * 0.2 * math.sqrt(max(shape)))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
