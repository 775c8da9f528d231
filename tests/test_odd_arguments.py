"""Arguments of wrong types, to all that is public: each is answered by one sentence that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.errors import InputError, check_arguments
from sfumato.runs.train import train
from tests.training.tiny import LABELLED, tiny

NOT_WHOLE: tuple[Any, ...] = (1.5, "a", "", b"x", [], {}, np.zeros(3), torch.zeros(0), object(), float("nan"))
NOT_A_PATH: tuple[Any, ...] = (None, 3, 1.5, b"x", [], {}, np.zeros(3), lambda x: x)
NOT_A_FLAG: tuple[Any, ...] = ("yes", 1.5, [], np.zeros(3))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sfumato.Model:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    return train(tiny(conditions=LABELLED, training={"steps": 1}), run=run)


IMAGE = torch.zeros(1, 8, 8)
CALLS: dict[str, tuple[Callable[[Any, Any], object], tuple[Any, ...]]] = {
    "run of load": (lambda m, v: sfumato.load(v), NOT_A_PATH),
    "trust of load": (lambda m, v: sfumato.load(m.run, trust=v), NOT_A_FLAG),
    "device of load": (lambda m, v: sfumato.load(m.run, v), ("x", "", -1, [], {}, 2**70, object())),
    "run of save": (lambda m, v: sfumato.save(m, v), NOT_A_PATH),
    "model of save": (lambda m, v: sfumato.save(v, "x"), (None, 3, "x", {})),
    "count of sample": (lambda m, v: m.sample(v), (None, *NOT_WHOLE)),
    "seed of sample": (lambda m, v: m.sample(1, seed=v), (None, *NOT_WHOLE)),
    "first of sample": (lambda m, v: m.sample(1, first=v), (None, *NOT_WHOLE)),
    "batch_size of sample": (lambda m, v: m.sample(1, batch_size=v), NOT_WHOLE),
    "steps of sample": (lambda m, v: m.sample(1, steps=v), NOT_WHOLE),
    "solver of sample": (lambda m, v: m.sample(1, solver=v), (3, 1.5, "no such", [], object())),
    "sampling of sample": (lambda m, v: m.sample(1, sampling=v), (3, "x", [1], {"steps": 3})),
    "label of sample": (lambda m, v: m.sample(1, label=v), (1.5, "no such", {}, object(), [{}])),
    "count of frames": (lambda m, v: list(m.frames(v)), NOT_WHOLE),
    "shape of generate": (lambda m, v: sfumato.generate(m.denoiser, v), (None, 3, "x", (), [1.5, 2], {})),
    "config of train": (lambda m, v: sfumato.train(v), (3, "no such", [1])),
    "run of train": (lambda m, v: sfumato.train(tiny(), run=v), NOT_A_PATH[1:]),
    "overwrite of train": (lambda m, v: sfumato.train(tiny(), overwrite=v), NOT_A_FLAG),
    "budget of train": (lambda m, v: sfumato.train(tiny(), budget=v), ([], {}, "soon")),
    "data of evaluate": (lambda m, v: sfumato.evaluate(v), (None,)),
    "samples of evaluate": (lambda m, v: sfumato.evaluate(m, samples=v), NOT_WHOLE),
    "seed of evaluate": (lambda m, v: sfumato.evaluate(m, seed=v), NOT_WHOLE),
    "images of tune": (lambda m, v: sfumato.tune(m, images=v), (None, *NOT_WHOLE)),
    "steps of tune": (lambda m, v: sfumato.tune(m, steps=v), NOT_WHOLE),
    "bins of bits_per_dim": (lambda m, v: sfumato.bits_per_dim(m, IMAGE[None], bins=v), NOT_WHOLE),
    "draws of bits_per_dim": (lambda m, v: sfumato.bits_per_dim(m, IMAGE[None], draws=v), NOT_WHOLE),
    "count of inpaint": (lambda m, v: sfumato.inpaint(m, IMAGE, IMAGE > 0, v), NOT_WHOLE),
    "repeats of inpaint": (lambda m, v: sfumato.inpaint(m, IMAGE, IMAGE > 0, repeats=v), NOT_WHOLE),
    "strength of sdedit": (lambda m, v: sfumato.sdedit(m, IMAGE, v), (None, "a", [], {}, np.zeros(3))),
    "count of interpolate": (lambda m, v: sfumato.interpolate(m, 0, 1, v), NOT_WHOLE),
    "data of Dataset.of": (lambda m, v: sfumato.Dataset.of(v), (None, 3)),
    "images of Dataset": (lambda m, v: sfumato.Dataset(v), (None, 3, "x", [], {}, torch.zeros(2, 1, 8, 8))),
    "indices of batch": (lambda m, v: sfumato.data.load("digits").batch(v), (None, "x", {}, object(), [2**70])),
    "indices of subset": (lambda m, v: sfumato.data.load("digits").subset(v), (None, "x", {}, object(), [2**70])),
    "holdout of split": (lambda m, v: sfumato.data.load("digits").split(v, 0), (None, "x", [], {}, -1, 2.5)),
    "size of data.load": (lambda m, v: sfumato.data.load("digits", size=v), ("x", 1.5, {}, object(), -1)),
    "dataset of Loader": (lambda m, v: sfumato.Loader(v), (None, 3, "x", np.zeros(3), [])),
}


@pytest.mark.parametrize("what", CALLS)
def test_an_argument_of_a_wrong_type(
    what: str, model: sfumato.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    monkeypatch.chdir(tmp_path)
    call, values = CALLS[what]
    for value in values:
        with pytest.raises(InputError) as error:
            call(model, value)
        said = str(error.value)
        assert "\n" not in said and "pydantic" not in said and "Input should" not in said, said
    assert not list(tmp_path.iterdir())


def test_numbers_of_other_libraries_are_numbers() -> None:
    def function(count: int, rate: float, flag: bool, run: str | Path, size: int | tuple[int, int] | None) -> None: ...

    good: dict[str, tuple[Any, ...]] = {
        "count": (3, np.int64(3), torch.tensor(3)),
        "rate": (1, 1.5, np.float32(1.5), torch.tensor(1.5)),
        "flag": (True, np.bool_(True)),
        "run": ("x", Path("x")),
        "size": (None, 3, (3, 4), [3, 4]),
    }
    for name, values in good.items():
        for value in values:
            check_arguments(function, {name: value, "other": object()})
    with pytest.raises(InputError, match=r"^size is 'x'; expected a whole number or two of them or None\.$"):
        check_arguments(function, {"size": "x"})
