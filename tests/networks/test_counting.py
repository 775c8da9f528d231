"""Parameters and multiply-accumulates against counts by hand and against a peer's network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato.config import ModelConfig, parse
from sfumato.interop.model import unet_of
from sfumato.networks.attention import Attention
from sfumato.networks.execution import Size, count
from sfumato.networks.layers import conv, group_norm
from sfumato.networks.unet import UNet
from sfumato.recipes.published import PRESETS, TRAINED
from tests.interop.published import named, network_of


class Timeless(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_a_convolution() -> None:
    """K^2 C_in C_out for each position of the output."""
    size = count(Timeless(conv(2, 3, 5)), (3, 7, 9))
    assert size == Size(9 * 3 * 5 + 5, 9 * 3 * 5 * 7 * 9)
    assert count(Timeless(conv(1, 4, 6, kernel=1)), (4, 10)) == Size(24 + 6, 24 * 10)


def test_attention() -> None:
    """Four projections of C^2 for each of L positions, and 2 L^2 C for weights and mixture."""
    channels, length = 8, 12
    size = count(Timeless(Attention(group_norm(channels, 4), 2)), (channels, length))
    assert size.macs == 4 * channels**2 * length + 2 * length**2 * channels
    assert size.parameters == 4 * (channels**2 + channels) + 2 * channels


def test_it_says_so_in_words() -> None:
    assert str(Size(35_746_307, 6_221_856_768)) == "35,746,307 parameters, 6.22 GMAC per call"
    assert str(Size(12, 7)) == "12 parameters, 7 MAC per call"


def test_the_network_of_ddpm_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'sfumato[dev]'")
    published = PRESETS["ddpm-cifar10"]
    with torch.device("meta"):
        ours = network_of(published)
        theirs = diffusers.UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            downsample_padding=0,
        ).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            theirs(torch.empty(1, *published.shape), torch.empty(1))
    size = count(ours, published.shape)
    assert size.parameters == sum(p.numel() for p in theirs.parameters()) == 35_746_307
    assert size.macs == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [("DiT-S/2", 33, 6.06), ("DiT-B/2", 130, 23.01), ("DiT-L/2", 458, 80.71), ("DiT-XL/2", 675, 118.64)],
)
def test_the_sizes_of_dit(name: str, millions: int, giga: float) -> None:
    """Peebles and Xie 2023, table 1 and text, whose Gflops are multiply-accumulates."""
    size = Size(TRAINED[name].parameters, TRAINED[name].macs)
    assert round(size.parameters / 1e6) == millions
    assert size.macs / 1e9 == pytest.approx(giga, rel=2e-3)


def test_counting_touches_nothing() -> None:
    network = UNet(3, 3, (32, 32), heads=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count(network, (3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


QUICK = ("ddpm-cifar10", "DiT-S/2", "adm-128-classifier")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TRAINED])
def test_the_sizes_of_published_models_are_those_of_their_networks(name: str) -> None:
    with torch.device("meta"):
        network, shape = named(name)
    assert count(network, shape) == Size(TRAINED[name].parameters, TRAINED[name].macs)


@pytest.mark.parametrize(
    ("name", "millions", "tolerance"),
    [
        # Saharia et al. 2021, table A.1: what is not printed of the network makes a difference
        ("sr3-16-128", 550, 0.05),
        ("sr3-64-256", 625, 0.05),
        ("sr3-64-512", 625, 0.05),
        ("sr3-256-1024", 150, 0.05),
        # Saharia et al. 2022, sec. 2.4 and app. B: 600 M with a skip per block; and with the text of the printed table
        ("imagen-64-256", 600, 0.005),
        ("imagen-64-256", 594, 0.015),
        # the table again, though the paper says 400 M
        ("imagen-256-1024", 590, 0.015),
        # Ramesh et al. 2022, table 3: 1 B, 700 M and 300 M there, and these counted; its decoder has a test of its own
        ("unclip-prior", 1210, 0.02),
        ("unclip-64-256", 729.6, 0.02),
        ("unclip-256-1024", 282.0, 0.02),
        # Dhariwal and Nichol 2021, tables 12 and 13, as they are rounded there
        ("adm-64-256", 312, 0.5 / 312),
        ("adm-128-512", 309, 0.5 / 309),
        ("adm-64-classifier", 65, 0.5 / 65),
        ("adm-128-classifier", 43, 0.5 / 43),
        ("adm-256-classifier", 54, 0.5 / 54),
        ("adm-512-classifier", 54, 0.5 / 54),
    ],
)
def test_the_sizes_that_papers_print(name: str, millions: float, tolerance: float) -> None:
    assert TRAINED[name].parameters / 1e6 == pytest.approx(millions, rel=tolerance)


def residual(inputs: int, outputs: int, embedding: int) -> int:
    """Weights of a block of two convolutions and two normalizations, whose second one is scaled and shifted."""
    convolutions = 9 * inputs * outputs + outputs + 9 * outputs * outputs + outputs
    skip = inputs * outputs + outputs if inputs != outputs else 0
    return 2 * inputs + convolutions + 2 * outputs * (embedding + 1) + skip


def attention(width: int, features: int = 0) -> int:
    """Weights of a normalization, queries, keys and values, the output, and of keys and values of tokens."""
    return 2 * width + 4 * width * (width + 1) + (2 * width * (features + 1) if features else 0)


def ends(first: int, last: int, inputs: int, features: int, embedding: int) -> int:
    """Weights of the first and the last convolution, of the last normalization and of the embedding of time."""
    time = embedding * (features + 1) + embedding * (embedding + 1)
    return 9 * inputs * first + first + 2 * last + 9 * last * 3 + 3 + time


def test_the_base_of_imagen_by_its_layers() -> None:
    """Without text, widths of 512 to 2048 with 3 blocks sum to 2097.5 million weights."""
    e, current, attended = 2048, 512, (1024, 1536, 2048)
    total, joined = ends(512, 512, 3, 512, e), [512]
    for width in (512, 1024, 1536, 2048):
        for _ in range(3):
            total += residual(current, width, e) + (attention(width) if width in attended else 0)
            current = width
            joined.append(current)
        if width < 2048:
            total += residual(current, current, e)
            joined.append(current)
    total += 2 * residual(2048, 2048, e) + attention(2048)
    for width in (2048, 1536, 1024, 512):
        for _ in range(4):
            total += residual(current + joined.pop(), width, e) + (attention(width) if width in attended else 0)
            current = width
        total += residual(width, width, e) if width > 512 else 0
    with torch.device("meta"):
        network = parse(ModelConfig, PRESETS["imagen-64"].model).build_network((3, 64, 64))
    assert sum(p.numel() for p in network.parameters()) == total
    assert total / 1e6 == pytest.approx(2097.5, abs=0.05)


def test_the_decoder_of_dall_e_2() -> None:
    """GLIDE's network: 2.3 B, and 1.2 B of a transformer of text, 3.5 B together (Nichol et al. 2021, sec. 4.1).

    It is the base of Imagen, with keys and values of tokens of 2048 features at the 22 layers of attention, 6 outputs,
    and what encodes the tokens and the embedding of the image.
    """
    attended = 7 * 1024 + 7 * 1536 + 8 * 2048
    keys, outputs = 2 * attended * (2048 + 1), 3 * (9 * 512 + 1)
    with torch.device("meta"):
        imagen = parse(ModelConfig, PRESETS["imagen-64"].model).build_network((3, 64, 64))
        decoder = named("unclip-decoder")[0]
    unet = sum(p.numel() for p in unet_of(decoder).parameters())
    assert unet == sum(p.numel() for p in imagen.parameters()) + keys + outputs
    total = TRAINED["unclip-decoder"].parameters
    assert unet / 1e9 == pytest.approx(2.238, abs=5e-4) and total / 1e9 == pytest.approx(2.3, rel=0.02)
    blocks = 24 * (12 * 2048**2 + 13 * 2048)
    assert blocks / 1e9 == pytest.approx(1.2, rel=0.01) and (total + blocks) / 1e9 == pytest.approx(3.5, rel=0.02)


def test_the_efficient_u_net_by_its_layers() -> None:
    """The up-sampler to 256 with the text at the coarsest resolution."""
    e, current, joined = 512, 128, [0]
    # the input and the low resolution
    total, plan = ends(128, 128, 6, 128, e), ((128, 2), (256, 4), (512, 8), (1024, 8))
    for width, blocks in plan:
        total += 9 * current * width + width
        for _ in range(blocks):
            total += residual(width, width, e)
            joined.append(width)
        current = width
    total += 2 * attention(1024, features=4096)
    for width, blocks in reversed(plan):
        for _ in range(blocks):
            total += residual(current + joined.pop(), width, e)
            current = width
        total += 9 * width * width + width
    with torch.device("meta"):
        unet = unet_of(named("imagen-64-256")[0])
    assert sum(p.numel() for p in unet.parameters()) == total
