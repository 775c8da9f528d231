"""A stand-in for the ``datasets`` library, as far as it is used."""

import types
from collections.abc import Callable
from typing import Any


class Image:
    """A feature of pictures, decoded or as the bytes of their files."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    """A feature of classes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names


class Feature:
    """Any other feature; a list has that of its members."""

    def __init__(self, dtype: str = "", feature: Any = None) -> None:
        self.dtype = dtype
        if feature is not None:
            self.feature = feature


class Table:
    """The part of ``datasets.Dataset`` that is used, of columns with their features."""

    def __init__(self, **columns: tuple[Any, list[Any]]) -> None:
        self.features = {name: feature for name, (feature, _) in columns.items()}
        self.columns = {name: values for name, (_, values) in columns.items()}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        assert not any(isinstance(feature, Image) and feature.decode for feature in self.features.values())
        return {name: values[key] for name, values in self.columns.items()}

    def select_columns(self, names: list[str]) -> "Table":
        return Table(**{name: (self.features[name], self.columns[name]) for name in names})

    def cast_column(self, name: str, feature: Any) -> "Table":
        features = {**self.features, name: feature}
        return Table(**{name: (features[name], values) for name, values in self.columns.items()})


def library(load_dataset: Callable[..., Table]) -> types.ModuleType:
    """The module, whose data sets that function gives."""
    module = types.ModuleType("datasets")
    module.__dict__.update(Image=Image, ClassLabel=ClassLabel, load_dataset=load_dataset)
    return module
