"""``sfumato data``: what is understood of data before anything is trained on them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli import flags
from sfumato.cli.flags import Fields, option
from sfumato.cli.output import check_free
from sfumato.config import DataConfig, parse
from sfumato.errors import InputError, SfumatoWarning

if TYPE_CHECKING:
    from sfumato.data import Column, Dataset

_DATA = """\
Show what is read from data: kind, number, sizes, classes, captions, and which files are skipped and why.

SOURCE is data by name or path, as for train. Classes and captions are read if they are there.
"""
_MOST = 2**24  # values that the range is taken over
_DRAWN = 1000  # images that are looked at where each is read or drawn when it is needed
_CLASSES = 12  # that are listed
_EXAMPLES = 5  # captions that are shown

_OPTIONS: Fields = {
    "source": option(
        str, "A name, a folder of images, an .npy or .npz file, or hf:NAME.", "digits", positional="SOURCE"
    ),
    "out": option(Path | None, "Also write a contact sheet, a .png of some images with their classes or captions."),
    "count": option(int, "Number of images on the contact sheet, evenly spread over the data.", 32),
    "overwrite": option(bool, "Replace an existing contact sheet.", False),
    "json": option(bool, "Print the result as JSON.", False),
}


def data(arguments: list[str]) -> int:
    fields = {**_OPTIONS, "data": flags.group(DataConfig(), leave=("source",))}
    options = flags.parse(fields, arguments, prog="sfumato data", description=_DATA)
    config = parse(DataConfig, {**options.data.model_dump(), "source": options.source}, origin="the options")
    if options.out is not None and options.out.suffix.lower() != ".png":
        raise InputError(f"A contact sheet is written as .png; got {options.out}.")
    if options.count < 1:
        raise InputError(f"A contact sheet has at least 1 image; --count is {options.count}.")
    check_free(options.out, options.overwrite)

    from sfumato.models.data import prepared

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read: Dataset = config.build(columns="all")
        read = prepared(read, config)
    said = list(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, SfumatoWarning)))
    facts = _facts(read, config, said)
    if options.out is not None:
        _sheet(read, options.out, options.count)
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console

    console = Console()
    console.print(_table(facts), highlight=False, markup=False)
    if options.out is not None:
        print(options.out)
    return 0


def _facts(read: Dataset, config: Any, said: list[str]) -> dict[str, Any]:
    """What is known of the data, as JSON has it."""
    import numpy as np

    from sfumato.data import Loader
    from sfumato.data.selection import Lazy
    from sfumato.models.data import SPLIT_SEED

    shape = read.shape
    most = _DRAWN if isinstance(read.images, Lazy) else _MOST // max(1, int(np.prod(shape)))
    some = np.linspace(0, len(read) - 1, max(1, min(len(read), most))).astype(np.int64)
    values = read.batch(some)
    facts: dict[str, Any] = {
        "source": config.source,
        "kind": _kind(config.source),
        "count": len(read),
        "shape": list(shape),
        "channels": {1: "grey", 3: "rgb", 4: "rgba"}.get(shape[0]) if len(shape) == 3 else None,
        "type": str(read.images.dtype),
        "range": [float(values.min()), float(values.max())],
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)),
        "looked_at": len(some),
    }
    labels = [(name, column) for name, column in read.columns.items() if column.names]
    facts["classes"] = {name: _classes(column) for name, column in labels}
    texts = [(name, column) for name, column in read.columns.items() if column.is_text]
    facts["captions"] = {
        name: _captions(column.texts(some if isinstance(column.values, Lazy) else range(len(read))))
        for name, column in texts
    }
    facts["other_columns"] = [name for name, c in read.columns.items() if not c.names and not c.is_text]
    facts["pictures"] = None if read.groups is None else len(np.unique(read.groups))
    try:
        train, held = read.split(config.holdout, SPLIT_SEED)
        facts |= {"train": len(train), "heldout": len(held), "not_split": None}
        facts["trained_shape"] = list(Loader(train, 0, config.flip, config.random_crop).shape)
    except InputError as error:
        facts |= {"train": None, "heldout": None, "not_split": str(error), "trained_shape": None}
    facts["passed_over"] = said
    return facts


def _kind(source: str) -> str:
    from sfumato.data.embedded import is_named
    from sfumato.data.emoji import is_emoji

    if is_named(source):
        return "a data set with a name"
    if is_emoji(source):
        return "vector pictures with names, drawn on white"
    if source.startswith("hf:"):
        return "a table of the Hugging Face hub"
    return "a folder of pictures" if Path(source).expanduser().is_dir() else "an array in a file"


def _classes(column: Column) -> dict[str, int]:
    import numpy as np

    counts = np.bincount(np.asarray(column.values), minlength=len(column.names)).tolist()
    return {name: counts[i] for i, name in enumerate(column.names)}


def _captions(texts: list[str]) -> dict[str, Any]:
    import numpy as np

    given = [text for text in texts if text]
    words = sorted(len(text.split()) for text in given)
    distinct = list(dict.fromkeys(given))
    places = np.linspace(0, max(len(distinct) - 1, 0), min(_EXAMPLES, len(distinct))).astype(int).tolist()
    return {
        "count": len(given),
        "without": len(texts) - len(given),
        "distinct": len(distinct),
        "words": [words[0], words[len(words) // 2], words[-1]] if words else [],
        "longest": max(map(len, given), default=0),
        "examples": [distinct[place] for place in places],
    }


def _table(facts: Mapping[str, Any]) -> Any:
    """The facts in words, one below the other."""
    from rich.table import Table
    from rich.text import Text

    shape = "x".join(map(str, facts["shape"]))
    what = {3: "images", 2: "signals", 1: "vectors"}.get(len(facts["shape"]), "arrays")
    low, high = facts["range"]
    of = f" (of {facts['looked_at']:,} of them)" if facts["looked_at"] < facts["count"] else ""
    stored = "bytes, 0 ... 255" if facts["type"] == "uint8" else "numbers, float32 in [-1, 1]"
    rows = [
        ("source", f"{facts['source']}: {facts['kind']}"),
        (what, f"{facts['count']:,} of {shape}" + (f", {facts['channels']}" if facts["channels"] else "")),
        ("values", f"{stored}; in [-1, 1] they go from {low:.3g} to {high:.3g}, mean {facts['mean']:.3f}, "
                   f"std {facts['std']:.3f}{of}"),
    ]  # fmt: skip
    if facts["pictures"] is not None:
        rows.append(("groups", f"{facts['pictures']:,}, each held out as a whole: tiles or variants of one picture"))
    for name, classes in facts["classes"].items():
        shown = ", ".join(f"{key} ({count:,})" for key, count in list(classes.items())[:_CLASSES])
        more = f" and {len(classes) - _CLASSES} more" if len(classes) > _CLASSES else ""
        rows.append(("classes" if name == "label" else f"classes {name}", f"{len(classes)}: {shown}{more}"))
    for name, found in facts["captions"].items():
        least, middle, most = found["words"] or (0, 0, 0)
        looked = found["count"] + found["without"]
        of = f"{found['count']:,} for {looked:,} images" + (" that were looked at" if looked < facts["count"] else "")
        text = f"{of}, {found['distinct']:,} distinct; {least} to {most} words, median {middle}; "
        text += f"the longest has {found['longest']:,} characters"
        rows.append(("captions" if name == "caption" else f"texts {name}", text))
        rows += [("", f"“{example if len(example) <= 200 else example[:199] + '…'}”") for example in found["examples"]]
    if not facts["classes"]:
        rows.append(("classes", "none"))
    if not facts["captions"]:
        rows.append(("captions", "none"))
    if facts["other_columns"]:
        rows.append(("other columns", ", ".join(facts["other_columns"])))
    if facts["not_split"] is not None:
        rows.append(("held out", f"not possible: {facts['not_split']}"))
    else:
        crops = "x".join(map(str, facts["trained_shape"]))
        cropped = f", in random crops of {crops}" if facts["trained_shape"] != facts["shape"] else ""
        rows.append(("held out", f"{facts['heldout']:,}; {facts['train']:,} to train on{cropped}"))
    rows += [("skipped" if i == 0 else "", text) for i, text in enumerate(facts["passed_over"])]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _sheet(read: Dataset, path: Path, count: int) -> None:
    """A contact sheet of images that are evenly spread over the data, with what is known of each."""
    import math

    import numpy as np

    from sfumato.io import images as image_files
    from sfumato.io.lettering import contact_sheet

    rows = np.unique(np.linspace(0, len(read) - 1, min(count, len(read))).round().astype(np.int64))
    images = read.batch(rows)
    facts = {"data": read.name, "rows": rows.tolist()}
    if images.ndim == 2:  # vectors are points of one figure
        image_files.save_grid(images, path, facts)
        return
    words = [f"{row}" for row in rows.tolist()]
    for column in read.columns.values():
        if column.names:
            words = [column.names[number] for number in column.rows(rows).tolist()]
    for column in read.columns.values():
        if column.is_text:
            words = [text or "(no caption)" for text in column.texts(rows)]
    if images.ndim == 4 and images.shape[1] in image_files.CHANNELS.values():
        pictures = [image_files.to_pillow(pixels) for pixels in image_files.to_uint8(images)]
    else:
        pictures = [image_files.grid(image[None], 1) for image in images]
    # twice as many columns as rows: words below make cells higher than wide
    columns = min(len(rows), max(4, round(math.sqrt(2 * len(rows)))))
    image_files.save_png(contact_sheet(pictures, words, columns), path, facts)
