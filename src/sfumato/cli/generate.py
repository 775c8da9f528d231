"""``sfumato generate``: text to image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato import pretrained
from sfumato.cli import flags
from sfumato.cli.commands import DEVICE, load_model, with_sampling
from sfumato.cli.flags import Fields, option, options_of
from sfumato.cli.output import check_free, free_name
from sfumato.cli.prompts import read_prompts, slug
from sfumato.config import SamplingConfig
from sfumato.errors import InputError, SfumatoWarning

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.models.generate import Part
    from sfumato.models.model import Model

TEXT = """\
Generate pictures from prompts with a text-to-image model.

Picture j of every prompt has the index --first + j of the seed: prompts are compared from the same noise, and a picture
does not depend on the prompts beside it. Each PNG says how it was made, and --like makes it again, bit for bit on the
same machine. Sampling options default to those of the run. The earlier stages of a system, which decide what is drawn,
are set by name, such as --base.steps and --base.guidance.scale."""

_EMBEDDED = "shapes"
_COLUMNS, _ROWS, _HEIGHT = 8, 64, 128
"""Of a grid: the most columns and rows, and the least height of a picture, to which small ones are enlarged."""


def _fields(facts: Mapping[str, Any]) -> Fields:
    """The options; what a picture says that is made again are defaults."""
    usual: dict[str, Any] = {}
    if facts:
        usual = {"seed": facts["seed"], "first": facts.get("index", facts.get("first", 0))}
    return {
        "sentences": option(tuple[str, ...], "Prompts, each in quotes.", (), positional="PROMPT"),
        "prompts": option(
            Path | None, 'A file of prompts: .txt, one per line, or .jsonl with "prompt"; - reads the standard input.'
        ),
        "model": option(
            Path | None,
            "A run with captions, or a system of several (default: the model of shapes that comes with sfumato).",
        ),
        "count": option(int, "Number of pictures of each prompt.", facts.get("count", 1) if facts else 4),
        **options_of("sfumato.models.generate:TextToImage.generate", "seed", "first", **usual),
        "like": option(
            Path | None,
            "A .png that this command wrote: make it again, with its prompts, model and settings but for those that "
            "are given here.",
        ),
        "out": option(
            Path | None,
            "A .png for one grid, a row per prompt, or a folder for single pictures (default: a grid in the samples of "
            "the run, or here of the model that comes with sfumato, numbered if the name is taken).",
        ),
        "overwrite": option(bool, "Replace existing files.", False),
        "untrained": option(bool, "Use a model even if it was hardly trained.", False),
        "device": DEVICE,
    }


def generate(arguments: list[str]) -> int:
    first = flags.scan(arguments, _fields({}), SamplingConfig)
    like = None if first.helping else first.value("like")
    facts = {} if like is None else _read(Path(like), trust="trust" in first.values)
    options, sampling, given = with_sampling(
        "sfumato generate",
        arguments,
        _fields(facts),
        TEXT,
        model=lambda: _model(facts, like),
        given="text",
        usual=facts.get("settings"),
    )
    from sfumato.models.facts import all_facts_of, check_same
    from sfumato.models.folders import hardly_trained
    from sfumato.models.generate import check_prompts, text_of

    run: Path = options.model or _model(facts, like)
    prompts = _prompts(options, facts)
    # a single picture is made with those that it was made with, lest the batch change its last bits
    again = "batch" in facts and not {"count", "first", "prompts"} & first.values.keys() and not options.sentences
    check_prompts(prompts)
    out = _out(options, prompts, run, again)
    model = load_model(options, sampling, run, untrained=True)
    model.require_denoiser()
    name, _ = text_of(model.conditions, run)
    if not options.untrained and (sentence := hardly_trained(model)):
        raise InputError(f"{sentence} Sample from it all the same with --untrained.")
    given = {**facts.get("given", {}), **given}
    if like is not None:
        check_same(model, facts, Path(like), moved=options.model is not None)
    made = all_facts_of(model, sampling, options.seed, given)
    if again:
        return _again(model, prompts[0], facts, {"seed": options.seed, "sampling": sampling, **given}, made, out)
    asked: dict[str, Any] = {
        "count": options.count,
        "seed": options.seed,
        "first": options.first,
        "sampling": sampling,
        **given,
    }
    parts = _with_progress(model.generate_parts(prompts, **asked), len(prompts) * options.count)
    if _is_folder(out):
        _write_each(parts, model, name, options.count, made, out)
    else:
        _write_grid(parts, prompts, options, made, out)
    print(f"{len(prompts)} x {options.count} pictures: {out}")
    return 0


def _read(path: Path, *, trust: bool) -> dict[str, Any]:
    """How a picture of this command was made."""
    from sfumato.models.facts import read_all_facts

    facts = read_all_facts(path, trust=trust)
    if not {"prompt", "prompts"} & facts.keys():
        raise InputError(f"{path} was not made by sfumato generate, and only such pictures are made again by --like.")
    return facts


def _model(facts: Mapping[str, Any], like: str | None) -> Path:
    """The model where none is named: that of a picture, or the one that comes with sfumato."""
    if not facts:
        return pretrained.path(_EMBEDDED)
    from sfumato.models.facts import model_of

    found = model_of(facts)
    if found is None:
        raise InputError(f"The model of {like}, {facts['model']}, is not here; say where it is: --model RUN.")
    return found


def _prompts(options: Any, facts: Mapping[str, Any]) -> list[str]:
    if options.prompts is not None:
        if options.sentences:
            raise InputError("Prompts are given as words or as a file; leave --prompts or the words out.")
        return read_prompts(options.prompts)
    prompts = list(options.sentences)
    if not prompts:
        prompts = list(facts.get("prompts", [facts["prompt"]] if "prompt" in facts else []))
    if not prompts:
        raise InputError('Say what to draw: sfumato generate "a small red circle". See sfumato generate --help.')
    return prompts


def _out(options: Any, prompts: list[str], run: Path, again: bool) -> Path:
    """Where the pictures go, a file or a folder; what can't be written is refused before any work."""
    out: Path | None = options.out
    if out is None:
        here = run.parent == Path(pretrained.__file__).parent
        folder = Path() if here else run / "samples"
        name = f"{slug(prompts[0]) if len(prompts) == 1 else f'{len(prompts)}-prompts'}-seed-{options.seed}"
        name += f"-{options.first}" if again else ""
        out = folder / f"{free_name(folder, name, ['.png'], options.overwrite)}.png"
    if _is_folder(out):
        names = [path.name for path in out.iterdir()] if out.is_dir() else []
        known = {
            _name(i, prompt, options.seed, options.first + j)
            for i, prompt in enumerate(prompts)
            for j in range(options.count)
        }
        if (taken := sorted(known & set(names))) and not options.overwrite:
            raise InputError(
                f"The folder {out} holds {len(taken)} of these pictures, such as {taken[0]}; choose another folder, or "
                "replace them with --overwrite."
            )
        return out
    if out.suffix.lower() != ".png":
        raise InputError(f"Pictures are written as one .png or into a folder; got {out}.")
    check_free(out, options.overwrite)
    rows = len(prompts) * math.ceil(options.count / _COLUMNS)
    if rows > _ROWS:
        raise InputError(
            f"A grid of {len(prompts)} prompts has {rows} rows, and {_ROWS} is the most; write single pictures into a "
            "folder: --out FOLDER."
        )
    return out


