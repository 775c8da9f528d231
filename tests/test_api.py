"""The three lines, and what stands behind them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sfumato
from sfumato.config import Ancestral, SamplingConfig
from sfumato.errors import InputError
from tests.training.tiny import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sfumato.Model:
    run = tmp_path_factory.mktemp("runs") / "digits"
    sfumato.train(tiny(data={"labels": True}, training={"steps": 30}), run=run)
    return sfumato.load(run)


def test_every_public_name_is_there() -> None:
    for name in sfumato.__all__:
        assert getattr(sfumato, name) is not None
    assert set(sfumato.__all__) <= set(dir(sfumato))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sfumato.nonsense  # type: ignore[attr-defined]


def test_three_lines(model: sfumato.Model) -> None:
    loaded = sfumato.load(str(model.run))
    images = loaded.sample(64, seed=0)
    assert images.shape == (64, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() >= -1.0 and images.max() <= 1.0
    assert torch.equal(images, loaded.sample(64, seed=0))
    assert not torch.allclose(images, loaded.sample(64, seed=1))


@pytest.mark.parametrize("sampler", [None, Ancestral()])
def test_image_i_of_a_seed_is_the_same_for_any_batch(model: sfumato.Model, sampler: Ancestral | None) -> None:
    sampling = SamplingConfig(steps=5, sampler=sampler) if sampler else None
    whole = model.sample(20, seed=4, sampling=sampling)
    for size in (1, 7, 19):
        assert torch.allclose(model.sample(20, seed=4, batch_size=size, sampling=sampling), whole, atol=1e-5)
    assert torch.allclose(model.sample(3, seed=4, first=11, sampling=sampling), whole[11:14], atol=1e-5)


def test_labels(model: sfumato.Model) -> None:
    sevens = model.sample(4, labels=7)
    assert torch.allclose(sevens, model.sample(4, labels="7"))
    assert torch.allclose(sevens, model.sample(4, labels=torch.tensor([7, 7, 7, 7])))
    assert not torch.allclose(sevens, model.sample(4, labels=1))
    drawn = model.classes_of(None, "frequency", 0, 0, 1000)
    assert drawn is not None
    expected = torch.tensor(model.facts.frequencies) * 1000
    assert (drawn.bincount() - expected).abs().max() < 5
    uniform = model.classes_of(None, "uniform", 0, 7, 1000)
    assert (
        uniform is not None and uniform[:4].tolist() == [7, 8, 9, 0] and uniform.bincount().unique().tolist() == [100]
    )
    for wrong in (torch.tensor([1, 2]), 10, "ten", -2):
        with pytest.raises(InputError):
            model.sample(4, labels=wrong)


def test_a_model_without_labels_refuses_them(tmp_path: Path) -> None:
    plain = sfumato.train(tiny(training={"steps": 1}), run=tmp_path / "run")
    with pytest.raises(InputError, match="without labels"):
        plain.sample(2, labels=3)


def test_sampling_does_not_disturb_the_global_generator(model: sfumato.Model) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model.sample(3)
    assert torch.equal(torch.rand(2), expected)


def test_progress(model: sfumato.Model) -> None:
    seen: list[int] = []
    model.sample(10, batch_size=4, progress=seen.append)
    assert seen == [4, 8, 10]


def test_evaluate(model: sfumato.Model) -> None:
    result = sfumato.evaluate(model, samples=60)
    assert result["classifier"].frechet_floor > 0 and result.train == 1000 and result.heldout == 797
    assert result.accuracy is not None and result.accuracy > 0.95


def test_of_many_images_a_part_is_evaluated(model: sfumato.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.models.evaluate._MOST_VALUES", 300 * 64)
    result = sfumato.evaluate(model, samples=60)
    assert (result.train, result.heldout) == (300, 300)
    assert result == sfumato.evaluate(model, samples=60)


def test_the_readme_in_a_process_of_its_own(model: sfumato.Model) -> None:
    code = f"import sfumato\nmodel = sfumato.load({str(model.run)!r})\nprint(tuple(model.sample(2, seed=0).shape))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 1, 8, 8)"


def test_training_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sfumato.train(tiny(training={"steps": 1}))
    assert (tmp_path / "runs" / "digits" / "model.safetensors").exists()
