"""Files of weights are read without running anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sfumato.errors import InputError
from sfumato.interop.weights import Transfer, by_projection
from sfumato.io.tensors import read_state


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_tensors_of_both_kinds_of_file(tmp_path: Path) -> None:
    state = {"a": torch.randn(3), "b.c": torch.randn(2, 2)}
    save_file(state, tmp_path / "state.safetensors")
    torch.save(state, tmp_path / "state.pt")
    for name in ("state.safetensors", "state.pt"):
        found = read_state(tmp_path / name)
        assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def test_a_pickle_with_a_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(InputError, match="holds more than tensors"):
        read_state(tmp_path / "harmful.pt")
    assert not (tmp_path / "harm").exists()


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"a": 3}, tmp_path / "numbers.pt")
    with pytest.raises(InputError, match="no state dict"):
        read_state(tmp_path / "numbers.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError):
        read_state(tmp_path / "text.pt")
    with pytest.raises(InputError, match="no file of weights"):
        read_state(tmp_path / "none.pt")


def test_orders_of_heads() -> None:
    """Rows that are numbered by (projection, head, channel), in the order that each program keeps them."""
    ours = torch.arange(3 * 2 * 4).reshape(3, 2, 4)
    assert torch.equal(by_projection(ours.permute(1, 0, 2).flatten(), 2, "heads_first"), ours.flatten())
    assert torch.equal(by_projection(ours.permute(1, 2, 0).flatten(), 2, "qkv_last"), ours.flatten())
    assert torch.equal(by_projection(ours.flatten(), 2, "ours"), ours.flatten())


@pytest.mark.parametrize(
    ("value", "why"), [(torch.full((3,), torch.nan), "not finite"), (torch.zeros(3, dtype=torch.int64), "int64")]
)
def test_what_is_no_number_is_refused(value: torch.Tensor, why: str) -> None:
    transfer = Transfer({"a.weight": torch.zeros(3, 2), "a.bias": value})
    transfer.layer(nn.Linear(2, 3), "a")
    with pytest.raises(InputError, match=rf"1 tensor is no finite real numbers: 'a.bias' \({why}\)"):
        transfer.finish()


def test_all_that_does_not_fit_is_named() -> None:
    """Up to ten of each kind, and the number of the rest."""
    layers = {f"layer{i}": nn.Linear(2, 3) for i in range(13)}
    state = {f"{name}.{kind}": p for name, layer in layers.items() for kind, p in layer.named_parameters()}
    renamed = {("old" + name if name in ("layer0.bias", "layer1.bias") else name): p for name, p in state.items()}
    for i in range(2, 13):
        renamed[f"layer{i}.weight"] = torch.zeros(5)
    transfer = Transfer(renamed)
    for name, layer in layers.items():
        transfer.layer(layer, name)
    with pytest.raises(InputError) as caught:
        transfer.finish()
    said = str(caught.value)
    assert "2 tensors are missing: 'layer0.bias' ('oldlayer0.bias' has its shape and may be its name here), " in said
    assert "'layer1.bias' ('oldlayer1.bias' has" in said
    assert "11 tensors have another shape: 'layer2.weight' is (5,) in place of (3, 2), 'layer3.weight' is" in said
    assert "'layer11.weight' is (5,) in place of (3, 2) and 1 more; " in said and "'layer12.weight'" not in said
    assert said.endswith("2 tensors are not of this network: 'oldlayer0.bias', 'oldlayer1.bias'.")