def _is_folder(out: Path) -> bool:
    return out.is_dir() or not out.suffix


def _name(number: int, prompt: str, seed: int, index: int) -> str:
    return f"{number + 1:04d}-{slug(prompt)}-{seed}-{index}.png"


def _again(
    model: Model, prompt: str, facts: Mapping[str, Any], asked: dict[str, Any], made: dict[str, Any], out: Path
) -> int:
    """Make one picture again, at its place among as many."""
    from sfumato.io import images as image_files
    from sfumato.models.facts import Batch

    batch = Batch(**facts["batch"])
    prompts = [batch.longest] * batch.prompts
    prompts[batch.place] = prompt
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*comes twice", SfumatoWarning)
        size = batch.prompts * batch.count
        asked |= {"count": batch.count, "first": batch.first, "batch_size": size}
        ((_, images),) = _with_progress(model.generate_parts(prompts, **asked), size)
    number = batch.place * batch.count + facts["index"] - batch.first
    path = out / _name(0, prompt, asked["seed"], facts["index"]) if _is_folder(out) else out
    one = image_files.to_pillow(image_files.to_uint8(images[number : number + 1])[0])
    image_files.save_png(one, path, {**made, **{key: facts[key] for key in ("prompt", "index", "batch")}})
    print(f"1 picture: {path}")
    return 0


def _with_progress(parts: Iterator[tuple[Part, Tensor]], total: int) -> Iterator[tuple[Part, Tensor]]:
    """The parts, with a progress bar."""
    from sfumato.io.progress import progress_bar

    done = 0
    with progress_bar("generating", total) as advance:
        for part, images in parts:
            done += len(images)
            advance(done)
            yield part, images


def _write_grid(
    parts: Iterator[tuple[Part, Tensor]], prompts: list[str], options: Any, facts: dict[str, Any], out: Path
) -> None:
    """A row per prompt, a column per index; more indices than fit go on in the next row."""
    import torch

    from sfumato.io import images as image_files
    from sfumato.io.lettering import captioned

    images = torch.cat([images for _, images in parts]).split(options.count)
    columns = min(options.count, _COLUMNS)
    sheets = [image_files.grid(rows, columns, _HEIGHT) for rows in images]
    wraps = options.count > columns
    above = [] if wraps or options.count == 1 else [f"index {options.first + j}" for j in range(columns)]
    facts = {**facts, "prompts": prompts, "first": options.first, "count": options.count}
    image_files.save_png(captioned(sheets, prompts, above), out, facts)


def _write_each(
    parts: Iterator[tuple[Part, Tensor]], model: Model, name: str, count: int, facts: dict[str, Any], out: Path
) -> None:
    """Each picture as a file, as soon as it is there."""
    from sfumato.io import images as image_files
    from sfumato.models.facts import Batch

    done = 0
    for part, images in parts:
        longest = _longest(model, name, part)
        for k, pixels in enumerate(image_files.to_uint8(images), done):
            place, j = divmod(k - done, part.count)
            index, prompt = part.first + j, part.prompts[place]
            batch = Batch(len(part.prompts), place, part.first, part.count, longest)
            own = {**facts, "prompt": prompt, "index": index, "batch": vars(batch)}
            path = out / _name(k // count, prompt, facts["seed"], index)
            image_files.save_png(image_files.to_pillow(pixels), path, own)
        done += len(images)


def _longest(model: Model, name: str, part: Part) -> str:
    """The prompt of a part that has the most tokens."""
    condition = model.conditions[name]

    def tokens(prompt: str) -> int:
        return max(rows.numel() for rows in condition.given([prompt], 1).values())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)  # said before
        return max(part.prompts, key=tokens)
