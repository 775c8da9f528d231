"""Data by name or path, decoded once, read by a loader without state."""

from sfumato.data.dataset import Column, Dataset
from sfumato.data.loader import Batch, Loader
from sfumato.data.sources import load

__all__ = ["Batch", "Column", "Dataset", "Loader", "load"]
