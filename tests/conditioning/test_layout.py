"""The layout of a caption: features of the cells of a grid, which attend to its words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sfumato.conditioning.base import Filled
from sfumato.conditioning.layout import CHANNELS, SIDE, Layout
from sfumato.conditioning.text import TextEncoder
from sfumato.conditioning.words import Words
from sfumato.errors import InputError
from tests.conditioning.test_text import described


def encoder(uses: str) -> TextEncoder:
    torch.manual_seed(0)
    built = described(uses=uses).build_encoder((3, 24, 32), 12, 16)
    assert isinstance(built, TextEncoder)
    return built.double().eval()


def test_what_a_network_is_given() -> None:
    filled = {uses: described(uses=uses).slots((3, 24, 32)) for uses in ("words", "layout", "both")}
    assert filled == {
        "words": Filled(True, 16, 0),
        "layout": Filled(False, None, CHANNELS),
        "both": Filled(True, 16, CHANNELS),
    }
    value = described().given("a red circle", 2)["value"]
    given = {uses: set(encoder(uses)(value)) for uses in filled}
    assert given["layout"] == {"channels"} and given["both"] == given["words"] | {"channels"}
    assert encoder("both")(value)["channels"].shape == (2, CHANNELS, 24, 32)


def test_the_layout_is_that_of_the_words_whatever_is_beside_it() -> None:
    text, both = described(), encoder("both")
    one = both(**text.given("a red square above a circle", 1))["channels"]
    beside = both(**text.given(["", "a red square, above a red circle", "a red square above a circle"], 3))
    torch.testing.assert_close(beside["channels"][2:], one)
    # the order of the words says where things are
    turned = both(**text.given("a circle above a red square", 1))["channels"]
    assert (turned - one).abs().max() > 1e-3


def test_no_caption_has_zeros_and_no_influence_on_the_gradient() -> None:
    text, layout = described(), encoder("layout")
    empty = layout(**text.missing(2))["channels"]
    assert not empty.any() and empty.shape == (2, CHANNELS, 24, 32)
    # nulls of a batch whose other captions are longer
    values = text.given([None, "a red circle"], 2)["value"]
    assert not layout(values)["channels"][0].any() and bool(layout(values)["channels"][1].any())
    empty.sum().backward()
    assert all(p.grad is None or (bool(p.grad.isfinite().all()) and not p.grad.any()) for p in layout.parameters())


def test_each_cell_attends_by_itself() -> None:
    torch.manual_seed(0)
    layout = Layout(Words(5, 8, 1, 2), 8, 2, (3, SIDE, SIDE)).double()
    value = torch.tensor([[1, 2, 3]])
    before = layout(value, value >= 0)
    with torch.no_grad():
        layout.queries[SIDE + 3] += 1.0
    changed = (layout(value, value >= 0) - before).abs().sum((0, 1)) > 1e-9
    assert changed.nonzero().tolist() == [[1, 3]]


def test_layouts_are_of_images() -> None:
    with pytest.raises(InputError, match="of images"):
        described(uses="layout").build_encoder((5,), 12, 16)
    with pytest.raises(InputError, match="not described"):
        replace(described(uses="both"), words=()).build_encoder((3, 8, 8), 12, 16)


def test_what_a_word_means_does_not_depend_on_those_beside_it() -> None:
    """Context decides which words a cell attends to; what it is told is a mean of words by themselves."""
    torch.manual_seed(0)
    layout = Layout(Words(5, 8, 2, 2), 8, 2, (3, SIDE, SIDE)).double()
    layout.out, layout.features, layout.last_norm = nn.Identity(), nn.Identity(), nn.Identity()
    with torch.no_grad():
        # all words attended to alike
        layout.k.weight.zero_()
        layout.k.bias.zero_()
        layout.queries.zero_()
    value = torch.tensor([[1, 2, 3]])
    told = layout.v(layout.norm(layout.read.table(value))).mean(1)[0]  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    torch.testing.assert_close(layout(value, value >= 0).flatten(2)[0], told[:, None].expand(-1, SIDE**2))


def test_features_are_as_large_as_the_image_whatever_a_training_makes_of_them() -> None:
    text, layout = described(), encoder("layout")
    assert layout.layout is not None
    with torch.no_grad():
        layout.layout.features[-1].weight.mul_(50.0)  # pyright: ignore[reportArgumentType, reportCallIssue]
    cells = layout(text.given(["a red circle", "a red square above a circle"], 2)["value"])["channels"]
    # where no cells are mixed by the scaling up: in the corners
    corner = cells[:, :, 0, 0]
    assert corner.mean(1).abs().max() < 1e-6 and (corner.square().mean(1) - 1.0).abs().max() < 1e-3
