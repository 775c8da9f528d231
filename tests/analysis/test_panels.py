"""What panels of super-resolution show is what is true of their pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional

from sfumato.analysis import panels
from sfumato.analysis.panels import Enlargements, enlargements, place_of_most, spread
from sfumato.conditioning.low_resolution import scale_down
from sfumato.errors import InputError


def test_the_spread_is_the_deviation_of_samples() -> None:
    samples = [torch.randn(3, 5, 6, dtype=torch.float64) for _ in range(4)]
    by_hand = torch.zeros(5, 6, dtype=torch.float64)
    for channel in range(3):
        middle = sum(sample[channel] for sample in samples) / 4
        by_hand += sum((sample[channel] - middle) ** 2 for sample in samples) / 3 / 3
    assert torch.allclose(spread(samples), by_hand.sqrt() * 127.5)
    assert float(spread([samples[0], samples[0]]).abs().max()) == 0.0


def test_the_closer_look_is_where_most_is() -> None:
    map_ = torch.zeros(40, 60)
    map_[20:24, 31:35] = 1.0
    map_[0, 0] = 9.0
    row, column = place_of_most(map_, 8, margin=2)
    assert 16 <= row <= 20 and 27 <= column <= 31


@pytest.mark.parametrize(("channels", "count"), [(3, 1), (3, 3), (1, 2), (4, 2)])
def test_a_panel_shows_all_views_and_their_measures(tmp_path: Path, channels: int, count: int) -> None:
    torch.manual_seed(0)
    truth = functional.interpolate(torch.rand(1, 3, 12, 16) * 2 - 1, (49, 66), mode="bilinear")[0]
    low = scale_down(truth[None, :, :48, :64], 4)[0][:channels]
    low = torch.cat([low, torch.ones(1, 12, 16)]) if channels == 4 else low
    samples = [torch.rand(channels, 48, 64) * 2 - 1 for _ in range(count)]
    names = [f"seed 0, index {i}" for i in range(count)]
    shown = Enlargements(low, samples, names, 4, regression=samples[0], truth=truth)
    canvas = enlargements(shown, "a title")
    titles = [axes.get_title() for axes in canvas.axes if axes.get_title()]
    expected = ["input, enlarged by repetition", "bicubic", "regression", *names, "truth"]
    assert titles == [*expected, *([f"where {count} samples differ"] if count > 1 else [])]
    said = [text.get_text() for axes in canvas.axes for text in axes.texts]
    assert sum("PSNR" in text and "SSIM" in text and "consistency" in text for text in said) == 2 + count
    panels.save(canvas, tmp_path / "panel.png")
    assert Image.open(tmp_path / "panel.png").width > 1000 and not list(tmp_path.glob(".*"))
    if channels == 3:
        # the truth itself agrees with the input wholly, and with itself
        same = enlargements(Enlargements(low, [truth[:, :48, :64]], ["truth"], 4, truth=truth), "")
        [note] = [t.get_text() for axes in same.axes for t in axes.texts if "PSNR inf" in t.get_text()]
        assert "SSIM 1.000" in note and float(note.split("consistency ")[1].split(" ")[0]) > 100.0


def test_a_truth_of_another_size_is_refused() -> None:
    low, large = torch.zeros(3, 4, 4), torch.zeros(3, 16, 16)
    Enlargements(low, [large], ["a"], 4, truth=torch.zeros(3, 19, 16))
    with pytest.raises(InputError, match="20x16 pixels"):
        Enlargements(low, [large], ["a"], 4, truth=torch.zeros(3, 16, 20))


def test_tiny_and_very_wide_pictures() -> None:
    for height, width in ((1, 1), (2, 60)):
        low = torch.zeros(3, height, width)
        large = [torch.rand(3, 4 * height, 4 * width) for _ in range(2)]
        assert enlargements(Enlargements(low, large, ["a", "b"], 4), "").axes


def test_a_long_title_stays_within_the_panel() -> None:
    low, large = torch.zeros(3, 4, 4), torch.rand(3, 16, 16)
    canvas = enlargements(
        Enlargements(low, [large], ["a"], 4), "a_rather_long_name_" * 12 + ", 4x4, x4: photos, 8 steps"
    )
    canvas.draw_without_rendering()
    [title] = canvas.texts
    assert title.get_text().replace("\n", "").startswith("a_rather_long_name_" * 12)
    assert title.get_window_extent().x1 < canvas.bbox.x1
