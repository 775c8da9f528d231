"""What the tutorial and the how-to pages show is run: their Python and their commands, in the order of the pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sfumato
from sfumato.recipes.openai import CLASSIFIERS
from sfumato.recipes.published import EDM, GUIDED, PRESETS
from tests.interop.edm_reference import Reference
from tests.interop.test_edm import NCSNPP
from tests.interop.test_guided_diffusion import SMALL, theirs
from tests.pages import ROOT, commands, furnish, missing, python, run_command, run_python, text
from tests.training.tiny import tiny

# A page may use what an earlier one made.
ORDER = "guidance editing few-steps likelihood super-resolution text-to-image own-images own-parts export devices"
PAGES = ["docs/tutorial.md", *(f"docs/howto/{name}.md" for name in ORDER.split()), "docs/inside.md"]
PYTHON = [block for page in PAGES for block in python(page)]
OF_OTHERS = [block for block in PYTHON if "sfumato.interop" in block]
COMMANDS = [line for page in PAGES for line in commands(page)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("howto"))


def test_the_pages_have_what_is_run_here() -> None:
    assert {f"docs/howto/{path.name}" for path in (ROOT / "docs/howto").glob("*.md")} <= set(PAGES)
    assert len(PYTHON) >= 7 and len(COMMANDS) >= 60
    assert f"have names, {len(PRESETS) + len(CLASSIFIERS)} with up-samplers" in text("docs/howto/own-images.md")
    assert not [link for page in PAGES for link in missing(page)]


@pytest.mark.filterwarnings("ignore:The run can't make its network")
def test_the_python_of_the_pages_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = {"__name__": __name__, "tiny": tiny}
    for block in (block for block in PYTHON if block not in OF_OTHERS):
        run_python(block, names)
    assert tuple(names["images"].shape) == (16, 1, 8, 8)  # type: ignore[attr-defined]


def test_weights_of_others_come_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published names, of networks small enough for a test."""
    program = pytest.importorskip(
        "azula.plugins.adm._src.unet",
        reason="azula is not installed: pip install 'sfumato[peers]'",
        exc_type=ImportError,
    )
    monkeypatch.chdir(place)
    monkeypatch.setitem(GUIDED, "adm-256", SMALL)
    monkeypatch.setitem(EDM, "ncsnpp-cifar10", NCSNPP)
    torch.save(theirs(program, SMALL).state_dict(), "256x256_diffusion.pt")
    reference = Reference(NCSNPP)
    reference(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    save_file(reference.state, "edm.safetensors")
    (block,) = OF_OTHERS
    exec(block, {})
    assert sfumato.load("runs/theirs").denoiser.network.state_dict().keys() >= {"time.features.frequencies"}


@pytest.mark.filterwarnings("ignore:With the large reverse variance")
@pytest.mark.filterwarnings("ignore:.*hardly trained")
@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_pages_run(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(line, place, monkeypatch, capsys)
