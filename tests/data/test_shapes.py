"""Scenes of shapes: drawn by index, described by a grammar that reads what it writes, and parsed or refused."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests.data.reading import load

from sfumato.data import Dataset, Loader
from sfumato.data.shapes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    Facts,
    Placed,
    Relation,
    Scene,
    Thing,
    agreement,
    facts_of,
    held_out_pairs,
    parse,
    scene,
    shapes,
    split_of,
    unknown_words,
)
from sfumato.data.shapes.captions import read_caption, write_caption
from sfumato.data.shapes.coverage import coverage, depth
from sfumato.data.shapes.parser import lab
from sfumato.data.shapes.scenes import PALETTE
from sfumato.errors import InputError
from sfumato.io.text import unpacked
from sfumato.models.data import scaled_down

SEVEN = "a small red circle left of a large blue square"


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def blurred(picture: np.ndarray, pixels: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture.astype(np.float64), (0, pixels, pixels))


def described(facts: Facts) -> list[str]:
    return sorted(f"{thing.size} {thing.colour} {thing.shape}" for thing in facts.things)


def is_right(index: int, picture: np.ndarray) -> bool:
    """Whether the parser finds just the things of a scene and its relation."""
    facts, parsed = scene(index).facts, parse(picture).facts
    return parsed is not None and described(parsed) == described(facts) and agreement(facts, picture).whole


def shares_of_right(size: int, count: int) -> tuple[float, float]:
    """Of pictures as they are, and of those with noise, blur and 8 bits."""
    noise = np.random.default_rng(3)
    right = [0, 0]
    for index in range(count):
        picture = scene(index).draw(size)
        worse = rounded(blurred(picture, 0.5) + noise.normal(0.0, 0.03 * 127.5, picture.shape))
        right[0] += is_right(index, picture)
        right[1] += is_right(index, worse)
    return right[0] / count, right[1] / count


@pytest.mark.parametrize("size", [32, 64])
def test_real_pictures_are_parsed(size: int) -> None:
    real, worse = shares_of_right(size, 150)
    assert real == 1.0 and worse >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_ten_thousand_real_pictures_are_parsed(size: int) -> None:
    real, worse = shares_of_right(size, 10_000)
    assert real == 1.0 and worse >= 0.995


def test_places_are_found_to_a_tenth_of_a_pixel() -> None:
    for index in range(60):
        drawn = scene(index)
        found = parse(drawn.draw(64)).placed
        assert len(found) == len(drawn.placed)
        for true in drawn.placed:
            guess = min(found, key=lambda thing: np.hypot(thing.x - true.x, thing.y - true.y))
            assert true.thing == guess.thing
            assert max(abs(true.x - guess.x), abs(true.y - guess.y), abs(true.radius - guess.radius)) < 0.1


def test_scenes_depend_on_seed_and_index_alone() -> None:
    whole, part, late = shapes(32, 40), shapes(32, 7), shapes(32, 10, first=25)
    captions = whole.columns["caption"].texts(range(40))
    assert np.array_equal(whole.images[:7], part.images) and np.array_equal(whole.images[25:35], late.images)
    assert late.columns["caption"].texts(range(10)) == captions[25:35]
    assert captions == [scene(i).caption for i in range(40)]
    assert not np.array_equal(part.images, shapes(32, 7, seed=1).images)
    assert whole[3]["image"].shape == (3, 32, 32) and whole[3]["caption"] == captions[3]


def test_scenes_are_drawn_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = Scene.draw
    monkeypatch.setattr(Scene, "draw", lambda self, size: drawn.append(size) or draw(self, size))
    data = shapes(64, 10**6)
    order = [999_999, 4, 31]
    captions = data.columns["caption"].texts(order)
    assert not drawn
    assert np.array_equal(data.images[order], [scene(i).draw(64) for i in order]) and len(drawn) == 6
    assert captions == data.columns["caption"].texts(order) == [scene(i).caption for i in order]
    data.images[4][:] = 0  # of a copy, as Lazy promises
    assert np.array_equal(data.subset([4, 31]).images[:], data.images[[4, 31]]) and data.images[4].any()
    assert len(drawn) == 6  # none was drawn twice
    assert unpacked(Loader(data).batch(0, 3).cond["caption"]) == [
        scene(int(i)).caption for i in Loader(data).indices(0, 3)
    ]


def test_shapes_are_scaled_down_when_they_are_drawn() -> None:
    """As those in memory are, and the parser reads them: the base model of a cascade is trained on these."""
    data = shapes(64, 10**6)
    low, stored = scaled_down(data, 2), scaled_down(Dataset(data.images[:30]), 2)
    assert low.shape == (3, 32, 32) and np.array_equal(low.images[:30], stored.images)
    assert all(is_right(index, low.images[index]) for index in range(30))


def test_shapes_are_a_source() -> None:
    assert len(load("shapes")) == 50_000 and load("shapes").columns["caption"].is_text
    for split in SPLITS[1:]:
        data = load(f"shapes:{split.replace(' ', '-')}", size=64, columns=("caption",))
        assert np.array_equal(data.images[7], scene(7, split=split).draw(64)) and len(data) == 10_000
    for wrong in ("shapes:unseen", "digits:seen"):
        with pytest.raises(InputError, match="expected"):
            load(wrong)
    for size in (48, (32, 64)):
        with pytest.raises(InputError, match="32 or 64"):
            load("shapes", size=size)
    with pytest.raises(InputError, match="tile"):
        load("shapes", tile=32)
    with pytest.raises(InputError, match="no column 'label'"):
        load("shapes", columns=("label",))


def test_a_picture_of_32_is_the_mean_of_that_of_64() -> None:
    small, large = shapes(32, 20).images[:], shapes(64, 20).images[:]
    mean = np.asarray(large, dtype=np.float64).reshape(20, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.abs(mean - small).max() <= 1.0


def test_coverage_is_the_area_within_a_pixel() -> None:
    """Against 64 x 64 points of each pixel, of which those near an edge decide; and each shape's known area."""
    chance, edges, points = np.random.default_rng(0), np.arange(33.0), 64
    fine = (np.arange(32 * points) + 0.5) / points
    for shape in SHAPES:
        for _ in range(3):
            radius, x, y = chance.uniform(4.0, 10.9), *chance.uniform(12.0, 20.0, 2)
            covered = coverage(shape, edges - x, edges - y, radius)
            inside = depth(shape, fine - x, (fine - y)[:, None], radius) >= 0.0
            assert np.abs(covered - inside.reshape(32, points, 32, points).mean(axis=(1, 3))).max() < 1 / points
            parts = {"circle": np.pi, "square": 1.8**2, "triangle": 1.8, "cross": 4 * 0.72 - 0.72**2}
            whole = np.pi * (radius**2 - (radius - 2.2) ** 2) if shape == "ring" else parts[shape] * radius**2
            assert abs(covered.sum() - whole) < 1e-9


