"""Agreement of pictures with captions: perfect, blank and exchanged pictures, whose agreement is known by counting."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from sfumato.data.shapes import SPLITS, Facts, Parsed, Thing, facts_of, scene
from sfumato.data.shapes.captions import write_caption
from sfumato.errors import InputError
from sfumato.metrics.agreement import AgreementReport, Share, agreement, parsed
from sfumato.metrics.estimate import share, wilson
from sfumato.metrics.report import Report, table

COUNT = 10
SCENES = {split: [scene(i, seed=5, split=split) for i in range(COUNT)] for split in SPLITS}
REAL = {split: torch.from_numpy(np.stack([one.draw() for one in SCENES[split]])) for split in SPLITS}
BLANK = Parsed(None, "there is no thing in it")


@cache
def shown(split: str = "seen") -> tuple[Parsed, ...]:
    return tuple(parsed(REAL[split], workers=1))


def captions(split: str = "seen") -> list[str]:
    return [one.caption for one in SCENES[split]]


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 13), (970, 1000), (1, 100_000)])
def test_intervals_are_those_of_scipy(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, "wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-7)
    assert Share(right, count).interval == wilson(right, count)
    # one standard deviation to both sides holds 68.27 %
    around = binomtest(right, count).proportion_ci(0.6826894921, "wilson")
    assert share(right, count).error == pytest.approx((around.high - around.low) / 2.0, rel=1e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_real_pictures_agree_and_are_the_ceiling(split: str) -> None:
    found = agreement(captions(split), REAL[split], real=shown(split))
    assert all(one.right == one.asked > 0 for one in found.right.values()) and found.ceiling == found.right
    assert found.refused == 0 and not found.refusals and found.captions == COUNT
    things = Counter(len(one.facts.things) for one in SCENES[split])
    assert {count: one.asked for count, one in found.things.items()} == things
    said = sum(facts_of(one).count for one in captions(split))
    assert sum(one.asked for kind, one in found.right.items() if kind not in ("whole", "count")) == said


def test_floats_are_clipped_as_files_are() -> None:
    some = REAL["seen"][:2]
    assert parsed(1.3 * (some.float() / 127.5 - 1.0)) == parsed((1.3 * (some.float() / 127.5 - 1.0)).clamp(-1.0, 1.0))


def test_blank_pictures_are_refused_and_count_as_wrong() -> None:
    blank = torch.full((COUNT, 3, 32, 32), 128, dtype=torch.uint8)
    assert parsed(blank) == [BLANK] * COUNT
    half = [BLANK if i % 2 == 0 else one for i, one in enumerate(shown())]
    found = agreement(captions(), half, real=shown())
    assert found.refused == 5 and found.refusals == {"there is no thing in it": 5}
    assert found.right["whole"] == found.right["count"] == Share(5, 10)
    said = [facts_of(one) for one in captions()]
    colours = [sum(thing.colour is not None for thing in facts.things) for facts in said]
    assert found.right["colour"] == Share(sum(colours[1::2]), sum(colours))
    none = agreement(captions(), blank)
    assert none.refused == COUNT and all(one.right == 0 for one in (*none.right.values(), *none.chance.values()))
    assert "10 x there is no thing in it" in str(none) and "0/10 = 0.0 % [0.0, 27.8]" in str(none)


def test_refusals_are_counted_by_their_reasons() -> None:
    noise = np.random.default_rng(0)
    found = agreement(captions(), noise.uniform(-1.0, 1.0, (COUNT, 3, 32, 32)).astype(np.float32))
    assert found.refused == COUNT == sum(found.refusals.values()) and len(found.refusals) <= 6
    odd = [Parsed(None, f"noise of 0.{i}7 covers the picture") for i in range(3)]
    odd += [Parsed(None, f"a thing fits no shape (a ring leaves 0.{i} of its contrast)") for i in range(2)]
    odd += [Parsed(None, f"a thing is between {name} and ring") for name in ("circle", "cross", "square", "triangle")]
    found = agreement(captions()[:9], odd)
    few = {"noise of x covers the picture": 3, "a thing fits no shape": 2, "others": 1}
    assert found.refused == 9 and few.items() <= found.refusals.items() and len(found.refusals) == 6


def test_chance_is_what_counting_predicts() -> None:
    singles = [scene(i, seed=6, things=1, split="held-out wording") for i in range(60)]
    facts = [one.facts for one in singles]
    # as they are parsed, which is tested elsewhere
    seen = [Parsed(one) for one in facts]
    seeds = 40
    found = [agreement(facts, seen, seed=seed).chance for seed in range(seeds)]
    for kind in ("shape", "colour", "size"):
        counts = Counter(getattr(one.things[0], kind) for one in facts)
        # of two different pictures
        same = sum(n * (n - 1) for n in counts.values()) / (60 * 59)
        mean = sum(one[kind].right for one in found) / sum(one[kind].asked for one in found)
        assert mean == pytest.approx(same, abs=4.0 * (same * (1.0 - same) / (60 * seeds)) ** 0.5)
    assert all(one["count"].value == 1.0 for one in found)
    # where no two pictures are alike, none agrees with another caption, and so none was left its own
    alone = list({one: i for i, one in enumerate(facts)}.values())
    assert 20 < len(alone) < 60
    for seed in range(seeds):
        chance = agreement([facts[i] for i in alone], [seen[i] for i in alone], seed=seed).chance
        assert chance["whole"] == Share(0, len(alone))


def test_each_kind_of_fact_is_counted_by_itself() -> None:
    one = Thing("circle", "cyan", "small")
    seen = [Parsed(Facts((one,)))] * 2
    found = agreement([Facts((Thing("circle", "red", "small"),)), Facts((one,))], seen)
    right = {kind: one.right for kind, one in found.right.items()}
    assert right == {"whole": 1, "count": 2, "shape": 2, "colour": 1, "size": 2}  # no relation is stated
    # of a caption with another number of things all facts can hold
    more = agreement([write_caption(Facts((one, Thing())), lambda _: 0)], seen[:1])
    assert more.right["count"] == more.right["whole"] == Share(0, 1) and more.right["colour"] == Share(1, 1)
    assert not more.chance and "chance" not in str(more)


def test_processes_parse_in_order() -> None:
    several = torch.cat(list(REAL.values()) * 2)
    several[1::2] = 128  # which take no time
    expected = [BLANK if i % 2 else one for i, one in enumerate([one for split in REAL for one in shown(split)] * 2)]
    assert len(several) >= 60 and parsed(several, workers=3) == expected


def test_a_report_is_json_and_back() -> None:
    found = agreement(captions(), [*shown()[:7], *[BLANK] * 3], real=shown())
    again = AgreementReport.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert found.to_dict()["right"]["whole"]["interval"] == list(wilson(7, 10))


def test_rows_of_a_report() -> None:
    found = agreement(captions(), [BLANK, *shown()[1:]], real=shown())
    report = Report("run", {"samples": COUNT}, tuple(found.rows("seen")), notes=(found.note("seen"),))
    entry = report["agreement (seen)"]
    assert entry.value == 0.9 and entry.floor == 1.0 and entry.interval == wilson(9, 10)
    assert entry.chance == found.chance["whole"].value and entry.is_better_than(0.8)
    assert report["relation (seen)"].value == found.right["relation"].value
    drawn = table(report)
    assert "chance" in [column.header for column in drawn.columns]
    assert "0.900 [0.596, 0.982]" in list(drawn.columns[2].cells)
    assert "1 pictures refused (1 x there is no thing in it)" in str(drawn.caption)


def test_wrong_inputs_are_answered_in_words() -> None:
    with pytest.raises(InputError, match="10 captions and 9 pictures"):
        agreement(captions(), REAL["seen"][:9])
    with pytest.raises(InputError, match="10 captions and 3 real pictures"):
        agreement(captions(), shown(), real=shown()[:3])
    with pytest.raises(InputError, match="no captions"):
        agreement([], [])
    with pytest.raises(InputError, match="unknown words: dog"):
        agreement(["a red dog"], shown()[:1])
    with pytest.raises(InputError, match=r"expected \(3, 32, 32\)"):
        agreement(captions()[:1], torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="0 processes"):
        parsed(REAL["seen"], workers=0)
