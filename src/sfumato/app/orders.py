"""What a person who sees the page may train: runs by a name, data of the page, options that name no files and no code.

So nobody who only sees the page can read or write other folders by a training, or import code.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.app import pictures
from sfumato.errors import InputError
from sfumato.io.reading import suffixes
from sfumato.runs.budget import seconds_of

DIGITS, SHAPES, UPLOAD, FOLDER = "digits", "shapes", "upload", "folder:"
"""The data: digits of scikit-learn, drawn shapes with captions, uploaded pictures, and before its name a folder."""
UPLOADS = "uploads"
"""The folder, in that of the runs, that keeps uploaded pictures, so that a run can be resumed later."""
MOST_FILES = 2000
"""Pictures of an upload."""
FEWEST = 10
"""Pictures of an upload, of which a tenth is held out."""
SIZES = (16, 32, 48, 64, 128)
"""Sides in pixels that pictures are resized to."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}")
_FLAG = re.compile(r"--([a-z]\w*(?:[.-]\w+)+)(?:=(.*))?", re.ASCII)
_VALUE = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[a-z][\w+∞ ()-]*", re.IGNORECASE)
_GROUPS = ("model", "objective", "optimizer", "ema", "training", "sampling", "evaluation", "data", "conditions.label")
_FIELDS = {"training.steps": "Steps", "training.seed": "Seed", "data.size": "Size of the pictures"}
REFUSED = frozenset(
    ("source", "cache", "embedder", "embeddings", "init_from", "freeze", "tracker", "weak_run", "classifier", "file")
)
"""Settings that name files or runs, or send numbers to other machines."""


@dataclass(frozen=True)
class Wanted:
    """What a person asks for.

    Attributes:
        data: :data:`DIGITS`, :data:`SHAPES`, :data:`UPLOAD`, or :data:`FOLDER` and the name of a folder of the page.
        name: of the run; by default that of the data, with a number if there is such a run already.
        classes: whether the model is conditioned on the class of an image; of a folder, its sub-folders.
        steps: optimizer steps, for the digits.
        budget: a time such as ``"10m"``, for all but the digits.
        size: the side in pixels that pictures are resized to.
        seed: decides every random number of the training.
        options: further options, written as on the command line.
        replace: whether a run of that name may be deleted.
        files: uploaded pictures.
    """

    data: str = DIGITS
    name: str = ""
    classes: bool = False
    steps: int | float | None = None
    budget: str = ""
    size: int | float | None = None
    seed: int | float | None = 0
    options: str = ""
    replace: bool = False
    files: Sequence[str] = ()


def checked_name(name: str) -> str:
    """The name of a run, which can't be a path."""
    name = name.strip()
    if not _NAME.fullmatch(name) or name == UPLOADS:
        raise InputError(
            f"A run can't be named {name[:60]!r}: use letters, digits, - and _, at most 60 of them"
            + (f", and not {UPLOADS}, where uploaded pictures are kept." if name == UPLOADS else ".")
        )
    return name


def checked_options(text: str) -> list[str]:
    """Options such as ``--optimizer.learning-rate 1e-3``, if they name neither paths nor code.

    Names and values of what is allowed are then judged by ``sfumato train`` itself.
    """
    if len(text) > 4000:
        raise InputError("These options are too long; at most 4,000 characters are read.")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"The options can't be read ({error}): a quotation mark is missing.") from None
    flag = None
    for word in words:
        found = _FLAG.fullmatch(word)
        if found is None and (flag is None or word.startswith("--")):
            raise InputError(f"Options are written --group.setting value, as on the command line; got {word[:60]!r}.")
        flag, value = (found[0].partition("=")[0], found[2]) if found is not None else (flag, word)
        if found is not None:
            _check_setting(str(flag), found[1].replace("-", "_"))
        if value is not None and not _VALUE.fullmatch(value):
            raise InputError(f"{flag} is {value[:60]!r}; options on the page take numbers and plain names, no paths.")
    return words


def _check_setting(flag: str, key: str) -> None:
    if field := _FIELDS.get(key):
        raise InputError(f"{flag} has a field of its own on the page, {field}.")
    if not key.startswith(tuple(f"{group}." for group in _GROUPS)):
        raise InputError(f"{flag} can't be set on the page; the groups that can are {', '.join(_GROUPS)}.")
    if key.rpartition(".")[2].removeprefix("no_") in REFUSED:
        raise InputError(f"{flag} can't be set on the page: it names files or other programs. Use the command line.")


def _whole(value: int | float | None, what: str, least: int, most: int) -> int:
    if value is None or not least <= value <= most or value != int(value):
        raise InputError(f"{what} is a whole number from {least:,} to {most:,}.")
    return int(value)


def arguments(wanted: Wanted) -> list[str]:
    """What is asked for as options of ``sfumato train``, all but the data and the run."""
    label = wanted.classes and wanted.data != UPLOAD
    found = ["--task", "text"] if wanted.data == SHAPES else ["--condition", "label" if label else "none"]
    found += ["--training.seed", str(_whole(wanted.seed, "The seed", 0, 2**53 - 1))]
    if wanted.data == DIGITS:
        found += ["--training.steps", str(_whole(wanted.steps, "The number of steps", 1, 10**9))]
    else:
        seconds_of(wanted.budget.strip())
        size = _whole(wanted.size, "The size of the pictures", 8, 512)
        found += ["--budget", wanted.budget.strip(), "--data.size", str(size)]
    return [*found, *checked_options(wanted.options)]


def usual_name(data: str, runs: Path) -> str:
    """The first free name of a run of these data."""
    word = "pictures" if data == UPLOAD else data.removeprefix(FOLDER)
    usual = re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-")[:50] or "run"
    names = [*([] if usual == UPLOADS else [usual]), *(f"{usual}-{number}" for number in range(2, 10000))]
    return next(name for name in names if not (runs / name).exists())


def source(wanted: Wanted, folders: Mapping[str, Path], kept: Path) -> str:
    """The data as ``sfumato train`` takes them; uploaded pictures are copied to the folder ``kept``."""
    if wanted.data == UPLOAD:
        return str(keep_pictures(wanted.files, kept).resolve())
    if wanted.data in (DIGITS, SHAPES):
        return wanted.data
    name = wanted.data.removeprefix(FOLDER)
    if not wanted.data.startswith(FOLDER) or name not in folders:
        raise InputError("Choose the data to train on.")
    return str(folders[name].resolve())


def keep_pictures(files: Sequence[str], folder: Path) -> Path:
    """Copy uploaded pictures, each checked, into a folder that is replaced as a whole."""
    if len(files) < FEWEST:
        raise InputError(f"Upload the pictures to train on first, at least {FEWEST}; hundreds are better.")
    if len(files) > MOST_FILES:
        raise InputError(
            f"These are {len(files):,} files; the page takes at most {MOST_FILES:,}. For more, start it with --folder."
        )
    known = tuple(suffixes())
    for path in map(Path, files):
        try:
            if path.suffix.lower() not in known:
                raise InputError("The file is not a picture of a kind that is read, such as PNG or JPEG.")
            pictures.checked(path)
        except InputError as error:
            raise InputError(f"{path.name}: {error}") from None
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with in_sentences("The pictures could not be kept"):
            fresh.mkdir(parents=True)
            for number, path in enumerate(map(Path, files)):
                shutil.copyfile(path, fresh / f"{number:04d}{path.suffix.lower()}")
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


@contextlib.contextmanager
def in_sentences(what: str) -> Generator[None]:
    """Say in a sentence what can't be written."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise InputError(f"{what}: {'the disk is full' if full else error.strerror or error}.") from None
