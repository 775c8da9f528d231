"""unCLIP: its stages share one contrastive model, are trained and resumed by name, and change pictures."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.command import run
from tests.training.tiny import TINY

import sfumato
from sfumato.conditioning import Embedding
from sfumato.conditioning.low_resolution import LowResolution
from sfumato.config import merge
from sfumato.data import Loader
from sfumato.data.dataset import Column
from sfumato.data.shapes import shapes
from sfumato.errors import InputError
from sfumato.io.images import to_pillow, to_uint8
from sfumato.io.text import unpacked
from sfumato.models.data import given_sets, prepared
from sfumato.models.embeddings import embed_captions, embed_images
from sfumato.models.prior import Prior
from sfumato.models.storage import read_config, read_system
from sfumato.models.unclip import Unclip, blend, decode, edit_text, encode, vary
from sfumato.recipes import prior as prior_recipe
from sfumato.runs.setup import as_measured
from sfumato.sampling.editing import slerp
from sfumato.systems.train import train

TEXT = {"width": 8, "layers": 1, "heads": 1}
DATA = shapes(32, count=48)


def small(**training: Any) -> dict[str, Any]:
    """The settings of all stages, small enough for tests."""
    network = {"channels": (8, 8, 8), "groups": 4, "embedding": 16, "heads": 1}
    stage = {key: TINY[key] for key in ("training", "optimizer", "sampling", "evaluation")}
    stage = merge(stage, {"conditions": {"text": TEXT}, "training": training})
    unet = merge(stage, {"model": {"network": network}, "sampling": {"guidance": {"scale": 1.0}}})
    tower = {"channels": (8, 8), "groups": 4, "embedding": 8, "blocks": 1}
    return {
        "clip": merge(stage, {"model": {"features": 12, "network": tower}, "training": {"batch_size": 8}}),
        "layout": merge(stage, {"model": {"network": {"width": 8}}}),
        "prior": merge(stage, {"model": {"network": {"width": 8, "depth": 1, "heads": 1}}}),
        "decoder": unet,
        "up": unet,
    }


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("systems") / "shapes"
    settings = small(steps=4, checkpoint_every=2, sample_count=2)
    assert isinstance(train(settings, system="unclip", data=DATA, run=folder), Unclip)
    return folder


@pytest.fixture
def model(system: Path) -> Unclip:
    found = sfumato.load(system)
    assert isinstance(found, Unclip)
    return found


PICTURES = DATA.batch([0, 1])


def _smaller(pictures: torch.Tensor) -> torch.Tensor:
    """As the contrastive model sees them."""
    return LowResolution(factor=4).of(pictures, {})


def test_prior_and_decoder_are_given_the_embeddings_of_one_model(system: Path) -> None:
    known = read_system(system)
    assert known.system == "unclip" and known.before == ("layout", "clip")
    assert known.stages == ("prior", "decoder", "up")
    clip = sfumato.load(system / "stages/clip")
    (prior, of_prior), (decoder, of_decoder) = (read_config(system / f"stages/{n}") for n in ("prior", "decoder"))
    assert of_prior.shape == (12,) and of_decoder.shape == (3, 8, 8)
    assert clip.info.shape == of_decoder.shape and of_prior.identity == clip.fingerprint
    image: Any = of_decoder.conditions["image_embedding"]
    text: Any = of_prior.conditions["caption_embedding"]
    assert image.identity == text.identity == clip.fingerprint and image.extra_tokens == 4
    # independent rates of dropping
    assert image.drop == 0.1 and decoder.conditions["text"].drop == 0.5
    assert prior.model.parameterization.kind == "x0" and prior.sampling.candidates == 2
    # where a caption puts things, as it was learned before
    layout, own = (dict(sfumato.load(system / f"stages/{n}").module.named_parameters()) for n in ("layout", "clip"))
    part = "network.encoders.text.layout."
    kept = [name for name in layout if name.startswith(part)]
    assert kept and all(torch.equal(own["encoder.layout." + n.removeprefix(part)], layout[n]) for n in kept)
    assert own["layout.weight"].abs().max() > 0.0


def test_data_have_the_embeddings_of_their_images_and_captions(system: Path) -> None:
    clip = sfumato.load(system / "stages/clip")
    config = read_config(system / "stages/decoder")[0].data
    data = prepared(DATA, config)
    wanted = embed_images(clip, data.batch(range(len(data))))
    found = torch.from_numpy(np.asarray(data.columns["image_embedding"].values))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    captions = embed_captions(clip, DATA.columns["caption"].texts([3, 5]))
    rows = torch.from_numpy(np.asarray(data.columns["caption_embedding"].values))[[3, 5]]
    torch.testing.assert_close(rows, captions, atol=1e-5, rtol=1e-4)
    # as vectors, in the units of the model
    vectors = prepared(DATA, read_config(system / "stages/prior")[0].data)
    assert vectors.shape == (12,) and vectors.units is not None
    torch.testing.assert_close(
        vectors.batch([7])[0] * torch.tensor(vectors.units.scale) + torch.tensor(vectors.units.shift), wanted[7],
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip


def test_of_several_candidates_the_nearest_to_the_caption_is_taken(model: Unclip) -> None:
    prior, words = model.prior, "a red circle"
    told = embed_captions(model.embedder, [words])[0]

    def sampled(candidates: int, **more: Any) -> torch.Tensor:
        sampling = prior.config.sampling.model_copy(update={"candidates": candidates})
        found = prior.info.in_units(prior.sample(6, sampling=sampling, text=words, seed=4, **more))
        torch.testing.assert_close(found.norm(dim=1), torch.ones(6), atol=1e-4, rtol=1e-4)
        return found

    one, two, many = sampled(1), sampled(2), sampled(8)
    assert (two @ told >= one @ told - 1e-6).all() and (many @ told >= two @ told - 1e-6).all()
    assert (many @ told > one @ told + 1e-6).any()
    torch.testing.assert_close(sampled(2, batch_size=2), two, atol=1e-4, rtol=1e-3)
    decoder = model.stages["decoder"]
    with pytest.raises(InputError, match=r"candidates.*prior"):
        decoder.sample(1, sampling=decoder.config.sampling.model_copy(update={"candidates": 2}))


def test_the_caption_reaches_the_decoder_through_the_prior(model: Unclip) -> None:
    words, seed = "a red circle", 3
    noise = sfumato.random.fold(seed, "before up")
    embedding = model.prior.sample(2, seed=sfumato.random.fold(noise, "before decoder"), text=words)
    decoder, up = model.stages["decoder"], model.stages["up"]
    embedding = model.prior.info.in_units(embedding)
    low = decoder.sample(2, seed=noise, text=words, image_embedding=embedding)
    wanted = up.sample(2, seed=seed, text=words, low_resolution=low)
    torch.testing.assert_close(model.sample(2, seed=seed, text=words), wanted, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model.generate([words], count=2, seed=seed), wanted, atol=1e-4, rtol=1e-3)
    # separate guidance
    other = model.sample(2, seed=seed, text=words, prior={"guidance": 3.0})
    assert not torch.equal(other, wanted)


def test_a_picture_comes_back_from_its_embedding_and_noise(model: Unclip) -> None:
    encoded = encode(model, PICTURES, steps=50)
    torch.testing.assert_close(
        encoded.embedding, embed_images(model.embedder, _smaller(PICTURES)), atol=1e-5, rtol=1e-4
    )
    again = decode(model, encoded, steps=50)
    assert float((again - PICTURES).square().mean()) < 4 * 10**-2.5  # 25 dB
    finer = decode(model, encode(model, PICTURES, steps=200), steps=200)
    assert float((finer - PICTURES).square().mean()) < 0.5 * float((again - PICTURES).square().mean())
    varied = decode(model, encoded, eta=1.0, steps=50)
    assert float((varied - PICTURES).square().mean()) > 10 * float((again - PICTURES).square().mean())
    with pytest.raises(InputError, match="eta"):
        decode(model, encoded, eta=1.5)


def test_variations_blends_and_edits(model: Unclip) -> None:
    varied = vary(model, PICTURES[0], 3, steps=6, seed=1)
    assert varied.shape == (3, 3, 32, 32) and not torch.allclose(varied[0], varied[1], atol=1e-3)
    torch.testing.assert_close(varied, vary(model, PICTURES[0], 3, steps=6, seed=1))
    still = vary(model, PICTURES[0], 2, steps=6, eta=0.0)
    torch.testing.assert_close(still[0], still[1], atol=1e-4, rtol=1e-3)
    way, ends = blend(model, PICTURES, 5, steps=6), decode(model, encode(model, PICTURES, steps=6), steps=6)
    torch.testing.assert_close(way[[0, -1]], ends, atol=1e-3, rtol=1e-3)
    words = ["a red circle", "a blue circle"]
    first, second = embed_captions(model.embedder, words)
    encoded = encode(model, PICTURES[:1], steps=6)
    z = encoded.embedding[0]
    turned = slerp(z, (second - first) / (second - first).norm(), torch.tensor([0.0, 0.4]))
    sampled = [model.prior.info.in_units(model.prior.sample(1, text=text, seed=0))[0] for text in words]
    moved = torch.stack([z, z + 0.4 * (sampled[1] - sampled[0])])
    moved = moved / moved.norm(dim=1, keepdim=True)
    decoder = model.stages["decoder"]
    for by, changed in (("captions", turned), ("prior", moved)):
        edited = edit_text(model, PICTURES[0], *words, (0.0, 0.4), by=by, steps=6)  # pyright: ignore[reportArgumentType]
        # without a change the picture; the changed one has the same noise in the decoder
        torch.testing.assert_close(edited[:1], ends[:1], atol=1e-3, rtol=1e-3)
        small = Unclip({"prior": model.prior, "decoder": decoder}, model.embedder)
        rows = encoded.rows([0, 0])
        wanted = decode(small, type(rows)(changed, {"decoder": rows.noise["decoder"]}), steps=6)
        found = edit_text(small, _smaller(PICTURES)[0], *words, (0.0, 0.4), by=by, steps=6)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-2)
    with pytest.raises(InputError, match="by the prior or by the captions"):
        edit_text(model, PICTURES[0], *words, by="both")  # pyright: ignore[reportArgumentType]


def test_bad_input(model: Unclip, system: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="both are 'a red circle'"):
        edit_text(model, PICTURES[0], "a red circle", " a  red circle ")
    with pytest.raises(InputError, match="strengths"):
        edit_text(model, PICTURES[0], "a red circle", "a blue circle", (2.0,))
    with pytest.raises(InputError, match="two different pictures"):
        blend(model, PICTURES[[0, 0]])
    with pytest.raises(InputError, match="two different pictures"):
        blend(model, PICTURES[:1])
    with pytest.raises(InputError, match=r"shape .*expected \(N, 3, 32, 32\)"):
        encode(model, torch.zeros(1, 3, 16, 16))
    clip, stages = model.embedder, dict(model.stages)
    with pytest.raises(InputError, match="prior"):
        Unclip({"decoder": stages["decoder"], "up": stages["up"]}, clip)
    # of another contrastive model
    other = sfumato.load(system / "stages/clip")
    with torch.no_grad():
        next(other.module.parameters()).add_(1.0)
    with pytest.raises(InputError, match="trained with"):
        Prior(sfumato.load(system / "stages/prior"), other)
    for changes in ({"identity": "0" * 64}, {"mean": (0.0,) * 7, "std": (1.0,) * 7}):
        alien: Any = sfumato.load(system / "stages/decoder")
        embedding = alien.conditions["image_embedding"]
        assert isinstance(embedding, Embedding)
        alien.conditions["image_embedding"] = Embedding(**{**vars(embedding), **changes})
        with pytest.raises(InputError, match="makes embeddings of 12 numbers"):
            Unclip({**stages, "decoder": alien}, clip)
    lacking = tmp_path / "lacking"
    shutil.copytree(system, lacking)
    shutil.rmtree(lacking / "stages/prior")
    with pytest.raises(InputError, match=r"'prior'.*not trained yet.*--stage prior"):
        sfumato.load(lacking)


def test_a_system_that_was_moved_is_loaded_saved_and_resumed(system: Path, model: Unclip, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(system, moved)
    hidden = system.with_name("hidden")
    system.rename(hidden)
    try:
        again = sfumato.load(moved)
        assert isinstance(again, Unclip)
        wanted = model.sample(1, text="a red circle", seed=1)
        torch.testing.assert_close(again.sample(1, text="a red circle", seed=1), wanted)
        assert isinstance(sfumato.load(moved / "stages/prior"), Prior)
        longer = {"decoder": {"training": {"steps": 5}}}
        assert isinstance(train(longer, data=DATA, run=moved, resume=True), Unclip)
        assert sfumato.load(moved / "stages/decoder").step == 5
    finally:
        hidden.rename(system)
    sfumato.save(model, tmp_path / "saved")
    saved = sfumato.load(tmp_path / "saved")
    torch.testing.assert_close(saved.sample(1, text="a red circle", seed=1), wanted)


def test_stages_need_the_embeddings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clip.*not trained yet"):
        train(small(steps=4), system="unclip", data=DATA, run=tmp_path / "s", stage="prior")


def test_a_prior_is_judged_by_ranks_and_pictures_by_their_captions(model: Unclip, system: Path) -> None:
    heldout = DATA.subset(range(24))
    sets = [prepared(DATA, read_config(system / "stages/prior")[0].data)] * 2
    report = sfumato.evaluate(model.prior, sets[0], heldout=sets[1].subset(range(24)), samples=20, measures="fd")
    ranks = {name: report[f"rank, {name}"].value for name in ("sampled", "mean", "caption's own")}
    assert all(0.0 <= value <= 1.0 for value in ranks.values())
    assert report["FD of embeddings, mean"].value > 0.0
    more: dict[str, Any] = {"samples": 12, "captions": 0, "measures": "kid", "embedder": model.embedder}
    report = sfumato.evaluate(model, DATA, heldout=heldout, **more)
    row = report["CLIP score"]
    batch = Loader(heldout, 0).batch(0, 12)
    texts = embed_captions(model.embedder, unpacked(batch.cond["caption"]))
    wanted = (embed_images(model.embedder, _smaller(batch.x0)) * texts).sum(1).mean()
    assert row.floor == pytest.approx(float(wanted), abs=1e-4)
    some = Column(np.array(["", *heldout.columns["caption"].texts(range(1, 24))]))  # one is not described
    partial = dataclasses.replace(heldout, columns={"caption": some})
    assert sfumato.evaluate(model, DATA, heldout=partial, **{**more, "samples": 24})["CLIP score"].value <= 1.0
    with pytest.raises(InputError, match="judges samples of a model"):
        sfumato.evaluate(DATA, DATA, embedder=model.embedder)


def test_commands(system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        to_pillow(to_uint8(PICTURES[i : i + 1])[0]).save(tmp_path / f"{i}.png")
    first, second, how = str(tmp_path / "0.png"), str(tmp_path / "1.png"), ["--model", str(system), "--steps", "2"]
    grid, film = str(tmp_path / "0-1.png"), tmp_path / "a.gif"
    for words, said in (
        (["vary", first, "--count", "2", "--eta", "0", "1", *how], "6 pictures"),
        (["blend", first, second, "--count", "3", "--film", str(film), *how], "3 pictures"),
        (["edit-text", first, "a red circle", "a blue circle", *how], "3 pictures"),
        (["vary", grid, "--fit", "--count", "1", "--out", str(tmp_path / "f.png"), *how], "2 pictures"),
        (["info", str(system)], "unclip"),
    ):
        assert run(*words) == 0
        assert said in capsys.readouterr().out
    for name in ("0-varied", "0-1", "0-edited"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 3 * 128
    with Image.open(film) as frames:
        assert getattr(frames, "n_frames", 1) == 4
    for words, said in (
        (["blend", first, *how], "two pictures"),
        (["edit-text", first, "a red circle", *how], "two texts"),
        (["edit-text", first, "a red circle", "a red circle", *how], "both are"),
        (["vary", first, "--model", str(system / "stages/decoder")], "no system of unCLIP"),
        (["vary", grid, *how], "--fit"),
    ):
        assert run(*words) == 2
        assert said in capsys.readouterr().err


def test_embeddings_that_differ_by_rounding_are_the_same_data(system: Path) -> None:
    """Computed again on another machine, they have other last bits; those of another model are refused."""
    for name in ("prior", "decoder"):
        stored = read_config(system / f"stages/{name}")[1]
        key = "caption_embedding" if name == "prior" else "image_embedding"
        condition: Any = stored.conditions[key]
        for off, same in ((1e-6, True), (1e-2, False)):
            mean = tuple(value + off for value in condition.mean)
            moved = condition.model_copy(update={"mean": mean})
            info = stored.model_copy(update={"conditions": {**stored.conditions, key: moved}})
            assert (as_measured(stored, info) == stored) == same
        other = condition.model_copy(update={"identity": "0" * 64})
        info = stored.model_copy(update={"conditions": {**stored.conditions, key: other}})
        assert as_measured(stored, info) != stored
    stored = read_config(system / "stages/prior")[1]
    info = stored.model_copy(update={"shift": tuple(value + 1e-7 for value in stored.shift)})
    assert as_measured(stored, info) == stored


def test_held_out_embeddings_are_in_the_units_of_those_trained_on(system: Path) -> None:
    config = read_config(system / "stages/prior")[0]
    sets = given_sets(config, DATA.subset(range(30)), DATA.subset(range(30, 48)))
    assert sets is not None and sets[0].units is not None and sets[0].units == sets[1].units
    clip = sfumato.load(system / "stages/clip")
    vector = sets[1].batch([4])[0] * torch.tensor(sets[1].units.scale) + torch.tensor(sets[1].units.shift)  # type: ignore[union-attr]
    wanted = embed_images(clip, _smaller(DATA.batch([34])))[0]
    # but for those that are further out than any that was trained on
    inside = sets[1].batch([4])[0].abs() < 1.0
    torch.testing.assert_close(vector[inside], wanted[inside], atol=1e-4, rtol=1e-3)
    assert inside.float().mean() > 0.5


def test_pictures_come_back_whatever_the_stages_are_sampled_with(model: Unclip) -> None:
    """Guidance, noise in the input of the up-sampler and thresholds are those of sampling."""
    wanted = vary(model, PICTURES[0], 2, eta=0.0, steps=4)
    decoder, up = model.stages["decoder"], model.stages["up"]
    decoder.config = decoder.config.override({"sampling.guidance": {"scale": 2.0, "rescale": 0.5}})
    low = up.conditions["low_resolution"]
    up.conditions["low_resolution"] = dataclasses.replace(low, level=0.3)
    torch.testing.assert_close(vary(model, PICTURES[0], 2, eta=0.0, steps=4, seed=5), wanted, atol=1e-4, rtol=1e-3)


def test_wrong_input_in_python(model: Unclip) -> None:
    several: Any = [PICTURES[0].numpy(), PICTURES[1].numpy()]
    torch.testing.assert_close(blend(model, several, 3, steps=2), blend(model, PICTURES, 3, steps=2))
    decoder: Any = model.stages["decoder"]
    with pytest.raises(InputError, match="not by a Model"):
        vary(decoder, PICTURES[0])
    with pytest.raises(InputError, match="at least one variation"):
        vary(model, PICTURES[0], 0)
    encoded = encode(model, PICTURES, steps=2)
    with pytest.raises(InputError, match="embeddings of 7 numbers"):
        decode(model, type(encoded)(encoded.embedding[:, :7], encoded.noise))
    with pytest.raises(InputError, match="leave text out"):
        sfumato.evaluate(model, DATA, samples=2, embedder=model.embedder, text="a ring")
    with pytest.raises(InputError, match="model of pictures"):
        sfumato.evaluate(model.prior, prepared(DATA, model.prior.config.data), samples=2, embedder=model.embedder)


def test_a_copy_has_its_own_model_and_keeps_it(system: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(system, copy)
    prior = sfumato.load(copy / "stages/prior")
    assert isinstance(prior, Prior) and prior.embedder.run == copy / "stages/clip"
    # trained on, it would be of no use to the others
    before = (copy / "stages/clip/model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"prior and decoder .* embeddings of clip"):
        train({"clip": {"training": {"steps": 5}}}, data=DATA, run=copy, resume=True, stage="clip")
    assert (copy / "stages/clip/model.safetensors").read_bytes() == before
    shutil.rmtree(copy / "stages/clip")
    with pytest.raises(InputError, match=r"'clip'.*not trained yet"):
        sfumato.load(copy)


def test_a_prior_is_trained_alone(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "shapes", "--recipe", "prior", "--run", str(tmp_path / "p"), "--print-config"]
    assert run(*words, "--data.embedder", str(system / "stages/clip")) == 0
    assert '"embeddings": true' in capsys.readouterr().out
    over = {"conditions.text": TEXT, "model.network": {"width": 8, "depth": 1, "heads": 1}}
    config = merge(prior_recipe(), {**over, "training": {"steps": 2, "batch_size": 4}})
    with pytest.raises(InputError, match=r"say which: data.embedder"):
        sfumato.train(config, data=DATA, run=tmp_path / "q")
    monkeypatch.chdir(system.parent)
    config = merge(config, {"data": {"embedder": str(Path(system.name) / "stages/clip")}})
    sfumato.train(config, data=DATA, run=tmp_path / "q")
    monkeypatch.chdir(tmp_path)
    assert isinstance(sfumato.load(tmp_path / "q"), Prior)
