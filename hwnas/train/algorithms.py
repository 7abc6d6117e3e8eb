"""`train_supernet`: a super-network trained by one of the registered algorithms, from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hwnas.core.documents import SUPERNET
from hwnas.core.errors import InputError
from hwnas.core.registry import Registry
from hwnas.core.threads import torch_threads
from hwnas.spaces import SearchSpace, get_space
from hwnas.train import checkpoint
from hwnas.train.config import SupernetConfig
from hwnas.train.elastic import ElasticNetwork
from hwnas.train.evaluate import Evaluator
from hwnas.train.loop import Phase, Run
from hwnas.train.oneshot import one_shot
from hwnas.train.published import read_published
from hwnas.train.supernet import Supernet, open_data

Algorithm = Callable[[Run, ElasticNetwork, SupernetConfig, Evaluator], list[Phase]]
algorithms: Registry[Algorithm] = Registry("training algorithm", ("hwnas.train.ofa",))


def train_supernet(config: SupernetConfig, out: str | Path, *, resume: bool = True) -> Supernet:
    """Train the super-network of `config` in the folder `out`, going on from a checkpoint that is there.

    The folder holds `supernet.json`, the weights and what a resumed run needs as safetensors, and `log.jsonl`. Under
    torchrun each process takes its share of every batch and the first one writes. Raises `InputError` where the data,
    the space or the checkpoint cannot be used, and where a loss is not finite.
    """
    space = get_space(config.space)
    if config.algorithm in one_shot and config.algorithm not in algorithms:
        raise InputError(f"{config.algorithm} searches while it trains: use hwnas search --config CONFIG --cost COST")
    algorithm = algorithms.get(config.algorithm)
    network = _initial(space, config)
    data = open_data(space, config)
    with torch_threads(config.threads):
        run = Run.begin(out, SUPERNET, config, data, network)
        evaluator = Evaluator(data, config.calibration_images, config.seed, run.device)
        run.fit(algorithm(run, network, config, evaluator) if config.epochs else [], resume)
    return Supernet(network, config, run.about, data)


def _initial(space: SearchSpace, config: SupernetConfig) -> ElasticNetwork:
    network = ElasticNetwork(space, config.seed)
    if config.init is None:
        return network
    if config.init.is_dir():
        weights = checkpoint.tensors(config.init, checkpoint.read(config.init, SUPERNET), "weights")
    else:
        weights = read_published(config.init, space)
    own = network.state_dict()
    counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    classifier = f"blocks.{len(space.slots) - 1}."
    for name in list(weights):
        if name.startswith(classifier) and name in own and weights[name].shape != own[name].shape:
            weights[name] = own[name]
    checkpoint.put_weights(network, {**counters, **weights}, str(config.init))
    return network
