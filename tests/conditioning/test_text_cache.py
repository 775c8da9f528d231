"""Embeddings of captions in the user's cache: the same bits again, encoded once, by one process for all."""

from __future__ import annotations

import gc
import multiprocessing
import sqlite3
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.conditioning import language, text_cache
from sfumato.conditioning.language import Frozen, frozen
from sfumato.conditioning.text_cache import Embeddings, embedded
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.tensors import read_tensors, write_tensors
from tests.conditioning import tiny_encoders

pytest.importorskip("transformers")

HALF = {"rtol": 2e-3, "atol": 2e-3}  # of float16
TEXTS = ["a small red circle", "the blue square left of a green circle", "red", "a small red circle", "", "red \ud800"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.save(tmp_path_factory.mktemp("encoders") / "bert", "bert")


class Loads:
    """Counts the encoders that are loaded and the texts that they encode, and knows whether they are alive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: list[weakref.ref[Frozen]] = []
        self.texts = 0
        each = Frozen.each

        def load(name: str, **options: Any) -> Frozen:
            encoder = frozen(name, **options)
            self.alive.append(weakref.ref(encoder))
            return encoder

        def counted(encoder: Frozen, texts: list[str], **options: Any) -> Any:
            self.texts += len(texts)
            yield from each(encoder, texts, **options)

        monkeypatch.setattr(text_cache, "frozen", load)
        monkeypatch.setattr(Frozen, "each", counted)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    return Loads(monkeypatch)


def test_what_is_kept_is_what_was_encoded_bit_for_bit(bert: Path, tmp_path: Path, loads: Loads) -> None:
    tokens, mask = embedded(str(bert), TEXTS, device="cpu", folder=tmp_path)
    assert tokens.dtype == torch.float16 and mask.dtype == torch.bool
    assert len(loads.alive) == 1 and loads.texts == 5  # one is there twice
    again, same = embedded(str(bert), TEXTS, device="cpu", folder=tmp_path)
    assert len(loads.alive) == 1
    assert torch.equal(again.view(torch.int16), tokens.view(torch.int16)) and torch.equal(same, mask)
    before = loads.texts
    direct, whole = frozen(str(bert), device="cpu").encode(TEXTS)
    loads.texts = before
    assert torch.equal(mask, whole)
    torch.testing.assert_close(tokens.float(), direct, **HALF)
    # fewer of them are padded to fewer tokens
    part, _ = embedded(str(bert), [TEXTS[2], TEXTS[0]], folder=tmp_path)
    assert torch.equal(part[1].view(torch.int16), tokens[0, : part.shape[1]].view(torch.int16))
    embedded(str(bert), [*TEXTS, "a large green square"], folder=tmp_path)
    assert loads.texts == 6


def test_the_encoder_is_freed(bert: Path, tmp_path: Path, loads: Loads) -> None:
    networks: list[weakref.ref[Any]] = []
    load = language.load_network
    with pytest.MonkeyPatch.context() as patch:

        def remembered(*args: Any, **options: Any) -> Any:
            network = load(*args, **options)
            networks.append(weakref.ref(network))
            return network

        patch.setattr(language, "load_network", remembered)
        embedded(str(bert), TEXTS, folder=tmp_path)
    gc.collect()
    assert len(networks) == 1 and networks[0]() is None and loads.alive[0]() is None


def several(name: str, folder: Path, output: Path) -> None:
    tokens, mask = embedded(name, [f"red {n * 'blue '}" for n in range(8)], device="cpu", folder=folder)
    write_tensors(output, {"tokens": tokens, "mask": mask}, {})


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes can't be forked here")
def test_another_process_sees_it_and_two_at_once_do_no_harm(bert: Path, tmp_path: Path, loads: Loads) -> None:
    frozen(str(bert), device="cpu")  # so that no child has to import anything
    kind = multiprocessing.get_context("fork")
    outputs = [tmp_path / f"{n}.safetensors" for n in range(3)]
    both = [kind.Process(target=several, args=(str(bert), tmp_path / "kept", output)) for output in outputs[:2]]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    several(str(bert), tmp_path / "kept", outputs[2])
    assert not loads.alive  # nothing is encoded here
    first, *others = [read_tensors(output)[0] for output in outputs]
    assert int(first["mask"].sum()) == sum(range(3, 11))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_preparing_encodes_all_at_once_and_continues(
    bert: Path, tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{'red ' * (n % 7)}{'blue ' * (n // 7)}".strip() for n in range(20)]
    monkeypatch.setattr(text_cache, "CHUNK", 6)
    monkeypatch.setattr(text_cache, "_AT_ONCE", 7)
    kept = Embeddings(str(bert), device="cpu", folder=tmp_path)
    shown: list[int] = []

    def killed(done: int) -> None:
        shown.append(done)
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.prepare(texts, progress=killed)
    assert shown == list(range(1, 16))
    shown.clear()
    kept.prepare(texts, progress=shown.append)
    assert shown == list(range(1, len(set(texts)) - 12 + 1))  # two chunks of 6 were kept
    kept.prepare(texts)
    tokens, _ = kept.read(texts)
    assert len(loads.alive) == 2
    direct, _ = frozen(str(bert), device="cpu").encode(texts)
    torch.testing.assert_close(tokens.float(), direct, **HALF)


def test_captions_that_are_cut_are_named_each_time(bert: Path, tmp_path: Path) -> None:
    texts = ["red", "red " * 30]
    for _ in range(2):
        with pytest.warns(SfumatoWarning, match=r"1 of 2 captions have more than the 12 tokens.*'red red"):
            _, mask = embedded(str(bert), texts, folder=tmp_path)
        assert mask.sum(1).tolist() == [3, 12]
        with pytest.warns(SfumatoWarning, match="1 of 2 captions"):
            Embeddings(str(bert), folder=tmp_path).prepare(texts)


@pytest.mark.parametrize("damage", ["values", "NaN", "length"])
def test_damaged_captions_are_encoded_again(bert: Path, tmp_path: Path, loads: Loads, damage: str) -> None:
    expected, _ = embedded(str(bert), TEXTS, device="cpu", folder=tmp_path)
    kept = Embeddings(str(bert), device="cpu", folder=tmp_path)
    with sqlite3.connect(kept.path) as database:
        if damage == "values":
            database.execute("UPDATE captions SET tokens = zeroblob(length(tokens)) WHERE length = 3")
        elif damage == "length":
            database.execute("UPDATE captions SET length = 2 WHERE length = 3")
        else:
            values = b"\xff" * (3 * 2 * 16)
            change = "UPDATE captions SET tokens = ?, crc = ? WHERE length = 3"
            database.execute(change, (values, kept._checksum("red", values)))
    database.close()
    with pytest.warns(SfumatoWarning, match="1 captions kept in .* are damaged"):
        found, _ = kept.read(TEXTS)
    torch.testing.assert_close(found, expected)
    assert loads.texts == 6
    found, _ = kept.read(TEXTS)
    assert len(loads.alive) == 2 and torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("damage", ["text", "page", "cut"])
def test_a_damaged_file_is_made_again(bert: Path, tmp_path: Path, loads: Loads, damage: str) -> None:
    expected, _ = embedded(str(bert), TEXTS, device="cpu", folder=tmp_path)
    kept = Embeddings(str(bert), device="cpu", folder=tmp_path)
    content = kept.path.read_bytes()
    pages = {
        "text": b"no database" * 100,
        "page": content[:4096] + b"\x99" * (len(content) - 4096),
        "cut": content[: len(content) // 2],
    }
    kept.path.write_bytes(pages[damage])
    with pytest.warns(SfumatoWarning, match=r"is damaged .*encoded again"):
        found, _ = kept.read(TEXTS)
    torch.testing.assert_close(found, expected)
    assert len(loads.alive) == 2
    kept.prepare(TEXTS)
    again, _ = kept.read(TEXTS)
    torch.testing.assert_close(again, expected)
    kept.path.write_bytes(pages[damage])
    with pytest.warns(SfumatoWarning, match=r"is damaged .*encoded again"):
        kept.prepare(TEXTS)
    again, _ = kept.read(TEXTS)
    torch.testing.assert_close(again, expected)
    kept.path.write_bytes(b"")  # as when a process has only begun
    again, _ = kept.read(TEXTS)
    torch.testing.assert_close(again, expected)


def test_another_encoder_has_other_embeddings(bert: Path, tmp_path: Path) -> None:
    other = tiny_encoders.save(tmp_path / "other", "bert", seed=1)
    first, second = (Embeddings(str(name), device="cpu", folder=tmp_path / "kept") for name in (bert, other))
    assert first.path != second.path
    tokens, _ = first.read(TEXTS)
    assert not torch.allclose(tokens, second.read(TEXTS)[0], atol=0.1)
    # even a file that got the other's name holds nothing for it
    first.path.replace(second.path)
    torch.testing.assert_close(second.read(TEXTS)[0].float(), frozen(str(other), device="cpu").encode(TEXTS)[0], **HALF)


def test_where_nothing_can_be_kept(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Embeddings(str(bert), device="cpu", folder=tmp_path / "file" / "text")
    with pytest.warns(SfumatoWarning, match="not kept for the next time"):
        tokens, _ = kept.read(TEXTS)
    torch.testing.assert_close(tokens.float(), frozen(str(bert), device="cpu").encode(TEXTS)[0], **HALF)
    with pytest.raises(InputError, match=r"can't be kept.*XDG_CACHE_HOME"):
        kept.prepare(TEXTS)


def test_it_is_in_the_users_cache(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.io.files.cache_folder", lambda: tmp_path / "cache")
    embedded(str(bert), TEXTS)
    assert [path.suffix for path in (tmp_path / "cache" / "text").iterdir()].count(".sqlite") == 1
