"""Captions as a condition: how they are read, dropped, masked and told apart."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.conditioning import Text
from sfumato.conditioning.base import given_tensors, nulling, training_tensors
from sfumato.conditioning.words import PAD, Words, split, vocabulary
from sfumato.data import Dataset
from sfumato.data.dataset import Column
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.text import packed
from sfumato.random import Draws

CAPTIONS = ["A red circle.", "a blue square", "", "a red square, above a circle"]


def data(captions: list[str] = CAPTIONS) -> Dataset:
    images = np.zeros((len(captions), 3, 8, 8), dtype=np.uint8)
    return Dataset(images, {"caption": Column(np.array(captions))}, "pictures")


def described(**options: Any) -> Text:
    return Text(**{"width": 16, "layers": 2, "heads": 2, "length": 8, **options}).describe(data())


def slots(text: Text, parts: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    encoder = text.build_encoder((3, 8, 8), 12, 16)
    for parameter in encoder.parameters():
        # branches that are zero at the start would hide what reaches them
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.double()(**parts)


def test_words_are_split_in_any_writing() -> None:
    assert split("A Red-ish circle's 2 dots!") == ["a", "red", "-", "ish", "circle's", "2", "dots", "!"]
    assert split("Größe 赤い丸 🔴🔴") == ["größe", "赤", "い", "丸", "🔴", "🔴"]
    assert split("cafe\u0301 café") == ["café", "café"] and split("हिन्दी में लाल।") == ["हिन्दी", "में", "लाल", "।"]
    assert split(" \n ") == []


def test_the_vocabulary_is_the_most_frequent_words() -> None:
    assert vocabulary(["b a a", "c b a"], 2) == ("a", "b")
    # of equally frequent ones the first by the alphabet
    assert vocabulary(["z y", "x"], 2) == ("x", "y")
    text = described()
    assert text.words[:2] == ("a", "circle") and "," in text.words and len(text.words) == 8
    assert described(most_words=3).words == ("a", "circle", "red")


def test_the_words_of_training_and_of_a_prompt_are_the_same() -> None:
    text = described()
    columns = {"caption": packed(CAPTIONS)}
    trained = text.training(torch.zeros(4, 3, 8, 8), columns, Draws(0, 0, 4, 4))["value"]
    assert torch.equal(trained, text.given(CAPTIONS, 4)["value"])
    # the missing caption is none, which the others are not
    assert text.null_rows({"value": trained}).tolist() == [False, False, True, False]
    assert torch.equal(text.given(None, 2)["value"], text.missing(2)["value"])
    assert text.given("A RED circle", 1)["value"].tolist() == text.given("a red circle", 1)["value"].tolist()


def test_several_captions_take_turns_whatever_the_batch() -> None:
    text = described()
    whole = text.given(CAPTIONS[:2], 5)["value"]
    assert torch.equal(whole[3:], text.given(CAPTIONS[:2], 2, first=3)["value"])
    assert torch.equal(whole[0], whole[2]) and not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_what_is_behind_the_last_word_says_nothing(pooled: bool, norm: bool) -> None:
    text = described(pooled=pooled, norm=norm)
    one = slots(text, text.given("a red circle", 1))
    both = slots(text, text.given(["a red circle", "a red square above a circle"], 2))
    assert both["mask"].tolist()[0] == [True] * 3 + [False] * 3
    assert (one["tokens"][0] - both["tokens"][0, :3]).abs().max() < 1e-12
    assert ("vector" in one) == pooled
    if pooled:
        assert (one["vector"][0] - both["vector"][0]).abs().max() < 1e-12
        assert (both["vector"][0] - both["vector"][1]).abs().max() > 1e-3


def test_the_order_of_words_matters() -> None:
    text = described()
    first, second = text.given(["circle above square", "square above circle"], 2)["value"].split(1)
    one, other = slots(text, {"value": first}), slots(text, {"value": second})
    assert (one["vector"] - other["vector"]).abs().max() > 1e-3


def test_no_caption_is_a_learned_token_and_vector() -> None:
    text = described()
    parts = text.given([None, "a red circle"], 2)
    found = slots(text, parts)
    assert found["mask"].tolist() == [[True, False, False], [True] * 3]
    torch.manual_seed(0)
    encoder = text.build_encoder((3, 8, 8), 12, 16)
    out = encoder(**parts)
    assert torch.equal(out["tokens"][0, 0], encoder.fill.null_token.value)  # type: ignore[union-attr]
    assert out["vector"].isfinite().all()
    (out["vector"].sum() + out["tokens"].sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_captions_are_dropped_at_their_rate_and_guided_away_from() -> None:
    text = described(drop=0.25)
    columns = {"caption": packed(["a red circle"] * 4000)}
    tensors = training_tensors({"text": text}, torch.zeros(4000, 3, 1, 1), columns, Draws(0, 0, 4000, 64))
    share = float((tensors["text"] == PAD).all(1).double().mean())
    # four standard deviations of 4,000 draws
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    given = given_tensors({"text": text}, {"text": "a circle"}, 2)
    assert text.null_rows({"value": nulling({"text": text})(given)["text"]}).all()


def test_words_against_an_independent_transformer() -> None:
    """The encoder is PyTorch's own pre-norm transformer with the same weights, with a bias for each distance."""
    torch.manual_seed(0)
    words = Words(9, 16, 1, 2).double()
    for parameter in words.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = torch.nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", 1e-5, batch_first=True, norm_first=True).double()
    block: Any = words.blocks[0]
    pairs = {
        "self_attn.in_proj": block.attention.qkv, "self_attn.out_proj": block.attention.out,
        "linear1": block.first, "linear2": block.second, "norm1": block.norm1, "norm2": block.norm2,
    }  # fmt: skip
    state = {
        f"{name}{'_' if name.endswith('in_proj') else '.'}{kind}": getattr(module, kind)
        for name, module in pairs.items()
        for kind in ("weight", "bias")
    }
    theirs.load_state_dict(state)
    numbers = torch.tensor([[1, 2, 3, PAD, PAD, PAD], [4, 0, 9, 5, 1, 1]])
    bias = torch.zeros(2, 2, 6, 6, dtype=torch.float64)
    for head, i, j in itertools.product(range(2), range(6), range(6)):
        bias[:, head, i, j] = block.attention.distances[head, min(max(j - i, -3), 3) + 3]
    bias.masked_fill_((numbers == PAD)[:, None, None], -torch.inf)
    wanted = theirs(words.table(numbers.clamp(min=0)), bias.flatten(0, 1))
    assert ((words(numbers) - wanted).abs().amax(2)[numbers != PAD]).max() < 1e-10


