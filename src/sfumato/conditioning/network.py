"""A network with its conditions: their encoders fill its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.conditioning.base import Condition, Filled, keys_of, require_known
from sfumato.errors import InputError
from sfumato.networks.slots import slots_of

RESERVED = frozenset(
    {
        *("x", "time", "keys"),
        *("count", "seed", "first", "steps", "solver", "sampler", "grid", "guidance", "sampling", "clip", "precision"),
        *("input_noise", "temperature", "stages"),
        *("batch_size", "progress", "compile", "stepwise", "model", "image", "images", "start", "end", "strength"),
        *("repeats", "jump", "samples", "heldout", "data", "run", "out", "device", "trust", "engine", "fit", "json"),
        *("seeds", "animation", "print_config", "engine_precision", "animation_x0", "help"),
        *("pictures", "picture", "scale", "tile", "overlap", "index", "panel", "regression", "truth"),
        *("overwrite",),
    }
)
"""Names of the inputs of a network, and of the options of what is done with a model: a condition can't have them."""


def filled(conditions: Mapping[str, Condition], shape: Sequence[int]) -> Filled:
    """Which inputs of a network the conditions fill together; tokens have the features that the widest prefers."""
    each = [condition.slots(shape) for condition in conditions.values()]
    tokens = [one.tokens for one in each if one.tokens is not None]
    return Filled(any(one.vector for one in each), max(tokens, default=None), sum(one.channels for one in each))


class Conditioned(nn.Module):
    """A network whose named conditions are encoded into its slots.

    Vectors are added, tokens follow each other with their masks, channels follow each other. A condition that is not
    given is null. The slots of the network can also be given as they are, behind those of the encoders.

    Args:
        network: called as ``network(x, time, **slots)``, with the slots ``vector``, ``tokens`` with ``mask``, and
            ``channels`` (see :func:`~sfumato.networks.slots.slots_of`).
        conditions: the conditions by name, described by the data.
        shape: ``(C, *space)`` of a sample.
    """

    def __init__(self, network: nn.Module, conditions: Mapping[str, Condition], shape: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.conditions = dict(conditions)
        self.slots = slots_of(network)
        wanted = filled(conditions, shape)
        given = {"vector": self.slots.vector, "tokens": self.slots.tokens, "channels": self.slots.channels or None}
        for slot, number in given.items():
            if getattr(wanted, slot) and number is None:
                attribute = {"vector": "width", "tokens": "tokens", "channels": "concatenated"}[slot]
                kind = type(network).__name__
                raise InputError(
                    f"The conditions fill {slot!r}, which this {kind} does not take: its forward needs an argument "
                    f"{slot!r}, and the module an attribute {attribute!r} with their number of features."
                )
        if wanted.channels > self.slots.channels:
            raise InputError(
                f"The conditions fill {wanted.channels} channels, the network takes {self.slots.channels}."
            )
        self.keys: dict[str, str] = {}
        for name, condition in conditions.items():
            if not name.isidentifier() or name in RESERVED:
                taken = "is the name of something else" if name in RESERVED else "is no single word"
                raise InputError(f"A condition can't be called {name!r}, which {taken}; take another.")
            for key in keys_of(name, condition):
                if key in self.keys:
                    raise InputError(f"Two conditions have a tensor {key!r}; rename {name!r}.")
                self.keys[key] = name
        width, tokens = self.slots.vector or 0, self.slots.tokens or 0
        self.encoders = nn.ModuleDict({n: c.build_encoder(shape, width, tokens) for n, c in conditions.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors it takes: those of its conditions, then those of the network's slots."""
        return (*self.keys, *self._raw)

    @property
    def _raw(self) -> tuple[str, ...]:
        """The slots that can be given as they are: those of which no condition has the name."""
        return tuple(name for name in self.slots.names if name not in self.keys)

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        time: Float[Tensor, "batch"],
        keys: Int[Tensor, "batch"] | None = None,
        **cond: Tensor,
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output of the network, with the ``keys`` of its dropout if it has any."""
        for name in cond:
            require_known(name, self.names)
        raw = {name: cond[name] for name in self._raw if name in cond}
        if "mask" in raw and "tokens" not in raw:
            raise InputError("A mask says which tokens are seen, but none were given.")
        parts = [*(self._encoded(name, x, cond) for name in self.conditions), raw]
        slots: dict[str, Tensor] = {} if keys is None else {"keys": keys}
        vectors, channels = ([part[slot] for part in parts if slot in part] for slot in ("vector", "channels"))
        if vectors:
            slots["vector"] = sum(vectors[1:], start=vectors[0])
        if channels:
            slots["channels"] = _follow("channels", channels)
        return self.network(x, time, **slots, **_tokens(part for part in parts if "tokens" in part))

    def _encoded(self, name: str, x: Tensor, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        condition = self.conditions[name]
        given = {part: cond[key] for key, part in keys_of(name, condition).items() if key in cond}
        if given and len(given) < len(condition.parts):
            absent = [key for key in keys_of(name, condition) if key not in cond]
            raise InputError(f"The condition {name!r} is given without {' and '.join(absent)}.")
        if not given:
            given = {part: tensor.to(x.device) for part, tensor in condition.missing(len(x)).items()}
        encoder = self.encoders[name]
        return encoder(x, **given) if getattr(encoder, "takes_x", False) else encoder(**given)


def _tokens(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tokens of all conditions one after the other, with a mask if any has one."""
    parts = list(parts)
    if not parts:
        return {}
    tokens = _follow("tokens", [part["tokens"] for part in parts])
    if not any("mask" in part for part in parts):
        return {"tokens": tokens}
    if len(parts) == 1:
        return {"tokens": tokens, "mask": parts[0]["mask"]}
    mask = parts[-1].get("mask")
    if mask is not None and mask.dtype != torch.bool:
        raise InputError(f"The mask is True for the tokens that are seen, and False for others; got {mask.dtype}.")
    masks = [part["mask"] if "mask" in part else part["tokens"].new_ones(part["tokens"].shape[:2]) for part in parts]
    return {"tokens": tokens, "mask": torch.cat([one.bool() for one in masks], dim=1)}


def _follow(slot: str, given: Sequence[Tensor]) -> Tensor:
    """What fills a slot one after the other, along its second axis."""
    first = given[0]
    for other in given[1:]:
        if (other.shape[0], *other.shape[2:]) != (first.shape[0], *first.shape[2:]):
            shapes = f"{tuple(other.shape)}, those of the encoders {tuple(first.shape)}"
            raise InputError(f"The {slot} have shape {shapes}; only their number may differ.")
    return first if len(given) == 1 else torch.cat([first, *(other.to(first.dtype) for other in given[1:])], dim=1)
