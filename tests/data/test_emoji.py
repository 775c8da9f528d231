"""Vector pictures with names: in pixels, on white, their names in plain words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.reading import load

from sfumato.data import Dataset
from sfumato.errors import InputError

RED_LEFT = '<path fill="#f00" d="M0 0h4v8H0z"/>'
ICONS: dict[str, Any] = {
    "red-half": {"body": RED_LEFT},
    "hidden-half": {"body": RED_LEFT, "hidden": True},
    "wide": {"body": '<path fill="#00f" d="M0 0h16v8H0z"/>', "width": 16},
    "police-car": {"body": RED_LEFT},
    "police-car-light": {"body": RED_LEFT},
    "woman-running": {"body": RED_LEFT},
    "woman-running-dark": {"body": RED_LEFT},
    "woman-running-medium": {"body": RED_LEFT},
    "woman-running-medium-light": {"body": RED_LEFT},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pack of icons of 8 x 8."""
    pack = {"prefix": "x", "icons": ICONS, "aliases": {"other": {"parent": "wide"}}, "width": 8, "height": 8}
    (tmp_path / "icons.json").write_text(json.dumps(pack))
    return tmp_path


def read(folder: Path, **options: Any) -> Dataset:
    pytest.importorskip("resvg_py", reason="vector pictures are drawn by resvg-py")
    return load(f"emoji:{folder}", **{"cache": folder / "cache", **options})


def test_names_become_captions(folder: Path) -> None:
    data = read(folder, columns=("caption",))
    assert data.columns["caption"].texts(range(len(data))) == [
        "red half",
        "wide",
        "police car",
        "police car light",
        "woman running",
        "woman running, dark skin tone",
        "woman running, medium skin tone",
        "woman running, medium-light skin tone",
    ]
    groups = data.groups
    assert groups is not None and len(set(groups[4:])) == 1 and len(set(groups)) == 5
    for part in data.split(2, 0):  # variants of one picture are on one side
        texts = part.columns["caption"].texts(range(len(part)))
        assert sum(text.startswith("woman") for text in texts) in (0, 4)


def test_they_are_drawn_on_white(folder: Path) -> None:
    data = read(folder)
    assert data.shape == (3, 32, 32) and data.images.dtype == np.uint8
    image = data.images[0]
    assert (image[0] == 255).all() and not image[1:, :, :16].any() and (image[1:, :, 16:] == 255).all()
    wide = data.images[1][0]
    assert (wide[:8] == 255).all() and not wide[8:24].any() and (wide[24:] == 255).all()
    assert read(folder, size=64).shape == (3, 64, 64)
    clear = read(folder, channels="rgba", size=16).images[0]
    assert (clear[3, :, :8] == 255).all() and not clear[3, :, 8:].any()


def test_a_changed_pack_is_drawn_again(folder: Path) -> None:
    before = read(folder).images[0]
    text = (folder / "icons.json").read_text().replace("#f00", "#0f0")
    (folder / "icons.json").write_text(text)
    assert not np.array_equal(read(folder / "icons.json", cache=folder / "cache").images[0], before)


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"icons": {"a": {}}}', '{"icons": {}}'])
def test_what_is_no_pack_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "icons.json").write_text(content)
    with pytest.raises(InputError, match="npm pack"):
        load(f"emoji:{tmp_path}")


def test_wrong_options_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="node_modules"):
        load("emoji")
    with pytest.raises(InputError, match="tile"):
        load(f"emoji:{folder}", tile=32)
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(InputError, match="sfumato\\[emoji\\]"):
        load(f"emoji:{folder}")
