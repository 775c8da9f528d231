"""CLIP's loss against its formula; and that a run of it learns, resumes bit for bit and is judged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import sfumato
from sfumato.cli import main
from sfumato.conditioning import Embedding, Text
from sfumato.conditioning.contrast import Contrast
from sfumato.conditioning.swaps import exchanged, groups_of, neighbours, replaced
from sfumato.config import Config, merge, parse
from sfumato.data import Batch, Column, Dataset
from sfumato.data.shapes import parse as read_picture
from sfumato.data.shapes import scene, shapes
from sfumato.data.sources import SOURCES
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.files import read_json
from sfumato.io.text import packed, unpacked
from sfumato.models.contrast import _wrong, found_rows  # pyright: ignore[reportPrivateUsage]
from sfumato.models.embeddings import embed_captions, embed_images
from sfumato.random import Draws
from sfumato.recipes import contrast as recipe
from sfumato.runs.train import train
from sfumato.training.contrastive import Contrastive, chosen
from tests.training.tiny import TINY

GROUPS = (("red", "green", "blue"), ("circle", "ring"), ("left", "right"))


class _Flat(nn.Module):
    """The features of an image are its values."""

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        assert not time.any()
        return x.flatten(1)


class _Given(nn.Module):
    """The vector is the value."""

    def forward(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"vector": value}


class _Counted(nn.Module):
    """The vector of a caption is how often each letter of "abcde" is in it."""

    def forward(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"vector": functional.one_hot(value.clamp(min=0), 6)[..., 1:].sum(1).float() + 0.1}


def test_the_loss_is_that_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 5, generator=generator) for _ in range(2))
    second[4] = second[1]  # two images of the same description
    model = Contrast(_Flat(), Embedding(drop=0.0, column="code"), _Given(), data_std=2.0, temperature=0.5)
    loss, batch = Contrastive(model), Batch(first, {"code": second}, 0)
    found = loss(batch, Draws(0, 0, 6, 6))
    a, b = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (first, second))
    similarity = np.exp(a @ b.T / 0.5)
    right = np.eye(6)
    right[1, 4] = right[4, 1] = 1.0
    right /= right.sum(1, keepdims=True)
    rows = -(right * np.log(similarity / similarity.sum(1, keepdims=True))).sum(1)
    columns = -(right * np.log(similarity.T / similarity.T.sum(1, keepdims=True))).sum(1)
    assert found.detach().numpy() == pytest.approx(0.5 * (rows + columns), rel=1e-5)
    report = loss.report(batch, Draws(0, 0, 6, 6))
    nearest = right[np.arange(6), similarity.argmax(1)] > 0.0
    assert report["heldout_descriptions found"] == pytest.approx(nearest.mean())
    assert report["heldout_loss"] == pytest.approx(float(found.detach().mean()))
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert float(model.scale.detach()) == pytest.approx(100.0)


def test_changed_captions_are_further_choices_of_their_image_alone() -> None:
    """Against the formula, with what each text is changed into known: it has two words, of one group."""
    letters = ("a", "b", "c", "d", "e")
    text = Text(words=letters, drop=0.0)
    model = Contrast(_Flat(), text, _Counted(), temperature=0.2)
    x0, captions = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)), ["a", "b e", "e"]
    batch = Batch(x0, {"caption": packed(captions)}, 0)
    plain = Contrastive(model)(batch, Draws(0, 0, 3, 3))
    # "a" can only become "b", and the other way round; "e" has no other word
    found = Contrastive(model, swaps=["a b"], changed=2)(batch, Draws(0, 0, 3, 3))

    def logit(image: int, words: str) -> float:
        vector = torch.tensor([words.split().count(letter) + 0.1 for letter in letters])
        return float(functional.cosine_similarity(x0[image], vector, dim=0)) / 0.2

    for image, changed in enumerate(("b", "a e", None)):
        logits = [logit(image, caption) for caption in captions]
        usual = math.log(sum(map(math.exp, logits)))
        wrong = [logit(image, changed)] * 2 if changed is not None else []
        more = 0.5 * (math.log(sum(map(math.exp, [*logits, *wrong]))) - usual)
        assert float((found - plain)[image].detach()) == pytest.approx(more, abs=1e-5)
    # words that the condition hides are hidden in training alone
    hiding = Contrast(_Flat(), Text(words=letters, drop=0.0, drop_words=0.999), _Counted(), temperature=0.2)
    hidden = Contrastive(hiding)
    torch.testing.assert_close(hidden.eval()(batch, Draws(0, 0, 3, 3)), plain)
    assert not torch.allclose(hidden.train()(batch, Draws(0, 0, 3, 3)), plain)
    found.sum().backward()
    assert math.isfinite(float(model.log_scale.grad))  # pyright: ignore[reportArgumentType]


def test_words_are_exchanged_and_replaced() -> None:
    text = "A red circle left of one blue ring, and a red ring"
    assert exchanged("a red circle on a blue ring", GROUPS) == [
        "a blue circle on a red ring",
        "a red ring on a blue circle",
    ]
    assert set(exchanged(text, GROUPS)) == {
        "A blue circle left of one red ring, and a red ring",
        "A red circle left of one red ring, and a blue ring",
        "A red ring left of one blue circle, and a red ring",
        "A red ring left of one blue ring, and a red circle",
    }
    assert replaced("to the left of a Red sun", GROUPS) == [
        "to the right of a Red sun",
        "to the left of a green sun",
        "to the left of a blue sun",
    ]
    assert exchanged("a red ring", GROUPS) == [] == replaced("the reddish sun", GROUPS)
    assert chosen([], [], 0.3, 0.3) is None
    assert chosen([], [["a green sun", "a blue sun"]], 0.3, 0.99) == "a blue sun"
    assert chosen(["blue red"], [], 0.9, 0.9) == "blue red"
    # half of the time each kind, and of replaced words each group alike
    texts = [chosen(["blue red"], [["blue blue", "red red", "x"], ["left"]], (i + 0.5) / 8, 0.4) for i in range(8)]
    assert texts == ["blue red"] * 4 + ["red red"] * 2 + ["left"] * 2
    assert [chosen([], [["a"], ["b"]], u, 0.0) for u in (0.1, 0.6)] == ["a", "b"]
    # letters with marks, and accents that follow their letters
    assert replaced("gru\u0308n und नीला", groups_of(["grün rot", "नीला लाल"])) == ["rot und नीला", "grün und लाल"]
    for wrong in (["red"], ["red blue", "blue green"], [""]):
        with pytest.raises(InputError, match="groups of two or more"):
            groups_of(wrong)


def test_changed_captions_have_neighbours_that_others_have() -> None:
    assert neighbours("a Red and blue ring left of one circle", GROUPS) == {
        *(("red", "blue"), ("blue", "ring"), ("ring", "left"), ("blue", "left"))
    }
    # a blue circle is there in no caption, a red ring is
    text = Text(words=("red", "blue", "circle", "ring"), drop=0.0)
    model = Contrast(_Flat(), text, _Counted(), temperature=0.2)
    loss, x0 = Contrastive(model, swaps=["red blue", "circle ring"], changed=4), torch.randn(2, 5)
    read: list[str] = []
    seen = loss._texts  # pyright: ignore[reportPrivateUsage]

    def texts(x0: torch.Tensor, columns: Any, draws: Draws) -> torch.Tensor:
        read.extend(unpacked(columns["caption"]))
        return seen(x0, columns, draws)

    loss._texts = texts  # pyright: ignore[reportPrivateUsage]
    for captions, changed in (
        (["red circle", "blue ring"], {""}),
        (["red circle", "blue ring and red ring"], {"red ring"}),
    ):
        read.clear()
        loss(Batch(x0, {"caption": packed(captions)}, 0), Draws(0, 0, 2, 2))
        assert changed <= set(read) and not any("blue circle" in caption for caption in read), read


def _config(**over: Any) -> Config:
    small = {"channels": (8, 16), "groups": 4, "embedding": 8, "blocks": 1}
    text = {"width": 16, "layers": 1, "heads": 2}
    base = merge(
        recipe(),
        {
            "model": {"network": small, "features": 16},
            "conditions": {"text": text},
        },
    )
    optimizer = {"warmup": 2, "learning_rate": 1e-2, "decay": "constant"}
    base = merge(base, {"training": TINY["training"], "optimizer": optimizer})
    return parse(Config, merge(base, {"evaluation": {"samples": 0}, **over}))


def test_a_run_learns_and_is_judged_and_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "shapes", lambda part="seen", size=(32, 32): shapes(size[0], 400))
    options = {"steps": 30, "batch_size": 32, "checkpoint_every": 10}
    config = _config(training=options, evaluation={"samples": 40})
    model = train(config, run=tmp_path / "whole")
    assert model.contrast is not None and not model.samples and model.step == 30
    images, texts = embed_images(model, torch.zeros(3, 3, 16, 16)), embed_captions(model, ["a red circle", "a ring"])
    assert images.shape == (3, 16) and texts.shape == (2, 16)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    report = read_json(tmp_path / "whole" / "evaluation.json")
    rows = {row["measure"]: row for row in report["rows"]}
    assert rows["R@1 descriptions of images"]["value"] > 3 * rows["R@1 descriptions of images"]["chance"] > 0.07
    # colours come first: a word that is replaced is noticed before two that change places
    assert rows["a word replaced, seen"]["value"] > 0.5 == rows["words exchanged, seen"]["chance"]
    assert 0.0 < rows["words exchanged, held-out pair"]["value"] < 1.0
    losses = [line["loss"] for line in _metrics(tmp_path / "whole") if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]

    train(_config(training={**options, "steps": 20}), run=tmp_path / "parts")
    train({"training": {"steps": 30}}, run=tmp_path / "parts", resume=True)
    whole, parts = (sfumato.load(tmp_path / name).module.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    again = sfumato.evaluate(tmp_path / "whole", samples=40)
    assert [row.value for row in again.rows] == [row["value"] for row in report["rows"]]
    for use in (lambda: model.sample(1), lambda: sfumato.evaluate(model, torch.zeros(4, 3, 32, 32))):
        with pytest.raises(InputError, match="samples nothing"):
            use()


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_captions_of_others_than_shapes_are_judged_too(tmp_path: Path) -> None:
    """A caption names the colour of a picture and of its right half: 6 of 9 pairs, which are told apart."""
    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    names = [(a, b) for a in colours for b in colours if a != b] * 20
    pixels = np.zeros((len(names), 3, 8, 8), np.float32)
    for image, (left, right) in zip(pixels, names, strict=True):
        image[:, :, :4] = np.array(colours[left])[:, None, None]
        image[:, :, 4:] = np.array(colours[right])[:, None, None]
    captions = np.array([f"{a} beside {b}" for a, b in names], dtype=object)
    data = Dataset((pixels * 255).astype(np.uint8), {"caption": Column(captions)})
    config = _config(
        training={"steps": 60, "batch_size": 12},
        evaluation={"samples": 30},
        data={"scale_down": 1},
        objective={"swaps": ["red green blue"]},
    )
    model = train(config, data=data, run=tmp_path / "run")
    rows = {row.measure: row for row in sfumato.evaluate(model).rows}
    assert model.info.train == 108 and set(rows) >= {"words exchanged, held-out", "a word replaced, held-out"}
    assert rows["words exchanged, held-out"].value > 0.9 and rows["R@1 descriptions of images"].value > 0.9


def test_the_chance_of_retrieval_counts_images_with_the_same_description() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (functional.normalize(torch.randn(6, 4, generator=generator), dim=1) for _ in range(2))
    column = torch.tensor([[1], [1], [1], [2], [2], [3]])
    found, _, score = found_rows(images, texts, [column])
    assert found.chance == pytest.approx((9 + 4 + 1) / 36)
    nearest = (images @ texts.T).argmax(1)
    assert found.value == pytest.approx(float((column[nearest] == column).double().mean()))
    other = [float(images[i] @ texts[j]) for i in range(6) for j in range(6) if column[i] != column[j]]
    assert score.chance == pytest.approx(np.mean(other), abs=1e-6)
    assert found_rows(images, texts, [column * 0])[0].chance == 1.0


def test_changed_captions_that_are_right_are_passed_over() -> None:
    scenes = (scene(index, things=2) for index in range(99))
    parsed = read_picture(next(one.draw(32) for one in scenes if one.facts.things[0].shape == "cross"))
    assert parsed.facts is not None
    one, other = (thing.shape for thing in parsed.facts.things)
    right, wrong = f"a {one} and a {other}", f"a {one} and a {one} and a {other}"
    assert _wrong([right], 0.5, parsed) is None and _wrong([right, wrong], 0.0, parsed) == wrong
    assert _wrong([right], 0.5, None) == right


def test_wrong_images_and_captions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "shapes", lambda part="seen", size=(32, 32): shapes(size[0], 40))
    model = train(_config(training={"steps": 1}), run=tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    values = torch.from_numpy(pixels).float() / 127.5 - 1.0
    torch.testing.assert_close(embed_images(model, pixels), embed_images(model, values))
    assert embed_images(model, values[:0]).shape == embed_captions(model, []).shape == (0, 16)
    for wrong in (values[0], values[:, :1], values.double(), pixels.astype(np.int64), "picture.png"):
        with pytest.raises(InputError, match="expected uint8 or float32 of shape"):
            embed_images(model, wrong)
    captions: list[Any] = ["a red ring", [""], [None], ["a ring", " "]]
    for wrong in captions:
        with pytest.raises(InputError, match="list of texts"):
            embed_captions(model, wrong)
    with pytest.warns(SfumatoWarning, match="purple"):
        found = embed_captions(model, ["a purple ring"])
    torch.testing.assert_close(found, embed_captions(model, ["a ring"]))
    with pytest.raises(InputError, match="knows no word"):
        embed_captions(model, ["🙂"])
    with pytest.raises(InputError, match="2 held-out images"):
        sfumato.evaluate(model, samples=1)
    # what goes on from it has pictures of the same size, before they are scaled down
    with pytest.raises(SystemExit):
        main(["train", "shapes", "--init-from", str(tmp_path / "run"), "--print-config"])
    printed = capsys.readouterr().out
    assert json.loads(printed)["data"]["size"] == [64, 64] and json.loads(printed)["data"]["scale_down"] == 4


def test_what_can_not_be() -> None:
    config = _config()
    for over, words in (
        ({"conditions": {"text": None}}, "compares images with one condition"),
        ({"conditions": {"label": {}}}, "there are 2"),
        ({"model": {"network": {"kind": "unet"}}}, "take the network classifier"),
        ({"model": {"learned_variance": True}}, "contrastive"),
        ({"objective": "denoising"}, "contrast"),
        ({"conditions": {"text": {"drop": 0.1}}}, "conditions.text.drop to 0"),
        ({"training": {"batch_size": 1}}, "images of a batch"),
        ({"evaluation": {"best": "FD"}}, "model that samples"),
        ({"data": {"flip": True}}, "left and right"),
    ):
        with pytest.raises(InputError, match=words):
            config.override(over)
    model = Contrast(_Flat(), Embedding(column="code"), _Given())
    for options, words in (
        ({"changed": 0}, "at least 1 changed"),
        ({"swaps": ["red blue"]}, "leave objective.swaps out"),
    ):
        with pytest.raises(InputError, match=words):
            Contrastive(model, **options)
    with pytest.raises(InputError, match="must be positive"):
        Contrast(_Flat(), Embedding(column="code"), _Given(), temperature=0.0)


def test_the_layout_of_a_caption_is_a_part_of_its_embedding() -> None:
    """A linear map of the cells, zero at the start; without it the embedding is that of the words alone."""
    text = Text(words=("red", "ring"), drop=0.0, uses="both", width=8, layers=1, heads=1)
    config = parse(Config, merge(recipe(), {"conditions": {"text": {"uses": "both"}}, "model": {"features": 6}}))
    model = config.model.build_contrast((3, 16, 16), {"text": text})
    value = torch.tensor([[1, 2], [2, 1]])
    with torch.no_grad():
        slots = model.encoder(value=value)
        assert slots["channels"].shape == (2, 16, 16, 16) and model.layout is not None
        torch.testing.assert_close(model.texts(value=value), functional.normalize(slots["vector"], dim=1))
        torch.nn.init.normal_(model.layout.weight)
        cells = slots["channels"].unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5)).flatten(1)
        wanted = functional.normalize(slots["vector"] + cells @ model.layout.weight.T + model.layout.bias, dim=1)
        torch.testing.assert_close(model.texts(value=value), wanted, atol=1e-5, rtol=1e-4)
