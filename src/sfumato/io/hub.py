"""Networks and tokenizers in the format of transformers: tensors from safetensors only, and no code of others."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.errors import InputError


def require_transformers(source: str | Path) -> Any:
    """The library, which ``source`` needs."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise InputError(
            f'{source} needs the transformers library; install it by: pip install "sfumato[transformers]"'
        ) from None


def load_network(source: str | Path, kinds: Mapping[str, str], expected: str, **options: Any) -> nn.Module:
    """A network of transformers, in float32 and in evaluation mode.

    Args:
        source: a folder, or the name of a model of the hub.
        kinds: the class of each ``model_type`` of its config that is taken.
        expected: what to give instead of what cannot be loaded, as the end of a sentence.
        options: of ``from_pretrained``.
    """
    library = require_transformers(source)
    if Path(source).expanduser().is_dir():
        source = Path(source).expanduser()
    with in_words(source, expected), silent(library):
        config = library.AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        if config.model_type not in kinds:
            known = " or ".join(kinds)
            raise InputError(f"{source} is a network of the kind {config.model_type!r}; expected {known}.")
        maker = getattr(library, kinds[config.model_type])
        network, report = maker.from_pretrained(str(source), use_safetensors=True, output_loading_info=True, **options)
    if lost := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise InputError(f"{source} lacks weights, such as {lost[0]}; it is damaged or of another network.")
    return network.float().eval().requires_grad_(False)


@contextlib.contextmanager
def in_words(source: str | Path, expected: str) -> Generator[None]:
    """What fails to load, in one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # no network, no such model, a damaged file: each has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source} cannot be loaded ({reason}); {expected}.") from None


@contextlib.contextmanager
def silent(library: Any) -> Generator[None]:
    """Without the reports and bars of transformers: what is wrong becomes an error here."""
    log = library.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
