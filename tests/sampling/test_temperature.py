"""The temperature: a factor of all noise that sampling draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.oracles import gaussian

from sfumato.diffusion.oracle import GaussianOracle
from sfumato.diffusion.schedule import cosine
from sfumato.errors import InputError
from sfumato.models.model import generate


def data() -> GaussianOracle:
    oracle = gaussian(MEAN, STD)  # images are clipped to [-1, 1]
    oracle.schedule = cosine()
    return oracle


MEAN, STD = 0.1, 0.1
SOLVERS = ["best", "heun", "ancestral", {"kind": "ddim", "eta": 1.0}, {"kind": "ancestral", "variance": "large"}]


@pytest.mark.filterwarnings("ignore:With the large reverse variance")
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_samples_of_normal_data_vary_in_proportion_to_it(solver: Any) -> None:
    # every solver is linear for normal data: samples are a mean, and a part in proportion to the noise
    made = {
        temperature: generate(data(), (64, 1), steps=12, solver=solver, seed=3, temperature=temperature).double()
        for temperature in (0.0, 0.5, 1.0)
    }
    middle = (made[0.0] + made[1.0]) / 2.0
    torch.testing.assert_close(made[0.5], middle, rtol=0.0, atol=1e-4)
    assert float(made[0.0].std()) < 1e-6
    assert not torch.allclose(made[0.5], made[1.0], atol=0.01)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_their_spread_is_that_of_the_data_times_the_temperature(temperature: float) -> None:
    found = generate(data(), (4096, 1), steps=30, seed=1, temperature=temperature, batch_size=4096)
    assert abs(float(found.std()) / (temperature * STD) - 1.0) < 4.0 / (2.0 * 4096) ** 0.5
    assert abs(float(found.mean()) - MEAN) < 4.0 * STD / 4096**0.5


@pytest.mark.parametrize("temperature", [-0.1, 2.5, float("nan"), "warm"])
def test_a_temperature_is_a_number_from_0_to_2(temperature: Any) -> None:
    with pytest.raises(InputError, match="temperature"):
        generate(data(), (2, 1), temperature=temperature)
