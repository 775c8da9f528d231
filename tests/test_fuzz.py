"""Inputs that nobody meant: each is answered by a result or by a sentence, in bounded time, and no code of it runs.

``SFUMATO_FUZZ`` says how many inputs of each kind, such as 1000, or which, such as 731:732; their seeds are fixed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.cli import main
from sfumato.config import Config, walk
from sfumato.errors import InputError
from sfumato.io.files import SaveError
from sfumato.runs.train import train
from tests.training.tiny import LABELLED, flags, tiny

_first, _, _last = os.environ.get("SFUMATO_FUZZ", "40").rpartition(":")
INPUTS = range(int(_first or 0), int(_last))
SECONDS = 20  # of computing; of waiting, such as for a busy machine, it may be ten times as many
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="a timer of POSIX")]

WORDS = [
    "",
    "x",
    "é",
    "-1",
    "0",
    "1",
    "2",
    "3",
    "0.5",
    "-0.5",
    "nan",
    "inf",
    "1e400",
    "1" + "0" * 20,
    "9" * 5000,
    "none",
    "None",
]
WORDS += [
    "true",
    "../..",
    "/dev/null",
    "/",
    "a b",
    "--",
    "-",
    "[]",
    "{}",
    "digits",
    "label",
    "heun",
    "edm",
    "cuda:99",
    "\x00",
]


class Hang(BaseException):
    """An input took longer than any honest work on it."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hang

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, 10 * SECONDS)}
    old = {number: signal.signal(number, ring) for number in clocks}
    for clock, seconds in clocks.values():
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for number, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, old[number])


def attempt(action: Callable[[], object]) -> str | None:
    """Do it; what went wrong if the answer is neither a result nor a sentence."""
    try:
        with bounded(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            action()
    except SystemExit as end:
        return None if end.code in (0, 1, 2, None) else f"exit code {end.code}"
    except (InputError, SaveError):
        return None
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {error}"[:300]
    return None


def attempts(action: Callable[[random.Random, int], tuple[Callable[[], object], object]], name: str) -> None:
    wrong: dict[str, str] = {}
    for i in INPUTS:
        act, what = action(random.Random(f"{name} {i}"), i)
        answer = attempt(act)
        if answer is not None:
            wrong.setdefault(answer, f"{i}: {answer}, of {what!r}"[:1500])
    assert not wrong, "\n".join(wrong.values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(conditions=LABELLED, training={"steps": 4, "checkpoint_every": 2}), run=folder)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    monkeypatch.chdir(tmp_path)


OPTIONS = {
    "sample": "count seed first out animation device label steps clip batch-size precision sampler.kind sampler.order "
    "grid.kind grid.rho grid.levels guidance.scale guidance.interval guidance.rescale guidance.threshold engine",
    "evaluate": "samples seed device steps label guidance.scale json",
    "likelihood": "images split bins steps draws variance what integrator probes seed batch-size",
    "tune": "steps noises images levels seed",
    "info": "settings presets",
    "export": "to precision steps batch",
    "edit": "seeds count steps image mask strength repeats jump out",
    "explain": "count seed out device data.size",
}


def test_flags(trained: Path) -> None:
    keys = [key for key, _ in walk(Config)]

    def one(source: random.Random, i: int) -> tuple[Callable[[], object], object]:
        if source.random() < 0.5:
            arguments = ["train", "digits", "--run", "out", "--print-config"]
            for _ in range(source.randint(1, 3)):
                flag = source.choice(keys).replace("_", "-")
                arguments += [f"--{flag}", *source.choices(WORDS, k=source.randint(0, 2))]
        else:
            command = source.choice(list(OPTIONS))
            small = ["--steps", "2"] if command in ("sample", "evaluate", "edit") else []
            small += {"sample": ["--count", "2"], "evaluate": ["--samples", "4"]}.get(command, [])
            small += {"likelihood": ["--images", "1", "--steps", "2"], "tune": ["--images", "2"]}.get(command, [])
            kinds = {"edit": ["inpaint", "sdedit", "invert", "interpolate"], "explain": ["loss", "schedules", "flow"]}
            words = [source.choice(kinds[command])] if command in kinds else []
            run = source.choice([str(trained)] * 5 + WORDS)
            arguments = [command, *words, run, *small]
            for _ in range(source.randint(0, 3)):
                arguments += [
                    "--" + source.choice(OPTIONS[command].split()),
                    *source.choices(WORDS, k=source.randint(0, 2)),
                ]
        source.shuffle(arguments) if source.random() < 0.1 else None
        return lambda: main(arguments), arguments

    attempts(one, "flags")


def mutated(value: Any, source: random.Random) -> Any:
    """JSON with one of its values replaced."""
    odd: list[Any] = [None, -1, 0, 1e308, float("nan"), "", "x", [], {}, [[1]], True, 2**70, "a:b", ["a"] * 3]
    if isinstance(value, dict) and value and source.random() < 0.85:
        key = source.choice(list(value))
        if source.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(value[key], source)}
    if isinstance(value, list) and value and source.random() < 0.7:
        place = source.randrange(len(value))
        return [*value[:place], mutated(value[place], source), *value[place + 1 :]]
    return source.choice(odd)


