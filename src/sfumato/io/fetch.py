"""Files from public addresses: fetched once, and kept only if they are what was published."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from sfumato.errors import InputError
from sfumato.io.files import atomic_write
from sfumato.io.progress import progress_bar

_CHUNK = 1 << 20
_PATIENCE = 30.0  # seconds without a byte


def fetch(url: str, path: Path, sha256: str, advice: str) -> None:
    """Fetch the file at an address to ``path``, unless its bytes are not those of this sha256.

    Args:
        url: the address, https.
        path: where it is kept; it appears there whole or not at all.
        sha256: of its bytes, in hexadecimal.
        advice: what to do where the address cannot be reached, as the end of a sentence.
    """

    def write(temporary: Path) -> None:
        digest = hashlib.sha256()
        with temporary.open("wb") as file:
            for chunk in _chunks(url, path.name, advice):
                digest.update(chunk)
                file.write(chunk)
        if (found := digest.hexdigest()) != sha256:
            raise InputError(
                f"what {url} gave is not the published file: its sha256 is {found[:12]}... and not {sha256[:12]}...; "
                f"{advice}."
            )

    atomic_write(path, write)


def _chunks(url: str, name: str, advice: str) -> Generator[bytes]:
    """The bytes at an address, with a bar that shows how many there are yet to come."""
    trouble = f"{url} cannot be fetched"
    try:
        with urlopen(Request(url, headers={"User-Agent": "sfumato"}), timeout=_PATIENCE) as response:
            total, done = int(response.headers.get("Content-Length") or 0), 0
            with progress_bar(f"fetching {name}", total) as show:
                while chunk := response.read(_CHUNK):
                    yield chunk
                    done += len(chunk)
                    show(done)
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", None)  # of urllib's own error, which only says that there is one
        reason = str(cause if isinstance(cause, OSError) else error) or type(error).__name__
        raise InputError(f"{trouble} ({reason}); {advice}.") from None
    if done < total:
        raise InputError(f"{trouble}: the connection ended after {done:,} of {total:,} bytes; {advice}.")