def test_coverage_is_a_number_at_every_edge() -> None:
    edges = np.arange(33.0) - 16.0
    for radius in np.random.default_rng(0).uniform(4.0, 10.9, 500).tolist():
        for shape in ("circle", "ring"):
            covered = coverage(shape, edges, edges, radius)
            assert covered.min() > -1e-9 and covered.max() < 1.0 + 1e-9  # false for NaN


def test_things_keep_their_distance() -> None:
    """Measured on the pixels of single things drawn alone, not on the numbers that placed them."""
    for index in range(60):
        drawn = scene(index)
        masks = []
        for placed, colour in zip(drawn.placed, drawn.colours, strict=True):
            alone = type(drawn)(drawn.facts, (placed,), "", colour[None], drawn.background)
            empty = type(drawn)(drawn.facts, (), "", colour[:0], drawn.background)
            masks.append((alone.draw(64) != empty.draw(64)).any(axis=0))
        for one, other in itertools.combinations(masks, 2):
            # 2 pixels of 32 are 4 of 64; the pixels at both edges are covered in part
            assert ndimage.distance_transform_edt(~one)[other].min() > 3.0
        assert not any(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any() for mask in masks)


def test_sizes_and_relations_have_margins() -> None:
    relations: Counter[str] = Counter()
    for index in range(400):
        drawn = scene(index)
        for placed in drawn.placed:
            assert placed.radius <= 4.6 if placed.thing.size == "small" else placed.radius >= 6.2
        for relation in drawn.facts.relations:
            a, b = drawn.placed[relation.first], drawn.placed[relation.second]
            across, down = b.x - a.x, b.y - a.y
            relations[relation.word] += 1
            along, other = (across, down) if relation.word in ("left of", "right of") else (down, across)
            if relation.word == "inside":
                assert b.thing.shape == "ring" and np.hypot(across, down) < b.radius - a.radius
            else:
                along = -along if relation.word in ("right of", "below") else along
                assert along >= 1.5 * abs(other) and along >= a.radius + b.radius + 2.0
    assert set(relations) == set(RELATIONS)


def test_colours_and_their_mixtures_are_apart() -> None:
    named = lab(PALETTE / 255.0)
    # scikit-image's conversion agrees, where it is installed
    skimage = pytest.importorskip("skimage.color")
    assert np.abs(named - skimage.rgb2lab(PALETTE[None] / 255.0)[0]).max() < 0.1
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(named, 2)]
    assert min(distances) >= 60.0
    greys = [np.full(3, grey) for grey in range(75, 191, 5)]
    for i, colour in enumerate(PALETTE):
        for j, other in enumerate([*PALETTE, *greys]):
            for share in np.linspace(0.0, 1.0, 11):
                mixed = lab((share * colour + (1.0 - share) * other) / 255.0)
                rest = [named[k] for k in range(len(named)) if k not in (i, j)]
                assert min(np.linalg.norm(mixed - known) for known in rest) > 35.0