def test_configurations(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    whole = json.loads((run / "config.json").read_text())

    def one(source: random.Random, i: int) -> tuple[Callable[[], object], object]:
        value = mutated(whole, source)
        (run / "config.json").write_text(json.dumps(value))
        command = source.choice([["info"], ["sample", "--count", "2", "--steps", "2", "--out", "x.png"]])
        return lambda: main([command[0], str(run), *command[1:]]), value

    attempts(one, "configurations")


def damaged(data: bytes, source: random.Random) -> bytes:
    """Bytes cut short, changed or with others between."""
    place = source.randrange(len(data) + 1)
    head = source.randrange(min(len(data), 200) + 1)
    return source.choice(
        [
            data[:place],
            data[:place] + source.randbytes(4) + data[place + 4 :],
            data[:head] + source.randbytes(2) + data[head + 2 :],
            data[:head] + data[head + 1 :],
            data[:place] + data[place : place + 100] * 3 + data[place + 100 :],
            b"",
        ]
    )


def test_run_directories(trained: Path, tmp_path: Path) -> None:
    def one(source: random.Random, i: int) -> tuple[Callable[[], object], object]:
        run = tmp_path / f"run{i}"
        shutil.copytree(trained, run)
        (run / "fitted.json").write_text("{}")
        files = sorted(path for path in run.rglob("*") if path.is_file())
        changes: list[str] = []
        for path in source.sample(files, k=source.randint(1, 3)):
            changes.append(path.name)
            if source.random() < 0.15:
                path.unlink()
            else:
                path.write_bytes(damaged(path.read_bytes(), source))
        command = source.choice(["info", "sample", "resume"])
        arguments = {
            "info": ["info", str(run)],
            "sample": ["sample", str(run), "--count", "2", "--steps", "2", "--out", "x.png"],
            "resume": ["train", "--resume", str(run), "--training.steps", "5"],
        }[command]

        def act() -> None:
            try:
                main(arguments)
            finally:
                shutil.rmtree(run)

        return act, (command, changes, i)

    attempts(one, "directories")


def test_pictures(tmp_path: Path) -> None:
    modes = {"1": 1, "L": 1, "P": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 1, "LA": 2}
    formats = ["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico"]

    def one(source: random.Random, i: int) -> tuple[Callable[[], object], object]:
        folder = tmp_path / f"pictures{i}"
        names: list[str] = []
        for place in range(source.randint(1, 5)):
            inside = folder / source.choice(["", "a", "b"])
            inside.mkdir(parents=True, exist_ok=True)
            suffix, mode = source.choice(formats), source.choice(list(modes))
            path = inside / f"{place}.{suffix}"
            names.append(f"{path} {mode}")
            size = (source.randint(1, 12), source.randint(1, 12))
            image = Image.fromarray(np.frombuffer(source.randbytes(size[0] * size[1] * 3), np.uint8).reshape(*size, 3))
            try:
                image.convert("L" if mode == "I;16" else mode).save(path, format="jpeg" if suffix == "jpeg" else None)
            except (OSError, ValueError, KeyError):
                path.write_bytes(source.randbytes(50))
            if source.random() < 0.4:
                path.write_bytes(damaged(path.read_bytes(), source))
        size = source.choice([None, 4, 8])

        def act() -> None:
            data = sfumato.data.load(str(folder), size=size, cache=str(tmp_path / "cache"))
            data.batch(range(len(data)))

        return act, names

    attempts(one, "pictures")


def test_arrays(tmp_path: Path) -> None:
    types = ["u1", "u2", "i1", "i4", "i8", "f2", "f4", "f8", "c8", "?", "U3", "O"]

    def one(source: random.Random, i: int) -> tuple[Callable[[], object], object]:
        shape = tuple(source.choice([0, 1, 2, 3, 4, 8]) for _ in range(source.randint(0, 5)))
        kind = source.choice(types)
        values = np.random.default_rng(i).normal(0, source.choice([1, 100]), shape)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = values.astype(kind)
        if array.dtype.kind == "f" and array.size and source.random() < 0.2:
            array.flat[0] = source.choice([np.nan, np.inf])
        path = tmp_path / f"a{i}.{source.choice(['npy', 'npz'])}"
        np.save(path, array) if path.suffix == ".npy" else np.savez(path, **{source.choice(["images", "x"]): array})
        if source.random() < 0.4:
            path.write_bytes(damaged(path.read_bytes(), source))
        options: dict[str, Any] = {}
        if source.random() < 0.3:
            options["value_range"] = source.choice([(0, 1), (-1, 1), (0, 255), (1, 1), (2, -2)])
        if source.random() < 0.3:
            options["layout"] = source.choice(["NCHW", "NHWC", "NC", "NCL", "NHW"])

        def act() -> None:
            data = sfumato.data.load(str(path), **options)
            data.batch(range(len(data)))

        return act, (shape, kind, path.name, options)

    attempts(one, "arrays")


class Evil:
    """What a pickle can do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_imports(trained: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    seeds: dict[str, bytes] = {}
    torch.save({"a": torch.zeros(2), "b": {"c": [1, 2]}}, tmp_path / "w.pt")
    seeds["w.pt"] = (tmp_path / "w.pt").read_bytes()
    torch.save({"a": Evil(mark)}, tmp_path / "e.pt")
    seeds["e.pt"] = (tmp_path / "e.pt").read_bytes()
    seeds["e.pkl"] = pickle.dumps({"ema": Evil(mark)})
    seeds["e.npy"] = b"\x93NUMPY\x01\x00" + pickle.dumps(Evil(mark))
    seeds["m.safetensors"] = (trained / "model.safetensors").read_bytes()
    unet = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1}
    unet |= {"block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}

    def one(source: random.Random, i: int) -> tuple[Callable[[], object], object]:
        place = tmp_path / f"in{i}"
        place.mkdir()
        if source.random() < 0.5:
            config = mutated(unet, source) if source.random() < 0.8 else unet
            (place / "config.json").write_text(json.dumps(config))
            name = source.choice(["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
            (place / name).write_bytes(source.choice(list(seeds.values())))
            what, target = config, place
        else:
            name = source.choice(list(seeds))
            data = seeds[name] if source.random() < 0.5 else damaged(seeds[name], source)
            (place / name).write_bytes(data)
            what, target = name, place / name
        arguments = ["import", str(target), "--run", str(tmp_path / f"out{i}")]
        if source.random() < 0.5:
            arguments += ["--origin", source.choice(["diffusers", "guided-diffusion", "edm", "x"])]
        return lambda: main(arguments), (arguments[3:], what)

    attempts(one, "imports")
    assert not mark.exists()


def test_edits(trained: Path, tmp_path: Path) -> None:
    def one(source: random.Random, i: int) -> tuple[Callable[[], object], object]:
        paths: list[str] = []
        for name in ("image", "mask"):
            path = tmp_path / f"{name}{i}.{source.choice(['npy', 'png'])}"
            if path.suffix == ".npy":
                np.save(path, np.random.default_rng(i).integers(0, 2, source.choice([(8, 8), (1, 8, 8), (3,), (0, 8)])))
            else:
                side = source.choice([1, 8])
                Image.fromarray(np.full((side, side), source.choice([0, 255]), np.uint8)).save(path)
            if source.random() < 0.4:
                path.write_bytes(damaged(path.read_bytes(), source))
            paths.append(str(path))
        how = source.choice(["inpaint", "sdedit", "invert"])
        more = ["--mask", paths[1], "--repeats", "1"] if how == "inpaint" else []
        arguments = ["edit", str(trained), how, paths[0], *more, "--steps", "2", "--out", "x.png"]
        arguments += ["--count", "2"] if how != "invert" else []
        return lambda: main(arguments), arguments

    attempts(one, "edits")


def test_what_is_trained_on(tmp_path: Path) -> None:
    """A whole training of a step on arrays of any shape."""

    def one(source: random.Random, i: int) -> tuple[Callable[[], object], object]:
        shape = (source.randint(1, 40), *(source.choice([1, 2, 3, 4, 8, 16]) for _ in range(source.randint(0, 3))))
        np.save(tmp_path / f"d{i}.npy", np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8))
        arguments = ["train", f"d{i}.npy", "--run", f"r{i}", *flags(steps=1, batch_size=source.choice([1, 4, 16]))]
        return lambda: main(arguments), (shape, arguments)

    attempts(one, "trainings")
