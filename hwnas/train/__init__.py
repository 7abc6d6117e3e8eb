"""Training: data sets, weight-sharing super-networks, and the networks found in them.

Importing this package does not import PyTorch; its functions do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.train.config import DataConfig, NetworkConfig, OneShotConfig, RunConfig, SupernetConfig
from hwnas.train.data import datasets

if TYPE_CHECKING:
    from hwnas.spaces.modules import Network
    from hwnas.train.network import Trained
    from hwnas.train.supernet import Supernet

__all__ = [
    "DataConfig",
    "NetworkConfig",
    "OneShotConfig",
    "RunConfig",
    "SupernetConfig",
    "datasets",
    "load_network",
    "load_supernet",
    "train_network",
    "train_supernet",
]


def train_supernet(config: SupernetConfig, out: str | Path, *, resume: bool = True) -> Supernet:
    """See `hwnas.train.algorithms.train_supernet`."""
    from hwnas.train.algorithms import train_supernet

    return train_supernet(config, out, resume=resume)


def load_supernet(folder: str | Path, device: str = "auto") -> Supernet:
    """See `hwnas.train.supernet.load_supernet`."""
    from hwnas.train.supernet import load_supernet

    return load_supernet(folder, device)


def train_network(config: NetworkConfig, out: str | Path, *, resume: bool = True) -> Trained:
    """See `hwnas.train.network.train_network`."""
    from hwnas.train.network import train_network

    return train_network(config, out, resume=resume)


def load_network(folder: str | Path, device: str = "auto") -> Network:
    """See `hwnas.train.network.load_network`."""
    from hwnas.train.network import load_network

    return load_network(folder, device)
