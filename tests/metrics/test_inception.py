"""FID's Inception: held against torch-fidelity's on random weights, layer by layer; its resizings against others'."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.io.tensors import sha256_of
from sfumato.metrics import Row, features, inception
from sfumato.metrics.inception import RESIZINGS, Inception, _Mixed, build
from sfumato.metrics.pictures import bilinear, bilinear_corner, colours
from tests.metrics.photographs import photograph, square


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights that keep activations of all layers of one size."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Inception().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    result: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if "num_batches" in name:
            result[name] = torch.tensor(1)
        elif name.endswith("running_var") or name.endswith("bn.weight"):
            result[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            scale = 0.3 if len(shape) < 2 else (2.0 / np.prod(shape[1:])) ** 0.5
            result[name] = torch.randn(shape, generator=generator) * scale
    return result


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of torch-fidelity that need no torchvision, which the package itself imports."""
    found = importlib.util.find_spec("torch_fidelity")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("torch-fidelity is not installed")
    package = ModuleType("torch_fidelity")
    package.__path__ = list(found.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
    for name in [name for name in sys.modules if name.startswith("torch_fidelity.")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.cat([square(photograph("china"))[..., :120, :120], square(photograph("flower"))[..., 90:210, 50:170]])


def test_every_layer_is_torch_fidelitys(fidelity: Any, state: dict[str, Tensor], file: Path, picture: Tensor) -> None:
    theirs: nn.Module = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased", "logits"], feature_extractor_weights_path=str(file)
    )
    ours = build(state)
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        seen.setdefault(name, []).append(output.clone())

    for network in (ours, theirs):
        for name, module in network.named_children():
            if name.startswith(("Conv2d", "Mixed")):
                module.register_forward_hook(partial(watch, name))
    found = ours(RESIZINGS["torch-fidelity"](picture))
    pool3, unbiased, logits = theirs(colours(picture).to(torch.uint8))
    assert len(seen) == 16 and all(len(pair) == 2 for pair in seen.values())
    for name, (mine, other) in seen.items():
        scale = float(other.abs().max())
        assert scale > 0.1
        torch.testing.assert_close(
            mine, other, rtol=0, atol=2e-5 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, pool3, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.logits(found), unbiased, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.fc(found), logits, rtol=1e-3, atol=1e-3)


def test_border_averages_are_over_the_pixels_that_exist() -> None:
    """The pooled branch of a block of ones is 1 everywhere, at corners too; and maxima are maxima."""
    block = _Mixed(1, ((("only", 1, 1),),), 1).eval()
    peaks = _Mixed(1, ((("only", 1, 1),),), 1, average=False).eval()
    for module in (block, peaks):
        module.branch_pool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(block(torch.ones(1, 1, 5, 5))[0, 1], torch.ones(5, 5))
    x = torch.randn(1, 1, 6, 7, generator=torch.Generator().manual_seed(0))
    means, most = block(x)[0, 1], peaks(x)[0, 1]
    for i in range(6):
        for j in range(7):
            window = x[0, 0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            torch.testing.assert_close(means[i, j], window.mean())
            assert most[i, j] == window.max()


@pytest.mark.parametrize("size", [(32, 32), (120, 75), (427, 640), (299, 299)])
def test_corner_bilinear_is_tensorflows(fidelity: Any, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, *size), generator=generator).float()
    resize = fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    theirs = resize(pixels, size=(299, 299), align_corners=False, method="slow")
    torch.testing.assert_close(bilinear_corner(pixels, 299), theirs, rtol=0, atol=1e-3)


def test_corner_bilinear_by_hand() -> None:
    row = torch.tensor([0.0, 10.0, 40.0]).expand(1, 3, 3, 3)
    # positions 0, 3/4, 3/2, 9/4; beyond the last pixel is the last pixel
    expected = torch.tensor([0.0, 7.5, 25.0, 40.0])
    torch.testing.assert_close(bilinear_corner(row, 4), expected.expand(1, 3, 4, 4))
    # pixel centres instead: positions -1/8, 5/8, 11/8, 17/8
    centred = torch.tensor([0.0, 6.25, 21.25, 40.0])
    torch.testing.assert_close(bilinear(row, 4), centred.expand(1, 3, 4, 4))


@pytest.mark.parametrize("size", [(32, 48), (427, 300), (700, 900), (299, 299)])
def test_clean_fid_is_pillows_bicubic_in_float(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, *size), generator=generator).float()
    planes = [
        np.asarray(Image.fromarray(plane.numpy(), mode="F").resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        for plane in pixels[0]
    ]
    expected = torch.from_numpy((np.stack(planes) - 128.0) / 128.0)
    torch.testing.assert_close(RESIZINGS["clean-fid"](pixels / 127.5 - 1.0)[0], expected, rtol=0, atol=1e-4)


def test_pytorch_fids_values() -> None:
    """Of a picture of the network's own size: 0 becomes -1 and 255 becomes 1."""
    pixels = torch.randint(0, 256, (1, 3, 299, 299), generator=torch.Generator().manual_seed(0))
    seen = RESIZINGS["pytorch-fid"](pixels / 127.5 - 1.0)
    torch.testing.assert_close(seen, pixels / 255.0 * 2.0 - 1.0)
    pixels = torch.randint(0, 256, (1, 3, 40, 60), generator=torch.Generator().manual_seed(0))
    expected = 2.0 * functional.interpolate(pixels / 255.0, (299, 299), mode="bilinear", align_corners=False) - 1.0
    torch.testing.assert_close(RESIZINGS["pytorch-fid"](pixels / 127.5 - 1.0), expected, rtol=0, atol=1e-5)


def test_features_by_name(
    file: Path, state: dict[str, Tensor], picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "SHA256", sha256_of(file))
    monkeypatch.setattr(inception, "SIDE", 107)  # faster
    network = build(state)
    found = {resize: features("inception", weights=file, resize=resize, device="cpu") for resize in RESIZINGS}
    for resize, own in found.items():
        assert own.name == f"inception ({resize})"
        assert Row("FD", own.name, 0.0).title == f"FID ({resize})"
        torch.testing.assert_close(own(picture), network(RESIZINGS[resize](picture)), rtol=1e-3, atol=1e-3)
    assert len({own.identity for own in found.values()}) == 3
    default = features("inception", weights=str(file), device="cpu")
    assert default.identity == found["pytorch-fid"].identity
    assert default.logits(picture).shape == (2, 1008)
    with pytest.raises(InputError, match="did you mean 'clean-fid'"):
        features("inception", weights=file, resize="cleanfid")


def test_weights_without_counts_of_batches_are_read(state: dict[str, Tensor], picture: Tensor) -> None:
    old = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    small = picture[:1]
    assert torch.equal(build(old)(small), build(state)(small))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine, and the folder that it serves."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", folder
        http.shutdown()
        thread.join()


def test_weights_are_fetched_once_and_checked(
    server: tuple[str, Path], file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, folder = server
    content = file.read_bytes()
    (folder / inception.FILE).write_bytes(content)
    monkeypatch.setattr("sfumato.io.files.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(inception, "URL", f"{url}/{inception.FILE}")
    kept = tmp_path / "cache" / "weights" / inception.FILE
    with pytest.raises(InputError, match=r"not the published file.*weights=PATH"):
        features("inception", device="cpu")
    assert not list(kept.parent.iterdir())
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(content).hexdigest())
    first = features("inception", device="cpu")
    assert kept.read_bytes() == content
    (folder / inception.FILE).unlink()
    assert features("inception", device="cpu").identity == first.identity
    kept.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"does not hold the published weights.*delete it"):
        features("inception", device="cpu")
    kept.unlink()
    with pytest.raises(InputError, match=r"cannot be fetched.*404"):
        features("inception", device="cpu")
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/none")
    with pytest.raises(InputError, match=r"cannot be fetched.*refused.*weights=PATH"):
        features("inception", device="cpu")
    # what pytorch-fid or torch-fidelity has fetched serves as well
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    for name in (inception.FILE, "weights-inception-2015-12-05-6726825d.pth"):
        theirs = tmp_path / "torch/hub/checkpoints" / name
        theirs.write_bytes(content)
        assert features("inception", device="cpu").identity == first.identity
        theirs.unlink()
