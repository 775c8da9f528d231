"""Trainings that the page starts: the same as on the command line, and nothing else can be read, written or run."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

pytest.importorskip("gradio")

from sfumato.app import curves, orders, train, watching
from sfumato.app.orders import DIGITS, UPLOAD, Wanted
from sfumato.app.training import Trainings
from sfumato.config import KINDS, Config, nested, walk
from sfumato.errors import InputError
from sfumato.training.checkpoint import Checkpoints
from tests.training.tiny import LONG, command, flags

STEPS = 200


def tiny_options(**training: Any) -> str:
    """The flags of a tiny training that have no field of their own on the page."""
    found = flags(**training)
    at = found.index("--condition")
    del found[at : at + 2]
    at = found.index("--training.steps")
    del found[at : at + 2]
    return " ".join(found)


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.effect_noise((16, 16), 60.0).save(folder / f"{number}.png")
    return sorted(map(str, folder.glob("*.png")))


def wait_until(trainings: Trainings, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert trainings.running, trainings.failed or trainings.said
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_stopped_and_resumed_is_what_the_command_line_trains(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    trainings = Trainings(runs)
    options = {"checkpoint_every": 100_000}
    wanted = Wanted(DIGITS, "small", steps=STEPS, options=tiny_options(**options))
    whole = command("train", "digits", "--run", "whole", *flags(steps=STEPS, **options), cwd=tmp_path)
    try:
        assert trainings.start(wanted) == "small"
        assert watching.look(trainings, "small").state == "starting"
        assert watching.names(trainings) == [("small (training now)", "small")]
        with pytest.raises(InputError, match="One training runs at a time, and 'small' is running"):
            trainings.start(Wanted(DIGITS, "other", steps=10))
        wait_until(trainings, lambda: watching.look(trainings, "small").step >= 10)
        view = watching.look(trainings, "small")
        assert view.state == "running" and "images/s" in view.sentence and view.steps == STEPS
        trainings.stop()
        assert watching.look(trainings, "small").state in ("stopping", "stopped")
        assert trainings.wait(LONG)
    finally:
        trainings.close()
    saved, view = Checkpoints(runs / "small" / "checkpoints").newest(), watching.look(trainings, "small")
    assert saved is not None and 10 <= saved < STEPS and not trainings.failed
    assert view.state == "stopped" and view.resumable and f"step {saved} of {STEPS}" in view.sentence
    with FileLock(runs / "small" / ".lock"):
        view = watching.look(trainings, "small")
        assert view.state == "elsewhere" and not view.resumable
    with pytest.raises(InputError, match="There is a run 'small' already"):
        trainings.start(wanted)

    trainings.resume("small")
    assert trainings.wait(LONG) and not trainings.failed, trainings.failed
    view = watching.look(trainings, "small")
    assert view.state == "complete" and trainings.completed == 1 and not view.resumable
    assert whole.wait(LONG) == 0
    assert (runs / "small" / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert list(runs.glob(".*.log")) == []
    assert view.curve.steps == tuple(range(1, STEPS + 1)) and view.curve.heldout
    assert curves.plot(view.curve).axes

    shown = train._refreshed(trainings, None, {})
    assert "Complete" in shown[3] and f"step {STEPS}/{STEPS}" in watching.log(trainings, "small")
    again = train._refreshed(trainings, "small", shown[-2])
    assert all(update == {"__type__": "update"} for update in again[:-2])
    shutil.rmtree(runs / "small")
    assert "stopped before its first step, or its folder is gone" in watching.look(trainings, "small").sentence
    with pytest.raises(InputError, match="There is no run 'small' any more"):
        watching.look(Trainings(runs), "small")
    assert "There is no run" in train._refreshed(Trainings(runs), "small", {})[3]
    with pytest.raises(InputError, match="There is no run"):
        trainings.resume("small")


def test_a_folder_without_pictures_fails_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    trainings = Trainings(tmp_path / "runs", {"my photos": tmp_path / "empty"})
    assert trainings.start(Wanted("folder:my photos", budget="20s", size=16)) == "my-photos"
    assert trainings.wait(LONG)
    view = watching.look(trainings, "my-photos")
    assert view.state == "failed" and "hold no images" in view.sentence and not view.resumable
    assert "hold no images" in watching.log(trainings, "my-photos")
    assert ("my-photos (failed)", "my-photos") in watching.names(trainings)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".hidden", "-x", "x" * 61, "a b", "uploads", "ä"])
def test_names_that_are_no_names_are_refused(tmp_path: Path, name: str) -> None:
    trainings = Trainings(tmp_path / "runs")
    with pytest.raises(InputError, match="can't be named"):
        trainings.start(Wanted(DIGITS, name, steps=1))
    with pytest.raises(InputError):
        trainings.resume(name)
    with pytest.raises(InputError):
        watching.look(trainings, name)
    assert trainings.running is None and not (tmp_path / "runs").exists()


def test_other_folders_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "train.log").write_text("secret")
    (tmp_path / "runs").mkdir()
    shown = train._refreshed(Trainings(tmp_path / "runs"), "../secret", {})
    assert "There is no run" in shown[3] and "secret" not in str(shown[4:-2])


def test_options_may_set_numbers_and_names() -> None:
    text = "--optimizer.learning-rate 1e-3 --model.network.channels 8 -1 .5 --sampling.sampler=dpm++2m --data.flip"
    assert orders.checked_options(text) == text.split()
    assert orders.checked_options("--evaluation.best 'FD (pixels)' --model.network dit")[-1] == "dit"
    assert orders.checked_options(" ") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--model.network my.module:Net", "no paths"),
        ("--model.network.kind=os:system", "no paths"),
        ("--sampling.guidance.classifier other", "can't be set"),
        ("--data.holdout ~/x", "no paths"),
        ("--data.cache elsewhere", "can't be set"),
        ("--data.no-embeddings", "can't be set"),
        ("--data.size 8", "field of its own on the page"),
        ("--conditions.text.kind text", "the groups that can"),
        ("--run elsewhere", "--group.setting value"),
        ("--overwrite", "--group.setting value"),
        ("--trust", "--group.setting value"),
        ("--resume=x", "--group.setting value"),
        ("-h", "--group.setting value"),
        ("digits", "--group.setting value"),
        ("--data.flip 'a", "quotation mark"),
        ("--model.network @file", "no paths"),
    ],
)
def test_options_that_name_paths_or_code_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        orders.checked_options(text)


SLOTS = {
    **{slot: f"model.{slot}" for slot in ("schedule", "parameterization", "network")},
    **{"objective": "objective", "weight": "objective.weight", "times": "objective.times"},
    **{"optimizer": "optimizer.method", "sampler": "sampling.sampler", "grid": "sampling.grid"},
}


def test_all_settings_that_take_paths_are_refused() -> None:
    """Whatever setting is of a path or of any text, in a kind of any slot, is refused or known to be harmless."""
    harmless = {"evaluation.features", "evaluation.measures", "evaluation.best", "objective.column", "objective.swaps"}
    kinds = [nested(place, {"kind": kind}) for slot, place in SLOTS.items() for kind in KINDS[slot]]
    settings = {(key, str(field.annotation)) for values in ({}, *kinds) for key, field in walk(Config, values)}
    plain = {key: re.sub(r"Literal\[[^]]*\]", "", kind) for key, kind in settings}
    free = {key for key, kind in plain.items() if "Path" in kind or "str" in kind or "Any" in kind}
    assert "data.source" in free and "model.schedule.file" in free
    for key in free - harmless:
        with pytest.raises(InputError):
            orders.checked_options(f"--{key.replace('_', '-')} word")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"steps": 0}, "number of steps"),
        ({"steps": None}, "number of steps"),
        ({"steps": 1.5}, "number of steps"),
        ({"steps": 1, "seed": -1}, "The seed"),
        ({"data": "toys", "budget": "1m", "size": 8}, "Choose the data"),
        ({"data": "folder:../x", "budget": "1m", "size": 8}, "Choose the data"),
        ({"data": "/etc", "budget": "1m", "size": 8}, "Choose the data"),
        ({"data": "folder:toys", "budget": "soon", "size": 8}, "A budget is a time"),
        ({"data": "folder:toys", "budget": "1m", "size": 4096}, "size of the pictures"),
        ({"data": UPLOAD, "budget": "1m", "size": 8}, "Upload the pictures"),
    ],
)
def test_numbers_are_checked_on_the_server(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    trainings = Trainings(tmp_path / "runs", {"toys": tmp_path})
    with pytest.raises(InputError, match=message):
        trainings.start(Wanted(**more))
    assert trainings.running is None


def test_uploads_are_checked_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "uploads" / "mine"
    files = pictures(tmp_path / "given", 12)
    assert orders.keep_pictures(files, kept) == kept and len(list(kept.iterdir())) == 12
    orders.keep_pictures(files[:10], kept)
    assert len(list(kept.iterdir())) == 10
    damaged, text = tmp_path / "damaged.png", tmp_path / "notes.txt"
    damaged.write_bytes(Path(files[0]).read_bytes()[:50])
    text.write_text("x")
    for path, message in ((damaged, r"damaged\.png: The file is damaged"), (text, r"notes\.txt: .* not a picture")):
        with pytest.raises(InputError, match=message):
            orders.keep_pictures([*files, str(path)], kept)
    with pytest.raises(InputError, match="at most 2,000"):
        orders.keep_pictures(files[:1] * 2001, kept)
    assert len(list(kept.iterdir())) == 10 and [path.name for path in kept.parent.iterdir()] == ["mine"]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    files = pictures(tmp_path / "given", 10)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(InputError, match="could not be kept: the disk is full"):
            orders.keep_pictures(files, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    monkeypatch.setattr(subprocess, "Popen", full)
    trainings = Trainings(tmp_path / "runs")
    with pytest.raises(InputError, match="could not be started: the disk is full"):
        trainings.start(Wanted(DIGITS, steps=1))
    assert trainings.running is None


def test_names_by_the_data_are_free(tmp_path: Path) -> None:
    assert orders.usual_name(DIGITS, tmp_path) == "digits"
    (tmp_path / "digits").mkdir()
    assert orders.usual_name(DIGITS, tmp_path) == "digits-2"
    assert orders.usual_name("uploads", tmp_path) == "uploads-2"
    assert orders.usual_name("folder:photos", tmp_path) == "photos"
    assert orders.usual_name("../Über uns", tmp_path) == "ber-uns"


def test_what_is_asked_for_as_options() -> None:
    shapes = orders.arguments(Wanted("shapes", budget="5m", size=32, classes=True))
    assert shapes == ["--task", "text", "--training.seed", "0", "--budget", "5m", "--data.size", "32"]
    digits = orders.arguments(Wanted(DIGITS, steps=750, classes=True, seed=3))
    assert digits == ["--condition", "label", "--training.seed", "3", "--training.steps", "750"]
    assert orders.arguments(Wanted(UPLOAD, budget="5m", size=16, classes=True))[:2] == ["--condition", "none"]


def test_smoothing_starts_at_the_first_value() -> None:
    assert curves.smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert curves.smoothed([2.0])[0] == pytest.approx(2.0)
