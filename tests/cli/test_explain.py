"""``sfumato explain``: every topic plots a figure, says what it shows, and refuses bad input."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli.explain import TOPICS
from sfumato.runs.train import train
from tests.cli.command import run
from tests.training.tiny import tiny


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with other schedules, labels and image shapes, in one folder."""
    folder = tmp_path_factory.mktemp("others")
    v = {"parameterization": {"kind": "v"}, "schedule": {"kind": "linear"}}
    plain = {"weight": {"kind": "simple"}, "times": {"kind": "uniform"}}
    train(tiny(training={"steps": 2}, model=v, objective=plain), run=folder / "linear")
    cosine = {**v, "schedule": {"kind": "continuous_cosine"}, "learned_variance": False}
    train(tiny(training={"steps": 2}, model=cosine, objective=plain), run=folder / "cosine")
    np.save(folder / "colour.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    train(tiny(data={"source": str(folder / "colour.npy"), "holdout": 8}, training={"steps": 2}), run=folder / "colour")
    learned = {**v, "learned_variance": True}
    train(tiny(training={"steps": 2}, model=learned, objective=plain), run=folder / "learned")
    return folder


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of families is trained for a moment."""
    from sfumato.analysis import families

    monkeypatch.setattr(families, "STEPS", 2)


def check(folder: Path, topic: str, said: str) -> None:
    """A PNG with something on it, an SVG that is XML, and a sentence with a number after their names."""
    with Image.open(folder / f"{topic}.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert min(pixels.shape) > 250 and pixels.std() > 5.0
    assert ElementTree.parse(folder / f"{topic}.svg").getroot().tag.endswith("svg")
    lines = said.strip().splitlines()
    assert len(lines) == 3 and str(folder / f"{topic}.png") in lines[0]
    assert lines[2].endswith(".") and lines[2][0].isalnum() and any(c.isdigit() for c in lines[2])
    assert "nan" not in lines[2]


def test_topics_are_listed_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain") == 0
    said = capsys.readouterr().out
    assert all(f"  {topic} " in said for topic in TOPICS)
    for arguments in ("[]", "['spectrum', '--help']"):
        code = (
            "import sys; from sfumato.cli.explain import explain\n"
            f"try: explain({arguments})\n"
            "except SystemExit as e: assert not e.code\n"
            "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_topic_that_is_listed_can_be_plotted() -> None:
    from sfumato.analysis import topics

    assert list(TOPICS) == list(topics.TOPICS)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_of_a_run(topic: str, trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", topic, trained, "--count", "30", "--out", str(tmp_path), "--device", "cpu") == 0
    check(tmp_path, topic, capsys.readouterr().out)


@pytest.mark.parametrize("second", ["linear", "cosine"])
def test_two_runs_are_stitched(
    second: str, trained: str, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With different schedules and conditions."""
    first = str(others / "linear") if second == "cosine" else trained
    assert run("explain", "stitch", first, str(others / second), "--count", "20", "--out", str(tmp_path)) == 0
    said = capsys.readouterr().out
    check(tmp_path, "stitch", said)
    assert f"and run {second} below" in said


def test_the_hierarchy_of_a_learned_variance(others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "hierarchy", str(others / "learned"), "--count", "20", "--out", str(tmp_path)) == 0
    said = capsys.readouterr().out
    check(tmp_path, "hierarchy", said)
    assert "17 values" in said and "the bound is" in said


def test_the_hierarchy_of_data_that_are_not_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "float.npy", np.random.default_rng(0).uniform(-1, 1, (30, 6, 6)).astype(np.float32))
    assert run("explain", "hierarchy", str(tmp_path / "float.npy"), "--out", str(tmp_path)) == 0
    said = capsys.readouterr().out
    check(tmp_path, "hierarchy", said)
    assert "not quantized" in said and "no bound" in said


