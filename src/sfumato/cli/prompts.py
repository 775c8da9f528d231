"""Prompts from files, and names of files from prompts."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

from sfumato.errors import InputError, nearest, shown
from sfumato.io.files import json_object

_KEYS = ("prompt", "text", "caption")  # of a prompt in a line of JSON, the first that is there
_FORM = '{"prompt": "a small red circle"}'
_LETTERS = 40  # of a prompt in the name of a file


def read_prompts(path: Path) -> list[str]:
    """The prompts of a .txt, one per line, or of a .jsonl; ``-`` is the standard input, of either form.

    Empty lines are skipped.
    """
    name = "The standard input" if str(path) == "-" else str(path)
    if path.suffix.lower() not in ("", ".txt", ".jsonl"):
        raise InputError(f"Prompts are read from a .txt, one per line, or a .jsonl with lines {_FORM}; got {path}.")
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        # not splitlines: a JSON string may hold other marks of a line's end
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8; save it with that encoding.") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}. Prompts are words, or --prompts FILE.") from None
    filled = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise InputError(f"{name} holds no prompts; expected one per line.")
    if path.suffix.lower() == ".jsonl" or (str(path) == "-" and filled[0][1].startswith("{")):
        return [_of_json(line, f"{name}, line {number}") for number, line in filled]
    return [line for _, line in filled]


def _of_json(line: str, where: str) -> str:
    entry = json_object(line)
    if entry is None:
        raise InputError(f"{where}: {shown(line)} is no JSON object; expected {_FORM}.")
    key = next((key for key in _KEYS if key in entry), None)
    if key is None:
        raise InputError(f"{where} has none of {', '.join(_KEYS)}{nearest(next(iter(entry), ''), _KEYS)}")
    if not isinstance(entry[key], str) or not entry[key].strip():
        raise InputError(f"{where}: {key} is {shown(entry[key])}; expected a prompt, as in {_FORM}.")
    return str(entry[key])


def slug(prompt: str) -> str:
    """The beginning of a prompt as a part of the name of a file."""
    kept = (sign if sign.isalnum() or unicodedata.category(sign)[0] == "M" else " " for sign in prompt.lower())
    return "-".join("".join(kept).split())[:_LETTERS].strip("-") or "prompt"
