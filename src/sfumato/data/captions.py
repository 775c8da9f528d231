"""Captions of pictures: a file of lines, a text beside each picture, or a column of a table."""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfumato.data.dataset import Column
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.files import json_object

LISTS = ("captions.jsonl", "metadata.jsonl")
"""The names of files with a line of JSON for each picture."""

_KEYS = ("text", "caption")  # of a caption in such a line, the first that is there
_FORM = '{"file_name": "x.png", "text": "a red circle"}'
_SHOWN = 3  # how many pictures a sentence names


class CaptionFiles(NamedTuple):
    """The files of captions in a folder, as relative paths with ``/``."""

    lists: list[str]  # those called as in LISTS
    beside: dict[str, str]  # the text beside a picture, by the path of the picture

    def __bool__(self) -> bool:
        return bool(self.lists or self.beside)


def caption_files(pictures: Sequence[str], others: Sequence[str]) -> CaptionFiles:
    """Which of the ``others``, the files that are no pictures, hold captions."""
    texts = {posixpath.splitext(name)[0]: name for name in others if name.lower().endswith(".txt")}
    stems = ((name, posixpath.splitext(name)[0]) for name in pictures)
    beside = {name: texts[stem] for name, stem in stems if stem in texts}
    return CaptionFiles([name for name in others if posixpath.basename(name) in LISTS], beside)


def read_captions(folder: Path, pictures: Sequence[str], files: CaptionFiles) -> Column:
    """The caption of each picture, from lists or from texts beside them, never from both.

    A caption is stripped, and stands on one line. Pictures without one, or with an empty one, have ``""``, which models
    treat as no text; more than half of them are refused, since a folder then is hardly one of captioned pictures.
    """
    if not files:
        raise InputError(f"{folder} has no captions: add captions.jsonl with lines {_FORM}, or x.txt beside x.png.")
    if files.lists and files.beside:
        text = next(iter(files.beside.values()))
        raise InputError(f"{folder} has captions of two kinds, {files.lists[0]} and {text}; remove one kind.")
    places = [posixpath.dirname(name) for name in files.lists]
    for place in places:
        if places.count(place) > 1:
            raise InputError(f"{folder / place} has both {' and '.join(LISTS)}; remove one of them.")
    found = _listed(folder, pictures, files.lists) if files.lists else {}
    for name, text in files.beside.items():
        found[name] = _one_line(_decoded(folder / text), str(folder / text))
    return _column([found.get(name, "") for name in pictures], pictures.__getitem__, str(folder), set(found))


def of_cells(cells: Sequence[Any], where: str) -> Column:
    """Captions from the cells of a table: texts, lists of texts, of which the first is taken, or None."""
    several = sum(isinstance(cell, list) and len(cell) > 1 for cell in cells)  # pyright: ignore[reportUnknownArgumentType]
    if several:
        text = f"{where}: {several} of {len(cells)} rows have several captions; the first of each is taken."
        warnings.warn(text, SfumatoWarning, stacklevel=2)
    firsts: list[Any] = [next(iter(cell), None) if isinstance(cell, list) else cell for cell in cells]  # pyright: ignore[reportUnknownArgumentType]
    for row, cell in enumerate(firsts):
        if cell is not None and not isinstance(cell, str):
            raise InputError(f"{where}: row {row} holds a {type(cell).__name__}; expected text.")
    given = {f"row {row}" for row, cell in enumerate(firsts) if cell is not None}
    texts = [_one_line(cell or "", where) for cell in firsts]
    return _column(texts, lambda row: f"row {row}", where, given)


def _column(texts: Sequence[str], name: Callable[[int], str], where: str, given: set[str]) -> Column:
    without = [name(i) for i, text in enumerate(texts) if not text]
    if without:
        empty = sum(one in given for one in without)
        which = f"such as {', '.join(without[:_SHOWN])}" + (f"; of {empty} it is empty" if empty else "")
        text = f"{where}: a caption is missing for {len(without)} of {len(texts)} pictures, {which}"
        if 2 * len(without) > len(texts):
            raise InputError(f"{text}; write captions for half of them at least, or train without text.")
        warnings.warn(f"{text}. They count as pictures without text.", SfumatoWarning, stacklevel=3)
    values = np.empty(len(texts), dtype=object)
    values[:] = texts
    return Column(values)


def _listed(folder: Path, pictures: Sequence[str], lists: Sequence[str]) -> dict[str, str]:
    """The captions of pictures by their relative paths."""
    known, captions = set(pictures), dict[str, str]()
    seen: dict[str, str] = {}
    missing: list[str] = []
    for name in lists:
        for number, file_name, text in _lines(folder / name):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), file_name))
            if path not in known:
                path = posixpath.normpath(path.replace("\\", "/"))  # as Windows writes it
            here = f"line {number} of {name}"
            if path in seen:
                advice = "expected one line for each picture; keep the one that is right"
                raise InputError(f"{folder}: {path} has two captions, in {seen[path]} and in {here}; {advice}.")
            seen[path] = here
            if path in known:
                captions[path] = text
            else:
                missing.append(path)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
        text = f"{folder}: {' and '.join(lists[:_SHOWN])} names {len(seen)} pictures, and {len(missing)} "
        text += f"of them cannot be found, such as {shown}"
        if not captions:
            raise InputError(f"{text}; file_name is the path of a picture, seen from the folder of the list.")
        warnings.warn(f"{text}; they are skipped.", SfumatoWarning, stacklevel=4)
    return captions


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """The number of each line, the name of the picture, and its caption."""
    # not splitlines: a JSON string may hold other marks of a line's end
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        where, entry = f"{path}, line {number}", json_object(line)
        if entry is None:
            raise InputError(f"{where}: {line.strip()[:40]!r} is no JSON object; expected {_FORM}.")
        key = next((key for key in _KEYS if key in entry), "text")
        for one in ("file_name", key):
            if one not in entry:
                held = ", ".join(map(repr, entry)) or "nothing"
                raise InputError(f"{where} has no {one!r}, but {held}; expected {_FORM}.")
            if not isinstance(entry[one], str):
                raise InputError(f"{where}: {one!r} is {str(entry[one])[:40]}; expected a text, as in {_FORM}.")
        yield number, entry["file_name"], _one_line(entry[key], where)


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}, is not UTF-8; save the file with that encoding.") from None


def _one_line(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the caption holds half of a character (a lone surrogate); write it anew.") from None
    return " ".join(text.replace("\0", " ").split())
