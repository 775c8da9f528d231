"""``sfumato app``: what is wrong is said before anything opens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.command import run


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("app") == 2
    assert 'pip install "sfumato[app]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "0"), "port"),
        (("--port", "70000"), "port"),
        (("--folder", "nowhere"), "nowhere"),
        (("nowhere",), "nowhere"),
        (("--host", "192.0.2.1"), "192.0.2.1"),
    ],
)
def test_wrong_options(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sfumato[app]'")
    monkeypatch.chdir(tmp_path)
    assert run("app", *words) == 2
    assert said in capsys.readouterr().err


def test_help_says_what_it_opens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("app", "--help") == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--host", "--folder", "password", "runs"))