def test_words_are_the_same_wherever_they_stand() -> None:
    """With one layer a word depends on the order of those up to three away; of those further away only on which."""
    torch.manual_seed(0)
    words = Words(9, 16, 1, 2).double()
    near = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    turned = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 9, 8]])
    same, changed = (words(near) - words(turned)).abs().amax(2)[0, [0, 4]], (words(near) - words(turned)).abs()[0, 5]
    assert same.max() < 1e-12 and changed.max() > 1e-3
    # moved, behind others that are too far away to matter but by being there
    moved = torch.tensor([[8, 9, 9, 1, 2, 3, 4, 5, 6, 7, PAD]])
    swapped = torch.tensor([[9, 8, 9, 1, 2, 3, 4, 5, 6, 7, PAD]])
    torch.testing.assert_close(words(moved)[0, 6:10], words(swapped)[0, 6:10])
    block: Any = words.blocks[0]
    # what is far has no weight at all: a phrase is the same wherever it stands
    block.attention.distances.data[:, [0, -1]] = -1e9
    behind = torch.tensor([[7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
    torch.testing.assert_close(words(behind)[0, 5:8], words(near)[0, 2:5])


def test_single_words_are_dropped_in_training_only() -> None:
    text = replace(described(), drop=0.0, drop_words=0.2)
    columns = {"caption": packed(["a red circle", "a circle"] * 2000)}
    x0 = torch.zeros(4000, 3, 1, 1)
    value = text.training(x0, columns, Draws(0, 0, 4000, 64))["value"]
    whole = text.evaluation(x0, columns, Draws(0, 0, 4000, 64))["value"]
    there = whole != PAD
    assert torch.equal(value != PAD, there) and torch.equal(
        whole, text.given(["a red circle", "a circle"], 4000)["value"]
    )
    dropped = (value != whole)[there]
    assert (value[value != whole] == 0).all()
    assert abs(float(dropped.double().mean()) - 0.2) < 4 * (0.2 * 0.8 / 10_000) ** 0.5
    # a sample's words do not depend on those beside it
    alone = {"caption": packed(["a circle"])}
    assert torch.equal(text.training(x0[:1], alone, Draws(0, 7, 1, 64))["value"][0], value[7, :2])
    for wrong in (-0.1, 1.0):
        with pytest.raises(InputError, match="drop_words"):
            replace(text, drop_words=wrong)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("zebra unicorn", "no word of .*zebra"),
        ("🦓", "no word"),
        ("赤い丸", "no word"),
        (["a circle"] * 3, "3 captions .* 2 images"),
        ([], "string"),
        (7, "string"),
        ([7], "string"),
        (b"a circle", "string"),
    ],
    ids=str,
)
def test_prompts_that_are_none(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        described().given(value, 2)


def test_what_can_not_be_read_is_named() -> None:
    text = described()
    with pytest.warns(SfumatoWarning, match="other words"):
        given = described().given("a shiny red circle", 1)["value"]
    assert torch.equal(given, described().given("a red circle", 1)["value"])
    with pytest.warns(SfumatoWarning, match="does not know 'zebra', 'on'.*other words"):
        parts = text.given("a red zebra on a circle", 1)
    assert torch.equal(parts["value"], text.given("a red a circle", 1)["value"])
    with pytest.warns(SfumatoWarning, match="10 words, and the model reads 8.* 'square circle'"):
        parts = text.given("a red circle above a blue square a square circle", 1)
    assert parts["value"].shape == (1, 8)


def test_data_without_captions_are_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        Text().describe(data(["", " "]))
    with pytest.raises(InputError, match="no column 'caption'"):
        Text().describe(Dataset(np.zeros((2, 3, 8, 8), dtype=np.uint8)))
    with pytest.raises(InputError, match="no captions"):
        Text(column="n").describe(Dataset(np.zeros((2, 3, 8, 8), np.uint8), {"n": Column(np.zeros(2, np.int64))}))
    with pytest.raises(InputError, match="without captions"):
        Text().given("a circle", 1)
    with pytest.raises(InputError, match="divide"):
        Text(width=10, heads=4)
    with pytest.raises(InputError, match="not described"):
        Text().build_encoder((3, 8, 8), 4, 4)


def test_stages_that_know_other_words_do_not_mean_the_same() -> None:
    assert described().meaning == described().meaning != replace(described(), words=("a",)).meaning