@pytest.mark.parametrize("topic", ["marginals", "flow", "reverse", "hierarchy"])
def test_a_topic_without_a_run(topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", topic, "--count", "30", "--out", str(tmp_path)) == 0
    check(tmp_path, topic, capsys.readouterr().out)


@pytest.mark.parametrize("topic", ["forward", "spectrum", "content"])
@pytest.mark.parametrize("shape", [(20, 6, 10, 3), (20, 1, 24)])
def test_colour_that_is_not_square_and_signals(
    topic: str, shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    layout = ["--data.layout", "NCL"] if len(shape) == 3 else []
    assert run("explain", topic, str(tmp_path / "data.npy"), "--out", str(tmp_path), *layout) == 0
    check(tmp_path, topic, capsys.readouterr().out)


def test_figures_are_written_into_the_run_and_are_reproducible(trained: str) -> None:
    written: list[bytes] = []
    for _ in range(2):
        assert run("explain", "schedules", trained, "--overwrite") == 0
        written.append((Path(trained) / "explain" / "schedules.png").read_bytes())
        written.append((Path(trained) / "explain" / "schedules.svg").read_bytes())
    assert written[:2] == written[2:]


def test_no_figure_is_replaced_unasked(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that was chosen is refused before any work; in the run a figure of the same name gets a number."""
    out = tmp_path / "figures"
    asked = ("explain", "schedules", "--out", str(out))
    assert run(*asked) == 0
    (out / "schedules.png").unlink()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(*asked) == 2
    assert "schedules.svg already exists" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(*asked, "--overwrite") == 0 and len(list(out.iterdir())) == 2
    for _ in range(2):
        assert run("explain", "loss", trained, "--count", "8") == 0
    figures = {path.name for path in (Path(trained) / "explain").glob("loss*")}
    assert figures == {"loss.png", "loss.svg", "loss-2.png", "loss-2.svg"}
    assert run("explain", "schedules", "--out", str(tmp_path / "x.png")) == 2
    assert "--out is the folder" in capsys.readouterr().err


def test_plotting_leaves_the_settings_of_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert run("explain", "schedules", "--out", str(tmp_path)) == 0
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("explain spectrun", "did you mean 'spectrum'?"),
        ("explain --out x", "Say which topic"),
        ("explain spectrum digitz", "did you mean 'digits'?"),
        ("explain spectrum digits --cuont 5", "did you mean --count?"),
        ("explain spectrum digits --count 1", "at least 2 images"),
        ("explain stitch digits", "needs the denoiser of a run"),
        ("explain spectrum digits --data.size 0", "size"),
        ("explain content RUN --data.size 16", "A run has its own data"),
        ("explain content RUN RUN", "There is one source too many"),
        ("explain stitch RUN RUN RUN", "There is one source too many"),
        ("explain stitch RUN nowhere", "no run directory nowhere"),
        ("explain stitch digits RUN", "digits is not one; give the directories of two runs"),
        ("explain stitch RUN OTHERS/colour", "(1, 8, 8), run colour (3, 8, 8)"),
        ("explain stitch OTHERS/cosine OTHERS/linear", "give the two in the other order"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    arguments: str, words: str, trained: str, others: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments.replace("RUN", trained).replace("OTHERS", str(others)).split()) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize(("topic", "words"), [("spectrum", "single pixel"), ("loss", None)])
def test_single_pixels(topic: str, words: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(0).integers(0, 256, (9, 1, 1, 1), dtype=np.uint8))
    status = run("explain", topic, str(tmp_path / "one.npy"), "--out", str(tmp_path), "--data.layout", "NHWC")
    assert status == (0 if words is None else 2)
    if words is not None:
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("topic", ["content", "loss", "marginals", "hierarchy", "reverse"])
def test_a_single_image(topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8))
    assert run("explain", topic, str(tmp_path / "one.npy"), "--out", str(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "at least 2 images; one has 1" in said and said.count("\n") == 1


def test_two_images_have_no_flow_in_the_plane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "two.npy", np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8))
    assert run("explain", "flow", str(tmp_path / "two.npy"), "--out", str(tmp_path)) == 2
    assert "two vary in one" in capsys.readouterr().err
    # one direction is enough for the others, whose Gaussian is singular in all but that
    for topic in ("marginals", "loss", "hierarchy", "content", "reverse"):
        assert run("explain", topic, str(tmp_path / "two.npy"), "--out", str(tmp_path)) == 0
        check(tmp_path, topic, capsys.readouterr().out)


@pytest.mark.parametrize("topic", ["content", "loss", "marginals", "hierarchy"])
def test_constant_images_are_refused(topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "flat.npy", np.full((9, 8, 8), 200, dtype=np.uint8))
    assert run("explain", topic, str(tmp_path / "flat.npy"), "--out", str(tmp_path)) == 2
    assert "All images of flat are the same" in capsys.readouterr().err


def test_the_spectrum_of_constant_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "flat.npy", np.full((9, 8, 8), 200, dtype=np.uint8))
    assert run("explain", "spectrum", str(tmp_path / "flat.npy"), "--out", str(tmp_path)) == 0
    check(tmp_path, "spectrum", capsys.readouterr().out)
