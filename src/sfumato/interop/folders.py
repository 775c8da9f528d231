"""The files of a folder that diffusers saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.errors import InputError
from sfumato.io.tensors import read_state

_WHOLE = re.compile(r"diffusion_pytorch_model(?:\.(?P<variant>[\w-]+))?\.(?:safetensors|bin)")
_INDEX = re.compile(r"diffusion_pytorch_model\.(?:safetensors|bin)\.index(?:\.(?P<variant>[\w-]+))?\.json")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} can't be read ({reason}); expected a folder that diffusers saved.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold settings.")
    return values


def read_folder(folder: Path, variant: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The weights of a network, in one file or in parts that an index lists, and where they are.

    Args:
        folder: that of the network.
        variant: which, of several; by default those without one, or the only ones.
    """
    found: dict[str | None, Path] = {}
    # safetensors before pickles, and a whole file before parts
    for pattern, end in ((_WHOLE, ".safetensors"), (_INDEX, ""), (_WHOLE, ".bin")):
        for path in sorted(folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and path.name.endswith(end) and not _SHARD.fullmatch(match["variant"] or ""):
                found.setdefault(match["variant"], path)
    if not found:
        raise InputError(f"{folder} holds no weights; expected diffusion_pytorch_model.safetensors or .bin.")
    if variant is None and None not in found and len(found) == 1:
        (variant,) = found
    if variant not in found:
        names = ", ".join(sorted(str(name) for name in found if name is not None))
        asked = "that are of no variant" if variant is None else f"of the variant {variant!r}"
        raise InputError(f"{folder} holds no weights {asked}; choose the variant (--variant): {names or 'none'}.")
    path = found[variant]
    return (_of_parts(path) if path.suffix == ".json" else read_state(path)), str(path)


def _of_parts(index: Path) -> dict[str, Tensor]:
    """The tensors of all parts that an index lists."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index} has no weight_map from names of tensors to files.")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\\" in name:
            raise InputError(f"{index} lists {name!r}; the parts are expected beside it.")
        state |= read_state(index.parent / name)
    return state
