"""The network of a model as a graph that other programs run, and the network that calls such a program."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sfumato.conditioning.base import require_known
from sfumato.errors import InputError
from sfumato.interop.model import classes_of, null_conditions
from sfumato.models.model import Model

OUTPUT = "output"
"""The name of the network's output in every graph."""

Arrays = list[Any]
"""NumPy arrays in the order of a graph's inputs: x, time, conditions."""


def require(package: str, extra: str, what: str) -> Any:
    """An optional package, or a sentence that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f'{what} needs {package}; install it with: pip install "sfumato[{extra}]"') from None


class _Flat(nn.Module):
    """A network that takes its conditions by place, as graphs do."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
        return self.network(x, time, **dict(zip(self.names, conditions, strict=True)))


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as a graph, for any batch size.

    Attributes:
        exported: the graph of torch.
        inputs: the names of its inputs: ``x``, ``time`` and the conditions.
        sides: the shape of one ``x``.
        nulls: the null value of each condition, for one sample.
        classes: the number of classes of each condition that is a label.
    """

    exported: ExportedProgram
    inputs: tuple[str, ...]
    sides: tuple[int, ...]
    nulls: dict[str, Tensor]
    classes: dict[str, int]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input for one sample."""
        return {"x": self.sides, "time": (), **{name: tuple(null.shape[1:]) for name, null in self.nulls.items()}}

    def arrays(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Arrays:
        """NumPy arrays in the order of the inputs, the null value for conditions that are missing."""
        count = x.shape[0]
        for name in cond:
            require_known(name, self.nulls)
        for name, tensor in {"x": x, "time": time, **cond}.items():
            expected = (count, *self.shapes[name])
            if tuple(tensor.shape) != expected:
                raise InputError(f"The engine takes {name} of shape {expected} here, and got {tuple(tensor.shape)}.")
        for name, classes in self.classes.items():
            if name in cond and bool(((cond[name] < -1) | (cond[name] >= classes)).any()):
                # not every engine would say so
                raise InputError(f"A {name} is a number from 0 to {classes - 1}, or -1 for none.")
        given = [x.float(), time.float()]
        for name, null in self.nulls.items():
            given.append(cond[name].to(null.dtype) if name in cond else _repeated(null, count))
        return [tensor.detach().cpu().contiguous().numpy() for tensor in given]


def _repeated(null: Tensor, count: int) -> Tensor:
    return null.repeat(count, *[1] * (null.ndim - 1))


def require_weights(network: nn.Module) -> None:
    """Check that a network has its weights in torch, not in an engine."""
    if next(network.parameters(), None) is None:
        raise InputError("The network of this model runs in an engine already; take the model that was loaded.")


def graph_of(model: Model) -> Graph:
    """The network of a model as a graph, without the coefficients of its parameterization."""
    network, shape, device = model.denoiser.network, model.info.shape, model.device
    require_weights(network)
    nulls = null_conditions(network)
    # neither 0 nor 1, which the exporter would take for constants
    count = 3
    conditions = [_repeated(null, count).to(device) for null in nulls.values()]
    inputs = (torch.zeros(count, *shape, device=device), torch.zeros(count, device=device), *conditions)
    batch = {0: Dim("batch", min=1)}
    flat, was_training = _Flat(network, tuple(nulls)), network.training
    network.eval()
    with torch.no_grad():
        exported = torch.export.export(
            flat,
            inputs,
            dynamic_shapes=(batch, batch, *([tuple(batch for _ in conditions)] if conditions else [])),
            strict=False,
        )
    network.train(was_training)
    return Graph(exported, ("x", "time", *nulls), shape, nulls, classes_of(network))


class GraphNetwork(nn.Module):
    """A network without weights in torch: it hands its inputs to an engine on the CPU.

    Args:
        graph: what it computes.
        compiled: returns what runs batches of a size; it is called once for each size.
    """

    def __init__(self, graph: Graph, compiled: Callable[[int], Callable[[Arrays], Any]]) -> None:
        super().__init__()
        self._graph, self._compiled = graph, compiled
        self._ready: dict[int, Callable[[Arrays], Any]] = {}

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions it takes."""
        return tuple(self._graph.nulls)

    def forward(
        self, x: Float[Tensor, "batch inputs *space"], time: Float[Tensor, "batch"], **cond: Tensor
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output, in the type of ``x``."""
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError("An engine gives no gradients; take the model without it where they are needed.")
        count = x.shape[0]
        arrays = self._graph.arrays(x, time, cond)
        if count not in self._ready:
            self._ready[count] = self._compiled(count)
        return torch.from_numpy(self._ready[count](arrays)).to(x.device, x.dtype)
