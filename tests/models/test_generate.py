"""Pictures of prompts: functions of the prompt, the seed and the index alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sfumato
from sfumato.config import Config
from sfumato.errors import InputError, SfumatoWarning
from sfumato.models.batch import cut
from sfumato.models.folders import hardly_trained, load
from sfumato.models.generate import laid_out
from sfumato.models.model import Model
from sfumato.models.storage import Info
from tests.painters import system

ASKED = ["a red circle", "a blue square", "white"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(system(tmp_path_factory.mktemp("systems") / "painter"))


@pytest.mark.parametrize("name", ["base", "the system"])
def test_a_picture_is_that_of_its_prompt_seed_and_index(folder: Path, name: str) -> None:
    model = sfumato.load(folder if name == "the system" else folder / "stages/base")
    # by an ancestral sampler, whose noise of every step has to be that of the index too
    how = {"seed": 3, "guidance": 2.0, "solver": "ancestral", "progress": False}
    stage = {"base": {"solver": "ancestral", "guidance": 1.5}} if name == "the system" else {}
    images = model.generate(ASKED, count=3, first=2, **how, **stage)
    assert images.shape == (9, *model.info.shape)
    for i, prompt in enumerate(ASKED):
        alone = model.sample(3, first=2, text=prompt, **how, **stage)
        torch.testing.assert_close(images[3 * i : 3 * i + 3], alone, atol=1e-5, rtol=0.0)
    # prompts and indices differ by much more than that
    assert min(float((images[0] - images[k]).abs().max()) for k in (1, 3, 6)) > 0.02
    one = model.generate("white", first=4, **how, **stage)
    torch.testing.assert_close(one[0], images[8], atol=1e-5, rtol=0.0)
    for size in (2, 4, 7):
        small = {"base": {**stage["base"], "batch_size": size}} if stage else {}
        found = model.generate(ASKED, count=3, first=2, batch_size=size, **how, **small)
        torch.testing.assert_close(found, images, atol=1e-5, rtol=0.0)


def test_batches_are_whole_prompts_or_a_part_of_one() -> None:
    assert list(cut(12, 7, 3)) == [(0, 6), (6, 6)]
    assert list(cut(9, 2, 3)) == [(0, 2), (2, 1), (3, 2), (5, 1), (6, 2), (8, 1)]
    assert list(cut(10, 4, 10)) == [(0, 4), (4, 4), (8, 2)]
    for prompts, count, size in ((5, 1, 2), (4, 3, 7), (3, 5, 2)):
        names = [f"p{i}" for i in range(prompts)]
        parts = laid_out(names, count, 10, size)
        assert max(map(len, parts)) <= size
        every = [(p, part.first + j) for part in parts for p in part.prompts for j in range(part.count)]
        assert every == [(p, 10 + j) for p in names for j in range(count)]


def test_wrong_prompts_are_refused_before_anything_is_drawn(folder: Path, unchecked: None) -> None:
    model = sfumato.load(folder / "stages/base")
    for prompts, words in (
        ([], "no prompt"),
        (["red", " "], "Prompt 2 of 2 is empty"),
        ([3], "number 1 is 3"),
        (None, "prompts is None"),
    ):
        with pytest.raises(InputError, match=words):
            model.generate(prompts)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="count is 0"):
        model.generate("red", count=0)
    with pytest.raises(InputError, match="given as prompts; leave text out"):
        model.generate("red", text="blue")
    with pytest.raises(SfumatoWarning, match="'a red circle' comes twice"):
        model.generate(["a red circle", "blue", "a red circle"])
    with pytest.raises(SfumatoWarning, match="'purple'"):
        model.generate(["a red circle", "a purple circle"], batch_size=1)
    with pytest.raises(InputError, match="no word of the caption '😀'"):
        model.generate("😀")
    with pytest.raises(InputError, match="2 times larger and needs one to begin with"):
        sfumato.load(folder / "stages/up").generate("red")
    with pytest.raises(InputError, match=r"not trained with captions.*its conditions: none"):
        Model.build(Config(), Info(shape=(1, 8, 8))).generate("red")


def test_what_was_hardly_trained_is_said(folder: Path) -> None:
    model = sfumato.load(folder / "stages/base")
    assert hardly_trained(model) == ""
    model.config = model.config.override({"training.steps": 1000})
    assert "'base' of" in hardly_trained(model) and "2 of 1,000 steps" in hardly_trained(model)
    model.run = Path("runs/x")
    assert hardly_trained(model).startswith("runs/x was hardly trained")
    assert hardly_trained(load(folder)) == ""
