"""The network of a model as a graph that other programs can run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import sfumato
from sfumato.conditioning.encoders import Conditioned, Encoder, LabelEncoder, require_known, unknown_label
from sfumato.errors import InputError
from sfumato.models.model import Model

OUTPUT = "output"
"""The name of the network's output in every graph."""


def require(package: str, extra: str, what: str) -> Any:
    """An optional package.

    Raises:
        InputError: if it is not installed; the sentence says how to.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f'{what} needs {package}; install it with: pip install "sfumato[{extra}]"') from None


_TIMES = {
    "index": "the index of the step, from 0",
    "thousand": "1000 t, where t is from 0 to 1",
    "log_snr": "log(alpha^2 / sigma^2) / 4",
    "log_sigma": "log(sigma / alpha) / 4",
}


def described(model: Model) -> str:
    """What a file of the network must say of it, as JSON: what it was trained as, on what, and how to call it."""
    return json.dumps(
        {
            "sfumato": sfumato.__version__,
            "step": model.step,
            "data": model.facts.model_dump(mode="json"),
            "config": model.config.model_dump(mode="json"),
            "inputs": {
                "x": "c_in x_t, with the c_in of the parameterization",
                "time": f"one number per sample, {_TIMES[model.config.model.told]}",
                **dict.fromkeys(nulls_of(model.denoiser.network), "a condition"),
            },
        }
    )


class _Flat(nn.Module):
    """A network that takes its conditions by place, as graphs do."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
        return self.network(x, time, **dict(zip(self.names, conditions, strict=True)))


@dataclass(frozen=True, eq=False)
class Program:
    """A network as a graph, for any batch size.

    Attributes:
        exported: the graph.
        inputs: the names of its inputs: ``x``, ``time`` and the conditions.
        sides: the shape of one ``x``.
        nulls: of each condition, the one that is none, for one sample.
        classes: of each condition that is a label, the number of its classes.
    """

    exported: ExportedProgram
    inputs: tuple[str, ...]
    sides: tuple[int, ...]
    nulls: dict[str, Tensor]
    classes: dict[str, int]

    def arrays(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> list[Any]:
        """NumPy arrays in the order of the inputs, the null condition for those that are missing.

        Raises:
            InputError: for a condition that the network does not know, a tensor of another shape, or a label that is
                no class.
        """
        count = x.shape[0]
        for name in cond:
            require_known(name, self.nulls)
        shapes = {"x": self.sides, "time": (), **{name: tuple(self.nulls[name].shape[1:]) for name in cond}}
        for name, tensor in {"x": x, "time": time, **cond}.items():
            if tuple(tensor.shape) != (count, *shapes[name]):
                raise InputError(
                    f"The engine takes {name} of shape {(count, *shapes[name])} here, and got {tuple(tensor.shape)}."
                )
        for name, classes in self.classes.items():
            if name in cond and bool(((cond[name] < -1) | (cond[name] >= classes)).any()):
                # not every engine would say so
                raise InputError(unknown_label(classes))
        given = [x.float(), time.float()]
        for name, null in self.nulls.items():
            missing = null.repeat(count, *[1] * (null.ndim - 1))
            given.append(cond[name].to(null.dtype) if name in cond else missing)
        return [tensor.detach().cpu().contiguous().numpy() for tensor in given]


def nulls_of(network: nn.Module) -> dict[str, Tensor]:
    """The conditions of a network by name, each with its null condition for one sample."""
    found: dict[str, Tensor] = {}
    if isinstance(network, Conditioned):
        for name, module in network.encoders.items():
            assert isinstance(module, Encoder)
            encoder: Encoder = module
            found[name] = encoder.null(1, torch.device("cpu"))
    return found


def left_out(network: nn.Module) -> tuple[str, ...]:
    """The conditions of a network that its graph does not take, and for which it has none."""
    return network.slots if isinstance(network, Conditioned) else ()


def require_torch(network: nn.Module) -> None:
    """Check that a network has its weights in torch.

    Raises:
        InputError: if it runs in an engine already.
    """
    if next(network.parameters(), None) is None:
        raise InputError("The network of this model runs in an engine already; take the model that was loaded.")


def program_of(model: Model) -> Program:
    """The network of a model, without its coefficients, as a graph.

    Raises:
        InputError: if the network runs in an engine already.
    """
    network = model.denoiser.network
    require_torch(network)
    nulls = nulls_of(network)
    # neither 0 nor 1, which the exporter would take for constants
    count = 3
    device = model.device
    x = torch.zeros(count, *model.facts.shape, device=device)
    conditions = [null.repeat(count, *[1] * (null.ndim - 1)).to(device) for null in nulls.values()]
    inputs = (x, torch.zeros(count, device=device), *conditions)
    batch = Dim("batch", min=1)
    flat, was_training = _Flat(network, tuple(nulls)), network.training
    network.eval()
    with torch.no_grad():
        exported = torch.export.export(
            flat,
            inputs,
            dynamic_shapes=({0: batch}, {0: batch}, *([tuple({0: batch} for _ in conditions)] if conditions else [])),
            strict=False,
        )
    network.train(was_training)
    encoders = network.encoders.items() if isinstance(network, Conditioned) else ()
    classes = {name: encoder.classes for name, encoder in encoders if isinstance(encoder, LabelEncoder)}
    return Program(exported, ("x", "time", *nulls), model.facts.shape, nulls, classes)