@pytest.mark.parametrize("size", [32, 64])
def test_what_shows_nothing_is_refused(size: int) -> None:
    scale = size / 32
    pictures = [scene(index).draw(size) for index in range(100)]
    greys = [np.full((3, size, size), value, np.uint8) for value in range(0, 256, 15)]
    mush = [rounded(blurred(picture, scale * (1.5 + i % 3))) for i, picture in enumerate(pictures[:60])]
    means = [rounded((a.astype(float) + b) / 2) for a, b in itertools.pairwise(pictures)]
    noise = np.random.default_rng(1)
    noisy = [rounded(picture + noise.normal(0, 50, picture.shape)) for picture in pictures[:20]]
    for wrong in (*greys, *mush, *means, *noisy):
        parsed = parse(wrong)
        assert parsed.facts is None and parsed.refusal and not parsed.placed
        answer = agreement(SEVEN, wrong)
        assert not answer.whole and answer.fraction == 0.0 and answer.refusal == parsed.refusal


def of_things(*things: tuple[str, str, float, float, float], grey: float = 120.0) -> np.ndarray:
    """A picture of things at places of one's own."""
    placed = tuple(Placed(Thing(shape, colour), x, y, radius) for shape, colour, x, y, radius in things)
    colours = np.array([PALETTE[COLOURS.index(thing[1])] for thing in things]).reshape(-1, 3)
    background = np.array([[grey] * 3, [0.0] * 3, [0.0] * 3])
    return type(scene(0))(Facts((Thing(),)), placed, "", colours, background).draw(32)


def test_what_is_ambiguous_is_refused() -> None:
    a, b = ("circle", "red", 8.0, 8.0, 4.2), ("square", "blue", 22.0, 22.0, 4.2)
    assert parse(of_things(a, b)).refusal is None
    between = parse(of_things(("circle", "red", 12.0, 12.0, 5.4))).refusal
    assert between and "neither small nor large" in between
    four = parse(of_things(a, b, ("cross", "cyan", 8.0, 22.0, 4.2), ("ring", "green", 22.0, 8.0, 4.2))).refusal
    assert four and "4 things" in four
    assert parse(of_things(a, ("square", "blue", 15.0, 8.0, 4.2))).refusal  # they touch
    gone = of_things(a, b)
    gone[:, 18:22] = 120  # half of the square is missing
    assert parse(gone).refusal
    tinted = of_things(a, b)
    tinted[0] = np.minimum(tinted[0].astype(int) + 70, 255)
    assert parse(tinted).refusal
    orange = of_things(a)
    orange[1][orange[0] > 200] = 130
    assert parse(orange).refusal


def test_numbers_of_any_kind_are_parsed_alike() -> None:
    picture = scene(2).draw(32)
    floats = picture.astype(np.float32) / 127.5 - 1.0
    facts = parse(picture).facts
    assert facts == parse(floats).facts == parse(torch.from_numpy(floats)).facts and facts is not None
    floats[0, 0, 0] = np.nan
    assert "finite" in str(parse(floats).refusal)
    for wrong in (picture[:1], picture[:, :16, :16], picture.astype(np.int64)):
        with pytest.raises(InputError, match="expected"):
            parse(wrong)


@pytest.mark.parametrize("split", SPLITS)
def test_captions_state_the_facts_of_their_scenes(split: str) -> None:
    partial = 0
    for index in range(200):
        drawn = scene(index, split=split)
        reading = read_caption(drawn.caption)
        assert reading.is_held_out_wording == (split == "held-out wording")
        assert split_of(drawn.caption) == split or reading.facts.count < drawn.facts.count
        assert agreement(reading.facts, drawn.draw(32)).whole, drawn.caption
        partial += reading.facts.count < drawn.facts.count
    assert 20 < partial < 70 if split == "seen" else partial == 0


