"""The evaluation as a whole: real pictures score like real pictures, copies and noise are recognized."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from sfumato.data import Dataset, load
from sfumato.data.dataset import Column
from sfumato.errors import InputError
from sfumato.metrics import Evaluator, Moments, frechet, kid, table
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.measures import MEASURES, Vectors, of_pairs
from sfumato.metrics.report import Report, Row, number, row


def part(data: Dataset, start: int, count: int) -> torch.Tensor:
    return data.batch(range(start, start + count))


@pytest.fixture(scope="module")
def sets() -> tuple[Dataset, Dataset, Dataset]:
    """Digits: 600 as samples, 600 that were trained on, 597 held out."""
    order = np.random.default_rng(0).permutation(1797)
    digits = load("digits")
    return digits.subset(order[:600]), digits.subset(order[600:1200]), digits.subset(order[1200:])


@pytest.fixture(scope="module")
def judge(sets: tuple[Dataset, Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    return Evaluator(sets[1], sets[2], cache=tmp_path_factory.mktemp("cache"), progress=False)


@pytest.fixture(scope="module")
def real(judge: Evaluator, sets: tuple[Dataset, Dataset, Dataset]) -> Report:
    return judge(sets[0], labels=sets[0].columns["label"].rows(np.arange(600)))


def test_real_pictures_are_at_the_floor(real: Report) -> None:
    assert real.main.title == "FD (classifier)" and real.counts == {"samples": 600, "training": 600, "held-out": 597}
    for entry in real.rows:
        assert entry.error is not None and entry.error > 0.0, entry
        assert entry.floor is not None or entry.measure in ("nearest / real", "copies"), entry
        if entry.floor is not None:
            spread = math.hypot(entry.error, entry.floor_error or 0.0)
            assert abs(entry.value - entry.floor) < 4.0 * spread, entry
    for space in ("classifier", "pixels"):
        assert real[f"nearest / real ({space})"].value == pytest.approx(1.0, abs=0.1)
        assert real[f"copies ({space})"].value < 0.05
    assert real["accuracy"].value > 0.95


def test_numbers_are_those_of_the_functions(
    real: Report, judge: Evaluator, sets: tuple[Dataset, Dataset, Dataset]
) -> None:
    space = judge._network("classifier")  # pyright: ignore[reportPrivateUsage]
    samples, train, heldout = (space(part(data, 0, len(data))) for data in sets)
    known = frechet(samples, heldout)
    assert real["FD"].value == pytest.approx(known.value, rel=1e-5)
    assert real["FD"].error == pytest.approx(known.error, rel=1e-4)
    assert real["FD"].floor == pytest.approx(frechet(train, heldout).value, rel=1e-5)
    assert real["KID"].value == pytest.approx(kid(samples, heldout).value, rel=1e-4)


def test_copies_and_noise(judge: Evaluator, sets: tuple[Dataset, Dataset, Dataset]) -> None:
    copied = judge(sets[1])
    assert copied["copies (pixels)"].value == 1.0 and copied["nearest / real (pixels)"].value == 0.0
    noise = torch.randn(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    report = judge(noise)
    assert (report["FD"].ratio or 0.0) > 10.0
    assert report["precision k=3"].value < 0.5


def test_against_training(judge: Evaluator, sets: tuple[Dataset, Dataset, Dataset]) -> None:
    """The published convention; its floor is that of the held-out pictures."""
    other = Evaluator(sets[1], sets[2], against="training", measures=("fd",), spaces=("pixels",), progress=False)
    report = other(sets[1])
    assert report.main.title == "FD (pixels)" and report.main.value == pytest.approx(0.0, abs=1e-6)
    train, heldout = (part(data, 0, len(data)).flatten(1) for data in sets[1:])
    assert report.main.floor == pytest.approx(frechet(heldout, train).value, rel=1e-5)


def test_one_set_of_real_pictures(sets: tuple[Dataset, Dataset, Dataset], tmp_path: Path) -> None:
    """Its floor is that of a part of it against the rest, and its neighbours are among the others."""
    report = Evaluator(sets[1], cache=tmp_path, progress=False)(part(sets[0], 0, 300))
    assert report.counts == {"samples": 300, "real": 600}
    assert (report["FD"].floor or 0.0) > 0.0
    assert report["nearest / real (pixels)"].value == pytest.approx(1.0, abs=0.15)


def test_statistics_are_as_good_as_pictures_for_a_distance(sets: tuple[Dataset, Dataset, Dataset]) -> None:
    moments = Moments.fit(part(sets[2], 0, 597).flatten(1))
    report = Evaluator(moments, spaces=("pixels",), progress=False)(sets[0])
    known = frechet(part(sets[0], 0, 600).flatten(1), part(sets[2], 0, 597).flatten(1))
    assert report["FD"].value == pytest.approx(known.value, rel=1e-5) and report["FD"].floor is None
    both = Evaluator(moments, spaces=("pixels",), progress=False).of_statistics(moments)
    assert both.main.value == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(InputError, match="statistics"):
        Evaluator(moments, spaces=("pixels",), measures=("kid",), progress=False)(sets[0])


def test_features_of_ones_own(sets: tuple[Dataset, Dataset, Dataset]) -> None:
    def means(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).mean(2).expand(-1, 3) + torch.arange(3.0)

    report = Evaluator(sets[1], sets[2], spaces=(means,), measures=("fd",), progress=False)(sets[0])
    assert report.main.title == "FD (means)"


def test_pairs_are_compared_with_their_truths(sets: tuple[Dataset, Dataset, Dataset]) -> None:
    truths = torch.rand(20, 3, 16, 16) * 2 - 1
    data = Dataset.of(truths)
    report = Evaluator(data, spaces=("pixels",), progress=False)((truths * 0.9), truths=truths)
    expected = -10.0 * ((0.1 * truths).square().mean((1, 2, 3)) / 4.0).log10()
    assert report["PSNR"].value == pytest.approx(float(expected.mean()), rel=1e-4)
    assert report["SSIM"].value < 1.0 and report["colour error"].value > 0.0


def test_features_of_one_name_are_kept_apart(sets: tuple[Dataset, Dataset, Dataset], tmp_path: Path) -> None:
    few, other = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width)) for width in (3, 5))
    more = Evaluator(sets[1], sets[2], spaces=(few, other), measures=("fd",), cache=tmp_path, progress=False)
    report = more(sets[0])
    assert [entry.title for entry in report.rows] == ["FD (Sequential)", "FD (Sequential #2)"]
    alone = Evaluator(sets[1], sets[2], spaces=(other,), measures=("fd",), cache=tmp_path, progress=False)(sets[0])
    assert (report.rows[1].value, report.rows[1].floor) == (alone.main.value, alone.main.floor)


def test_samples_without_a_class_count_for_no_class(sets: tuple[Dataset, Dataset, Dataset], judge: Evaluator) -> None:
    images, labels = part(sets[0], 0, 400), sets[0].columns["label"].rows(np.arange(400))
    half = torch.where(torch.arange(400) < 200, labels, -1)
    known, mixed = judge(images[:200], labels=labels[:200]), judge(images, labels=half)
    for name in ("diversity", "accuracy"):
        assert mixed[name].value == pytest.approx(known[name].value)
    with pytest.raises(InputError, match=r"label is 10.*0 to 9"):
        judge(images, labels=labels * 0 + 10)
    with pytest.raises(InputError, match="accuracy needs the classes"):
        Evaluator(sets[1], measures=("fd", "accuracy"), spaces=("pixels",), progress=False)(images)
    with pytest.raises(InputError, match="pairs needs the truth"):
        Evaluator(sets[1], measures=("fd", "pairs"), spaces=("pixels",), progress=False)(images)


def test_floors_of_fewer_pictures_and_parts_are_told(sets: tuple[Dataset, Dataset, Dataset]) -> None:
    options: dict[str, Any] = {"spaces": ("pixels",), "measures": ("fd", "neighbours"), "progress": False}
    images = part(sets[0], 0, 400)
    assert not Evaluator(sets[1], sets[2], **options)(images).notes
    (note,) = Evaluator(sets[1], **options)(images).notes
    assert "300 against 300" in note and "400 against 600" in note
    few = Evaluator(sets[1], sets[2].subset(np.arange(50)), **options)(images)
    assert "needs 100" in (few["copies"].note or "")
    own = Evaluator(sets[1], spaces=(torch.nn.Flatten(),), measures=("fd",), most=200, progress=False)(images[:20])
    assert "600 pictures" in own.notes[0] and "random 200" in own.notes[0]


def test_consistency_of_super_resolution() -> None:
    def down(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 4)

    truths = torch.rand(20, 3, 16, 16) * 1.8 - 0.9
    report = Evaluator(Dataset.of(truths), spaces=("pixels",), progress=False)(truths + 0.02, truths=truths, down=down)
    # 0.02 of [-1, 1] is 0.01 of [0, 1]
    assert report["consistency MSE x 1e5"].value == pytest.approx(10.0, rel=1e-3)
    assert report["consistency PSNR"].value == pytest.approx(40.0, rel=1e-3)


def test_report_and_table(real: Report) -> None:
    there_and_back = json.loads(json.dumps(real.to_dict(), allow_nan=False))
    rows = {entry["title"]: entry for entry in there_and_back["rows"]}
    assert rows["FD (classifier)"]["value"] == real["FD"].value and rows["FD (classifier)"]["method"]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(real, real))
    text = console.export_text()
    assert "FD ↓" in text and "classifier" in text and "FID" not in text and "600 samples" in text
    others = Report("few", {}, (row("FD", "classifier", Estimate(1.0), Estimate(77.0)),))
    console.print(table(real, others))
    assert "/ 77" in " ".join(console.export_text().split())
    with pytest.raises(InputError, match=r"no measure 'KIT'.*KID"):
        real["KIT"]
    infinite = Report("x", {}, (row("PSNR", None, Estimate(math.inf), better="higher"),))
    assert infinite.to_dict()["rows"][0]["value"] is None


def test_only_inception_makes_a_fid() -> None:
    fid = Row("FD", "inception (pytorch-fid)", 1.0)
    assert fid.title == "FID (pytorch-fid)" and fid.name == "FID"
    assert Row("FD∞", "inception (clean-fid)", 1.0).title == "FID∞ (clean-fid)"
    assert Row("FD", "efficientnet-lite0", 1.0).title == "FD (efficientnet-lite0)"
    assert Row("PSNR", None, 1.0).title == "PSNR"


def test_numbers_have_the_digits_of_their_errors() -> None:
    assert number(1.2345, 0.05) == "1.234 ± 0.050" and number(12.3, 4.0) == "12.3 ± 4.0"
    assert number(1234.5, 40.0) == "1234 ± 40" and number(1.2e-7, 3e-8) == "1.20e-07 ± 3e-08"
    assert number(1.2345) == "1.23" and number(None) == "" and number(math.inf, None) == "inf"


@pytest.mark.parametrize("better, good, bad", [("lower", 1.0, 2.0), ("higher", 2.0, 1.0), ("floor", 0.9, 1.5)])
def test_which_is_better(better: str, good: float, bad: float) -> None:
    entry = Row("x", None, good, better=better)  # pyright: ignore[reportArgumentType]
    assert entry.is_better_than(bad) and entry.is_better_than(None) and not entry.is_better_than(good)


@pytest.mark.usefixtures("unchecked")
def test_bad_input(sets: tuple[Dataset, Dataset, Dataset], judge: Evaluator) -> None:
    good = part(sets[0], 0, 20)
    for wrong, words in (
        (good[:1], "holds 1 pictures"),
        (good.expand(-1, 3, -1, -1), "are 3x8x8 and the real pictures"),
        (torch.zeros(5, 1, 8, 8, dtype=torch.uint8), "floating-point"),
        (good * float("inf"), "NaN or infinite"),
    ):
        with pytest.raises(InputError, match=words):
            judge(wrong)
    with pytest.raises(InputError, match="at least 2"):
        Evaluator(sets[1].subset([0]))
    with pytest.raises(InputError, match=r"no measure 'kit'.*kid"):
        Evaluator(sets[1], measures=("kit",))
    with pytest.raises(InputError, match="kid-subsets needs at least 1000 samples"):
        Evaluator(sets[1], sets[2], measures=("kid-subsets",), spaces=("pixels",), progress=False)(good)
    with pytest.raises(InputError, match="no weights and no resizing"):
        Evaluator(sets[1], spaces=("pixels",), resize="clean-fid")
    with pytest.raises(InputError, match="heldout or training"):
        Evaluator(sets[1], against="nothing")
    with pytest.raises(InputError, match="classes of the real"):
        Evaluator(Dataset.of(good), spaces=("classifier",), progress=False)(good)
    with pytest.raises(InputError, match="one for each"):
        judge(good, labels=torch.zeros(3, dtype=torch.long))
    identical = good[:1].expand(30, -1, -1, -1)
    assert all(math.isfinite(entry.value) for entry in judge(identical).rows)


def test_names_of_measures_and_features_are_those_of_the_settings() -> None:
    from sfumato.config.evaluation import FEATURES
    from sfumato.config.evaluation import MEASURES as NAMES
    from sfumato.metrics.evaluator import MORE
    from sfumato.metrics.features import NAMED

    assert set(NAMES) == {*MEASURES, *MORE} and set(FEATURES) == set(NAMED)


def test_weights_can_be_the_best_by_every_row_but_those_that_tell_copies() -> None:
    from sfumato.conditioning.low_resolution import scale_down
    from sfumato.config.evaluation import RANKING

    draw = torch.Generator().manual_seed(0)
    one, two, three = torch.randn(3, 1200, 3, generator=draw)
    sets = Vectors(one, two, two, three, labels=torch.arange(1200) % 3, logits=one)
    rows = {title for measure in MEASURES.values() for title, _, _ in measure.compute(sets)}
    pictures = torch.rand(2, 2, 3, 164, 164, generator=draw)
    rows |= {row.measure for row in of_pairs(*pictures, lambda x: scale_down(x, 4))}
    assert {*RANKING} == (rows | {"accuracy", "agreement", "bits/dim", "FID", "FID∞"}) - {"copies", "nearest / real"}


def test_labels_of_a_column_with_names() -> None:
    data = Dataset(np.zeros((4, 1, 2, 2), np.uint8), {"kind": Column(np.array([0, 1, 1, 0]), ("a", "b"))})
    assert Evaluator(data, progress=False)._classified()[1].tolist() == [0, 1, 1, 0]  # pyright: ignore[reportPrivateUsage]
