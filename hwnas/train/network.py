"""Training one found network, from scratch or from the weights it had in a super-network."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hwnas.core.config import parse_config
from hwnas.core.documents import NETWORK, SUPERNET
from hwnas.core.errors import InputError
from hwnas.core.threads import torch_threads
from hwnas.spaces import SearchSpace, get_space
from hwnas.spaces.modules import Network, channels_last
from hwnas.train import checkpoint
from hwnas.train.config import NetworkConfig
from hwnas.train.distributed import pick_device
from hwnas.train.evaluate import Evaluator
from hwnas.train.loop import Losses, Phase, Run, fixed_shape
from hwnas.train.supernet import load_supernet, open_data, resolution_of

AVERAGE = "average"
LR = 0.05
CALIBRATION = 2000
EMA_WARMUP = 10


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode as training left it.

    Attributes:
        accuracy: fraction of the images of `val` and `test` that it names rightly.
    """

    network: Network
    accuracy: dict[str, float]
    config: NetworkConfig


def train_network(config: NetworkConfig, out: str | Path, *, resume: bool = True) -> Trained:
    """Train the network of `config` in the folder `out`, going on from a checkpoint that is there.

    SGD with Nesterov's momentum under a cosine, label smoothing, and a moving average of the weights, which is what is
    kept, with BatchNorm statistics re-estimated on training images. Raises `InputError` where data, architecture or
    checkpoint cannot be used, and where a loss is not finite.
    """
    space = get_space(config.space)
    data = open_data(space, config)
    torch.manual_seed(config.seed)
    network = _initial(space, config)
    with torch_threads(config.threads):
        run = Run.begin(out, NETWORK, config, data, network)
        if config.ema:
            run.others[AVERAGE] = copy.deepcopy(network).requires_grad_(False)
        evaluator, side = Evaluator(data, CALIBRATION, config.seed, run.device), resolution_of(network)
        run.fit([NetworkPhase(run, network, config, evaluator)], resume)
        accuracy = {split: evaluator.accuracy(network, side, split) for split in ("val", "test")}
    return Trained(network.eval(), accuracy, config)


def load_network(folder: str | Path, device: str = "auto") -> Network:
    """The network that `train_network` left in `folder`, in evaluation mode; raises `InputError` where it is none."""
    about = checkpoint.read(folder, NETWORK)
    where = str(Path(folder) / NETWORK.file)
    config = parse_config(about["config"], NetworkConfig, where)
    space = get_space(config.space)
    network = space.build(space.parse(config.arch))
    checkpoint.put_weights(network, checkpoint.tensors(folder, about, "weights"), where)
    channels_last(network.to(pick_device(device)))
    return network.eval()


def _initial(space: SearchSpace, config: NetworkConfig) -> Network:
    row = space.parse(config.arch)
    if config.init is None:
        network = space.build(row)
        _randomise(network)
        return network
    if (config.init / SUPERNET.file).exists():
        found = load_supernet(config.init, "cpu")
        if found.space != space:
            raise InputError(f"{config.init}: a super-network of {found.space.spec}, asked is {space.spec}")
        return found.extract(row)
    network = load_network(config.init, "cpu")
    if network.topology != space.graph(row):
        raise InputError(f"{config.init}: a network of another architecture than {config.arch}")
    return network


def _randomise(network: Network) -> None:
    """He's initialisation with the present random state: a network's own weights are the same for every seed."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, 0.0, 0.01)


class NetworkPhase(Phase):
    """Cross-entropy with label smoothing, mixup (Zhang et al., ICLR 2018) and an average of weights where asked for."""

    name = "network"

    def __init__(self, run: Run, network: Network, config: NetworkConfig, evaluator: Evaluator) -> None:
        epoch = run.batches.steps_per_epoch
        self.steps, self.warmup = max(1, round(config.epochs * epoch)), round(config.warmup_epochs * epoch)
        self.lr, self.config = config.learning_rate or LR, config
        self._run, self._network, self._evaluator = run, network, evaluator
        self._forward = fixed_shape(network, config.compile)

    def resolution(self, step: int) -> int:
        return resolution_of(self._network)

    def losses(self, step: int, images: Tensor, labels: Tensor) -> Losses:
        targets = F.one_hot(labels, self._network.topology.output[0]).float()
        if self.config.mixup:
            rng = self._run.batches.rng(step)
            share = float(rng.beta(self.config.mixup, self.config.mixup))
            order = torch.from_numpy(rng.permutation(len(images))).to(images.device)
            images, targets = (share * both + (1 - share) * both[order] for both in (images, targets))
        logits = self._forward(images).float()
        yield self.name, F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)

    def stepped(self, step: int) -> dict[str, float]:
        """The average starts with a short memory, which grows to that of `ema`."""
        if AVERAGE not in self._run.others:
            return {}
        decay = min(self.config.ema, (1 + step) / (EMA_WARMUP + step))
        with torch.no_grad():
            pairs = zip(
                self._run.others[AVERAGE].state_dict().values(), self._network.state_dict().values(), strict=True
            )
            for mean, now in pairs:
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - decay)
        return {}

    def finish(self) -> dict[str, Any]:
        self._network.load_state_dict(self._run.others.get(AVERAGE, self._network).state_dict())
        self._evaluator.recalibrate(self._network, resolution_of(self._network))
        return {}