def test_words_become_facts_and_facts_words() -> None:
    facts = facts_of(SEVEN)
    things = (Thing("circle", "red", "small"), Thing("square", "blue", "large"))
    assert facts == Facts(things, (Relation(0, "left of", 1),)) and facts.count == 7
    told = facts_of("There is a square, with one circle that is small to its left!")
    assert told == Facts((Thing("square"), Thing("circle", None, "small")), (Relation(1, "left of", 0),))
    same = facts_of("one large and blue square with, to its left, a red and small circle")
    assert same == Facts(things[::-1], (Relation(1, "left of", 0),))
    chance = random.Random(4)
    wordings: set[str] = set()
    for word in RELATIONS:
        given = Facts(things, (Relation(0, word, 1),))
        for is_held_out in (False, True):
            for _ in range(60):
                caption = write_caption(given, chance.randrange, is_held_out=is_held_out)
                reading = read_caption(caption)
                assert reading.is_held_out_wording == is_held_out
                assert described(reading.facts) == described(given)
                first = reading.facts.things.index(things[0])
                assert reading.facts.holds(Relation(first, word, 1 - first)), caption
                wordings.add(caption)
    assert len(wordings) > 200


def test_words_of_held_out_wording_are_all_seen() -> None:
    seen, unseen = (
        {w for i in range(500) for w in scene(i, split=s).caption.replace(",", "").split()} for s in SPLITS[::2]
    )
    assert unseen <= seen


def test_unknown_words_are_named() -> None:
    assert unknown_words("A purple circle left of the Moon, 🙂") == ("purple", "moon", "🙂")
    with pytest.raises(InputError, match="purple"):
        facts_of("a purple circle")
    joined = ("a small and circle", "a and red circle", "a red and blue circle", "a ring and " * 4 + "a ring")
    for wrong in ("", "circle", "left of", f"{SEVEN} left of a ring", "a small large circle", *joined):
        assert not unknown_words(wrong)
        with pytest.raises(InputError):
            facts_of(wrong)


def test_a_fifth_of_the_pairs_is_held_out() -> None:
    pairs = [held_out_pairs(Facts((Thing(s, c),))) for s in SHAPES for c in COLOURS]
    sizes = [held_out_pairs(Facts((Thing(s, None, z),))) for s in SHAPES for z in SIZES]
    left = (Relation(0, "left of", 1),)
    orders = [held_out_pairs(Facts((Thing(a), Thing(b)), left)) for a in SHAPES for b in SHAPES]
    for group in (pairs, sizes, orders):
        assert sum(map(bool, group)) / len(group) == 0.2
    assert held_out_pairs(facts_of("a square right of a circle")) == ("circle left of square",)
    assert not held_out_pairs(facts_of("a square left of a circle"))
    assert split_of("a red circle") == "held-out pair" and split_of("a blue circle") == "seen"
    assert split_of("a circle that is small and blue") == "held-out wording"


def test_training_shows_no_held_out_pair() -> None:
    shapes_of_colours: Counter[tuple[str | None, str | None]] = Counter()
    for index in range(400):
        drawn = scene(index)
        parsed = parse(drawn.draw(32)).facts
        assert parsed is not None and not held_out_pairs(parsed)  # in the picture, not only in what was meant
        shapes_of_colours.update((thing.colour, thing.shape) for thing in drawn.facts.things)
        assert held_out_pairs(scene(index, split="held-out pair").facts)
    assert len(shapes_of_colours) == 24


def test_agreement_counts_each_fact() -> None:
    picture = of_things(("circle", "red", 8.0, 15.0, 4.2), ("square", "blue", 23.0, 16.0, 6.5))
    right = agreement(SEVEN, picture)
    assert right.whole and right.fraction == 1.0
    assert right.said == {"shape": 2, "colour": 2, "size": 2, "relation": 1} == right.right
    swapped = agreement("a small blue circle right of a large red square", picture)
    assert swapped.right == {"shape": 2, "colour": 0, "size": 2, "relation": 0} and not swapped.whole
    assert swapped.fraction == 4 / 7
    assert agreement("a large square that is blue and to its left a circle", picture).whole
    fewer = agreement("a small red circle", picture)
    assert fewer.fraction == 1.0 and not fewer.whole
    more = agreement(f"{SEVEN}, and a green ring", picture)
    assert more.right == right.right and more.said["shape"] == 3


def test_shuffled_captions_agree_at_chance() -> None:
    drawn = [scene(index, things=2) for index in range(150)]
    found = [parse(one.draw(32)) for one in drawn]
    others = [agreement(one.facts, parsed) for one, parsed in zip(drawn[1:], found, strict=False)]
    assert sum(other.whole for other in others) / len(others) < 0.03
    said, right = (sum((Counter(getattr(other, name)) for other in others), Counter()) for name in ("said", "right"))
    # two things of six colours; the matching that helps most raises the chance above 1/6
    assert 1 / 6 < right["colour"] / said["colour"] < 0.5
    assert 0.05 < right["relation"] / said["relation"] < 0.45


@pytest.mark.parametrize("wrong", [{"size": 48}, {"count": 0}, {"split": "unseen"}, {"things": 4}, {"first": -1}])
def test_wrong_options_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        shapes(**{"count": 2, **wrong})
