"""What frozen encoders make of captions, kept in the user's cache: each distinct caption is encoded once.

A file of SQLite for each identity of an encoder holds a row per caption: a sha256 of identity and text, and its tokens
in float16 without padding. So the index is on the disk too, with about 600 bytes for a caption, and a process holds
a few pages of it; a million captions of 16 tokens are 13 GB for MiniLM, of 384 features, and 132 GB for the largest T5,
of 4096.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.conditioning.language import CHUNK, Facts, clean, facts, frozen, padded
from sfumato.errors import InputError, SfumatoWarning, shown
from sfumato.io import files
from sfumato.io.progress import Progress, progress_bar

_FORMAT = 1  # of the file
_PATIENCE = 60.0  # seconds that another process may write
_AT_ONCE = 500  # captions that one query asks for
_SHOWN = 3  # captions that a message names


class _Row(NamedTuple):
    """A caption as it is kept."""

    length: int  # tokens
    cut: bool  # whether it had more
    check: int  # CRC-32 of key and values
    values: bytes  # float16, (length, features)


class Embeddings:
    """What a frozen encoder makes of captions.

    The encoder is loaded only while captions are encoded that are not kept yet, and freed then. Several processes can
    use one cache: while one encodes, the others wait and then read what it has kept.

    Args:
        name: of the encoder, as for :func:`sfumato.conditioning.language.frozen`.
        device: where it computes (default: on the GPU if there is one).
        folder: where embeddings are kept (default: ``text`` in the user's cache).
    """

    def __init__(self, name: str, *, device: torch.device | str | None = None, folder: Path | None = None) -> None:
        self.facts: Facts = facts(name)
        self._device = device
        self._trouble: str | None = None
        place = files.cache_folder() / "text" if folder is None else folder
        self.path = place / f"{self.facts.identity[:32]}.sqlite"

    def prepare(self, texts: Sequence[str], *, progress: Progress = None) -> None:
        """Encode the captions that are not kept yet, in one pass; a killed one continues where it was.

        A warning says how many captions are cut, since they have more tokens than the encoder reads.

        Args:
            texts: the captions, of which only the distinct ones cost time and memory.
            progress: what shows progress.
        """
        distinct = list(dict.fromkeys(map(clean, texts)))

        def failed(trouble: str) -> None:
            raise InputError(
                f"The embeddings of {len(distinct):,} captions can't be kept in {self.path.parent} ({trouble}); make "
                "room, or set XDG_CACHE_HOME to a folder that can be written."
            )

        if self._missing(distinct):
            self._fill(distinct, None, failed, progress)
        self.warn_of_cut(distinct)

    def read(
        self, texts: Sequence[str], *, progress: Progress = None
    ) -> tuple[Float[Tensor, "texts length features"], Bool[Tensor, "texts length"]]:
        """float16 features of the tokens of captions on the CPU, and a mask that is False behind the end of each.

        What is kept is checked: its length, its checksum, and that it is finite. Captions that are damaged, with a
        warning, or not kept yet are encoded; where they cannot be kept there is a warning too.
        """
        cleaned = list(map(clean, texts))
        distinct = list(dict.fromkeys(cleaned))

        def failed(trouble: str) -> None:
            text = f"Embeddings of captions are not kept for the next time in {self.path.parent} ({trouble})."
            warnings.warn(text, SfumatoWarning, stacklevel=4)

        rows, _ = self._sound(distinct)
        if len(rows) < len(distinct):
            self._fill(distinct, rows, failed, progress)
        return padded([self._tokens(rows[text]) for text in cleaned], self.facts.features)

    def warn_of_cut(self, texts: Sequence[str]) -> None:
        """Say which captions, of those that are kept, are cut."""
        distinct = list(dict.fromkeys(map(clean, texts)))
        cut = [text for text, row in self._rows(distinct, "0, cut, 0, x''") if row.cut]
        if cut:
            named = ", ".join(map(shown, cut[:_SHOWN])) + (" ..." if len(cut) > _SHOWN else "")
            warnings.warn(
                f"{len(cut):,} of {len(distinct):,} captions have more than the {self.facts.length} tokens that "
                f"{self.facts.name} reads, and are cut there: {named}.",
                SfumatoWarning,
                stacklevel=3,
            )

    def _tokens(self, row: _Row) -> Tensor:
        values: Any = np.frombuffer(bytearray(row.values), dtype=np.float16)
        return torch.from_numpy(values.reshape(row.length, self.facts.features))

    def _fill(
        self,
        distinct: Sequence[str],
        rows: dict[str, _Row] | None,
        failed: Callable[[str], None],
        progress: Progress,
    ) -> None:
        """Encode and keep what is not kept or damaged, put it into ``rows`` too; ``failed`` gets the reason if not."""
        with contextlib.ExitStack() as stack:
            kept = True
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(self.path.with_suffix(".lock")))
            except (OSError, NotImplementedError) as error:
                kept = False
                failed(getattr(error, "strerror", None) or str(error))
            # again, since another process may have encoded them before it let this one in
            missing = self._lacking(distinct, rows, kept)
            if not missing:
                return
            encoder = frozen(self.facts.name, device=self._device)
            with progress_bar(f"encoding captions by {encoder.name}", len(missing), progress) as show:
                for start in range(0, len(missing), CHUNK):
                    chunk = missing[start : start + CHUNK]
                    found: dict[str, _Row] = {}
                    for index, tokens, cut in encoder.each(chunk):
                        found[chunk[index]] = self._row(chunk[index], tokens, cut)
                        show(start + len(found))
                    if rows is not None:
                        rows.update(found)
                    if kept:
                        try:
                            self._write(found)
                        except sqlite3.Error as error:
                            kept = False
                            failed(str(error))

    def _lacking(self, distinct: Sequence[str], rows: dict[str, _Row] | None, writable: bool) -> list[str]:
        """The captions to encode; what is damaged is named, and a file that can't be read as a whole is deleted."""
        self._trouble, damaged = None, 0
        if rows is None:
            missing = self._missing(distinct)
        else:
            found, damaged = self._sound(distinct)
            rows.update(found)
            missing = [text for text in distinct if text not in rows]
        if self._trouble is not None:
            text = f"{self.path} is damaged ({self._trouble}); its captions are encoded again."
            warnings.warn(text, SfumatoWarning, stacklevel=5)
            if writable:
                self._delete()
                return list(distinct) if rows is None else missing
        elif damaged:
            text = f"{damaged:,} captions kept in {self.path} are damaged; they are encoded again."
            warnings.warn(text, SfumatoWarning, stacklevel=5)
        return missing

    def _row(self, text: str, tokens: Float[Tensor, "length features"], cut: bool) -> _Row:
        half = tokens.half()
        if not bool(torch.isfinite(half).all()):
            raise InputError(
                f"{self.facts.name} turns the caption {shown(text)} into features beyond the range of float16 "
                f"({float(tokens.abs().max()):.3g}); its weights are damaged or not meant for such use."
            )
        values = half.contiguous().numpy().tobytes()
        return _Row(len(tokens), cut, self._checksum(text, values), values)

    def _missing(self, distinct: Sequence[str]) -> list[str]:
        known = {text for text, _ in self._rows(distinct, "0, 0, 0, x''")}
        return [text for text in distinct if text not in known]

    def _sound(self, distinct: Sequence[str]) -> tuple[dict[str, _Row], int]:
        """The rows that are as they were written, and the number of those that are not."""
        rows, damaged = dict[str, _Row](), 0
        for text, row in self._rows(distinct, "length, cut, crc, tokens"):
            if self._is_sound(text, row):
                rows[text] = row
            else:
                damaged += 1
        return rows, damaged

    def _is_sound(self, text: str, row: _Row) -> bool:
        size = row.length * self.facts.features
        if len(row.values) != 2 * size or self._checksum(text, row.values) != row.check:
            return False
        return not bool((np.frombuffer(row.values, dtype=np.uint16) & 0x7C00 == 0x7C00).any())  # NaN and infinite

    def _rows(self, distinct: Sequence[str], columns: str) -> Iterator[tuple[str, _Row]]:
        """What is kept of captions; ``_trouble`` says why the file can't be read as a whole."""
        if not self.path.is_file():
            return
        try:
            with self._open("rw") as database:
                for start in range(0, len(distinct), _AT_ONCE):
                    by_key = {self._key(text): text for text in distinct[start : start + _AT_ONCE]}
                    places = ", ".join("?" * len(by_key))
                    query = f"SELECT key, {columns} FROM captions WHERE key IN ({places})"
                    for key, *values in database.execute(query, list(by_key)):
                        yield by_key[key], _Row(*values)
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):  # of a process that begins just now
                raise InputError(f"{self.path} can't be read: {error}.") from None
        except sqlite3.DatabaseError as error:
            self._trouble = str(error)

    def _write(self, rows: dict[str, _Row]) -> None:
        """Keep rows, all or none of them."""
        with self._open("rwc") as database, database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS captions (key BLOB PRIMARY KEY, length INTEGER NOT NULL, "
                "cut INTEGER NOT NULL, crc INTEGER NOT NULL, tokens BLOB NOT NULL)"
            )
            database.executemany(
                "INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?)",
                ((self._key(text), *row) for text, row in rows.items()),
            )

    @contextlib.contextmanager
    def _open(self, mode: str) -> Generator[sqlite3.Connection]:
        address = f"{self.path.absolute().as_uri()}?mode={mode}"
        database = sqlite3.connect(address, timeout=_PATIENCE, uri=True)
        try:
            yield database
        finally:
            database.close()

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{_FORMAT} {self.facts.identity} {text}".encode()).digest()

    def _checksum(self, text: str, values: bytes) -> int:
        return zlib.crc32(values, zlib.crc32(self._key(text)))  # so that no row is taken for another's

    def _delete(self) -> None:
        for path in (self.path, self.path.with_name(f"{self.path.name}-journal")):
            with contextlib.suppress(OSError):
                path.unlink()


def embedded(
    name: str,
    texts: Sequence[str],
    *,
    device: torch.device | str | None = None,
    progress: Progress = None,
    folder: Path | None = None,
) -> tuple[Float[Tensor, "texts length features"], Bool[Tensor, "texts length"]]:
    """float16 features of the tokens of captions by a frozen encoder, and a mask that is False behind their ends.

    Each distinct caption is encoded once and kept (:class:`Embeddings`, which has the arguments). A warning names those
    that are cut.
    """
    kept = Embeddings(name, device=device, folder=folder)
    result = kept.read(texts, progress=progress)
    kept.warn_of_cut(texts)
    return result
