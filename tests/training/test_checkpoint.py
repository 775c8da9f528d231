"""Promise 2: a checkpoint is whole or not there, and no pickle is ever loaded."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sfumato
from sfumato.cli import main
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.files import SaveError, write_json
from sfumato.io.tensors import read_tensors, write_tensors
from sfumato.models.model import load
from sfumato.runs.train import train
from sfumato.training.checkpoint import Checkpoints
from tests.training.tiny import tiny

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones((), dtype=torch.float64)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(), run=run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"step": 3})
    tensors, meta = read_tensors(tmp_path / "x.safetensors")
    assert meta == {"step": 3} and all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert names(tmp_path) == ["x.safetensors"]


def test_a_run_describes_itself(run: Path) -> None:
    there = {path.name for path in run.iterdir()}
    assert there == {"config.json", "model.safetensors", "checkpoints", "metrics.jsonl", ".lock"}
    model = load(run)
    assert model.step == 12 and model.info.shape == (1, 8, 8)
    state, _ = read_tensors(max((run / "checkpoints").iterdir()))
    for name, parameter in model.denoiser.named_parameters():
        assert torch.equal(parameter, state[f"ema/{name}"])
    assert len(list((run / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("pad", range(0, 256, 8))
def test_no_header_is_mistaken_for_a_pickle(tmp_path: Path, pad: int) -> None:
    """A safetensors file begins with the length of its header, whose first byte may be that of a pickle."""
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"pad": "x" * pad})
    assert read_tensors(tmp_path / "x.safetensors")[1]["pad"] == "x" * pad


def test_tensors_outlive_their_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS, {})
    tensors, _ = read_tensors(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())


def test_a_new_state_outlives_a_broken_later_one(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path, keep=1)
    saves.save(6, TENSORS, {})
    (tmp_path / "step-000000009.safetensors").write_bytes(b"broken")
    saves.save(8, TENSORS, {})
    found = saves.latest()
    assert found is not None and found[1]["step"] == 8 and names(tmp_path) == ["step-000000008.safetensors"]


def test_a_state_is_of_the_step_that_its_name_says(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path)
    saves.save(6, TENSORS, {})
    (tmp_path / "step-000000006.safetensors").rename(tmp_path / "step-000000007.safetensors")
    with pytest.raises(InputError, match="holds the step 6"):
        saves.latest()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"step": ' + "9" * 5000 + "}", "[1]", "{"])
def test_broken_facts_of_a_file(tmp_path: Path, text: str) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {"sfumato": text})
    with pytest.raises(InputError, match="JSON"):
        read_tensors(tmp_path / "x.safetensors")


def test_weights_are_as_readable_as_other_files(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS, {})
    (tmp_path / "y").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "y").stat().st_mode


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"step": 1e400, "loss": 1e400}', '{"step": ' + "9" * 5000, "\0", "[1]", '"x"']
)
def test_a_damaged_line_of_the_log_is_passed_over(run: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(SystemExit) as end:
        main(["info", str(run)])
    assert end.value.code == 0 and "the mean of the last" in capsys.readouterr().out
    train(run=run, resume=True, training={"steps": 13})
    assert line not in (run / "metrics.jsonl").read_text(encoding="utf-8")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(
    run: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in [run / "model.safetensors", *(run / "checkpoints").iterdir()]:
        if how == "pickle":
            path.write_bytes(pickle.dumps({"weights": Bomb()}))
        else:
            torch.save({"weights": Bomb()}, path)
    with pytest.raises(InputError, match="pickle, which can run any code"):
        load(run)
    with pytest.raises(InputError, match="pickle"):
        train(run=run, resume=True)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_with_only_a_pickle_says_so(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"no config.json.*model.pt, a pickle, which is never loaded"):
        load(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 100, -10])
def test_truncated_weights_fall_back_to_the_checkpoint(run: Path, size: int) -> None:
    good = load(run)
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.warns(SfumatoWarning, match=r"truncated or not a safetensors.*checkpoint of step 12"):
        model = load(run)
    for one, two in zip(model.denoiser.parameters(), good.denoiser.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_truncated_checkpoint_gives_way_to_an_older_one(run: Path, tmp_path: Path) -> None:
    newest = max((run / "checkpoints").iterdir())
    whole, tensors = newest.read_bytes(), read_tensors(newest)[0]
    newest.write_bytes(whole[:-100])
    with pytest.warns(SfumatoWarning, match="Using the older step-000000008"):
        train(run=run, resume=True)
    again = read_tensors(newest)[0]
    # the comparison is a list of names: a difference of long byte strings would take minutes to print
    assert [name for name in tensors if not torch.equal(tensors[name], again[name])] == []
    same = newest.read_bytes() == whole
    assert same


def test_no_whole_checkpoint_is_an_error(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="No checkpoint of this run is whole"):
        train(run=run, resume=True)


def test_a_foreign_safetensors_file(run: Path) -> None:
    save_file({"x": torch.ones(1)}, run / "model.safetensors")
    with pytest.warns(SfumatoWarning, match="not one that Sfumato wrote"):
        load(run)


def test_weights_of_another_model(run: Path, tmp_path: Path) -> None:
    train(tiny(model={"network": {"channels": (8, 16)}}), run=tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(run / "model.safetensors")
    with pytest.raises(InputError, match="of another model"):
        load(run)


def test_a_run_of_another_version(run: Path) -> None:
    value = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**value, "format": 99, "sfumato": "9.0.0"}))
    with pytest.raises(
        InputError, match=rf"format 99, written by sfumato 9.0.0; this is sfumato {sfumato.__version__}"
    ):
        load(run)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "can't be read"), ("[]", r"can't be read.*\[\]"), ("{}", r"can't be read.*\{\}")]
)
def test_a_broken_config(run: Path, text: str, words: str) -> None:
    (run / "config.json").write_text(text)
    with pytest.raises(InputError, match=words):
        load(run)


def test_a_config_with_an_unknown_key(run: Path) -> None:
    value = json.loads((run / "config.json").read_text())
    value["config"]["training"]["batchsize"] = 3
    (run / "config.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"did you mean 'training.batch_size'"):
        load(run)


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run directory"):
        load(tmp_path / "nothing")


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from sfumato.io.files import SaveError
from sfumato.training.checkpoint import Checkpoints
folder = Path(sys.argv[1])
saves = Checkpoints(folder)
saves.save(1, {"a": torch.zeros(10)}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    saves.save(2, {"a": torch.zeros(100_000)}, {})
except SaveError as error:
    print(error)
"""


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    """A real failing write, in the middle of the file: the kernel refuses to let it grow."""
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    assert "Could not write" in done.stdout and "saved before is untouched" in done.stdout
    assert names(tmp_path) == ["step-000000001.safetensors"]
    found = Checkpoints(tmp_path).latest()
    assert found is not None and found[1]["step"] == 1


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "x.json", {"old": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match="the disk is full"):
        write_json(tmp_path / "x.json", {"new": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": 1} and names(tmp_path) == ["x.json"]


def test_training_on_a_full_disk_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sfumato.cli import main
    from sfumato.io import files
    from tests.training.tiny import flags

    real = files.safetensors.torch.save_file
    calls = 0

    def sometimes(*arguments: object, **options: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(28, "No space left on device")
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(files.safetensors.torch, "save_file", sometimes)
    with pytest.raises(SystemExit) as exit_:
        main(["train", "digits", "--run", str(tmp_path / "run"), *flags()])
    assert exit_.value.code == 1
    said = capsys.readouterr()
    assert "the disk is full" in (said.out + said.err).replace("\n", " ")
    monkeypatch.undo()
    assert load(tmp_path / "run").step == 4
