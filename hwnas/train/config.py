"""What can be set for a training run: frozen models that `hwnas.core.config.load_config` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hwnas.core.config import Config

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DataConfig(Config):
    """Where the images come from and how they are varied.

    Attributes:
        name: a registered data set: `digits`, `cifar10`, `cifar100`, `folder`, `parquet`.
        path: its files: the official archive or folder of CIFAR, a folder of class folders, a Parquet file.
        test_path: Parquet only: the file of test images; without it a part of `path` is kept for testing.
        size: height and width at which images are stored; the smaller of their own and the space's largest resolution
            where absent.
        val_fraction: part of the training images kept for validation; a tenth (at most 10,000) where absent.
        train_limit: use only that many training images, drawn once and for all.
        flip, shift, scale: random mirroring, random shift by up to this part of the side, random crops whose area is
            at least this part of the image. What suits the data set where absent.
        randaugment: number of RandAugment operations on each batch (needs torchvision), 0 for none.
    """

    name: str
    path: Path | None = None
    test_path: Path | None = None
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    train_limit: Annotated[int, Field(ge=2)] | None = None
    flip: bool | None = None
    shift: Fraction | None = None
    scale: Annotated[float, Field(gt=0, le=1)] | None = None
    randaugment: Annotated[int, Field(ge=0, le=8)] = 0


class RunConfig(Config):
    """What every training shares.

    Attributes:
        batch: images a step and process.
        learning_rate: peak for 64 images a step, scaled with the number of images; the published one where absent.
        seed: of weights, order of images, augmentation and sampled sub-networks.
        threads: CPU threads of PyTorch; its own choice where absent.
        device: `auto` takes a GPU where there is one.
        precision: `bf16` computes convolutions in bfloat16 and keeps weights in float32.
        compile: hand networks of fixed shape to torch.compile.
        checkpoint_s: seconds between checkpoints, at least; one is also written at the end of every stage.
        tensorboard: write TensorBoard's files beside the JSONL log.
    """

    space: str
    data: DataConfig
    batch: Annotated[int, Field(ge=2)] = 64
    learning_rate: Positive | None = None
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 3e-5
    label_smoothing: Fraction = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    threads: Annotated[int, Field(ge=1)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    checkpoint_s: Annotated[float, Field(ge=0)] = 60.0
    tensorboard: bool = False


class SupernetConfig(RunConfig):
    """`hwnas train-supernet CONFIG`.

    Attributes:
        algorithm: a registered way to train a super-network: `ofa`.
        rule: `progressive` (Once-for-All: progressive shrinking in stages) or `sandwich` (BigNAS: largest, smallest
            and random sub-networks in every step).
        init: weights to start from: another super-network's folder, or a checkpoint that Once-for-All published
            (`*.pth`); the classifier starts afresh where it has another number of classes.
        epochs: passes over the training images in all stages together; stages keep their published proportions.
            With 0 the weights of `init` are taken as they are.
        subnets: sub-networks a step of the sandwich rule, the largest and the smallest included.
        bounds_every: the sandwich rule trains the largest and the smallest network in one of that many steps, and only
            the random ones, without a teacher, in the others, which costs less.
        teacher_fraction: part of `epochs` in which the sandwich rule trains the largest network alone before; channels
            are sorted by what it has learnt.
        distill: weight of the distillation loss against the labels'.
        calibration_images: training images on which BatchNorm statistics are re-estimated.
    """

    algorithm: str = "ofa"
    rule: Literal["progressive", "sandwich"] = "progressive"
    init: Path | None = None
    epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 605.0
    subnets: Annotated[int, Field(ge=2, le=16)] = 4
    bounds_every: Annotated[int, Field(ge=1)] = 1
    teacher_fraction: Fraction = 0.0
    distill: Annotated[float, Field(ge=0)] = 1.0
    calibration_images: Annotated[int, Field(ge=8)] = 2000

    @model_validator(mode="before")
    @classmethod
    def _is_no_search(cls, values: Any) -> Any:
        of_searches = set(OneShotConfig.model_fields) - set(cls.model_fields)
        if isinstance(values, dict) and (found := of_searches & values.keys()):
            raise ValueError(
                f"{min(found)} is of a search that learns its choices while it trains: use hwnas search --config "
                "CONFIG --cost COST"
            )
        return values

    @model_validator(mode="after")
    def _has_weights(self) -> SupernetConfig:
        if self.epochs == 0 and self.init is None:
            raise ValueError("epochs 0 needs the weights of an init")
        return self


class OneShotConfig(RunConfig):
    """`hwnas search --config CONFIG`: a search that trains a super-network of mixed blocks and learns what to choose.

    Attributes:
        algorithm: a registered one: `fbnet`.
        epochs: passes over the images that train weights; everything that is annealed follows it.
        arch_fraction: part of the training images that trains the choices; the others train the weights.
        arch_learning_rate, arch_weight_decay: of Adam on the choices.
        weights_first: part of the steps in which only weights are trained.
        temperature: of the Gumbel-softmax at the start; it falls by exp(-4.05) to the end.
        alpha, beta: of the published loss, cross-entropy * alpha * ln(latency in microseconds)^beta, without a target.
        dual_rate: by how much a multiplier grows in a whole training in which its cost is twice its target.
        calibration_images: training images on which BatchNorm statistics are re-estimated.
    """

    algorithm: str = "fbnet"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    label_smoothing: Fraction = 0.0
    epochs: Positive = 90.0
    arch_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    arch_learning_rate: Positive = 0.01
    arch_weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    weights_first: Fraction = 1 / 9
    temperature: Positive = 5.0
    alpha: Positive = 0.2
    beta: Positive = 0.6
    dual_rate: Positive = 20.0
    calibration_images: Annotated[int, Field(ge=8)] = 2000

    @model_validator(mode="after")
    def _not_compiled(self) -> OneShotConfig:
        if self.compile:
            raise ValueError("compile is for networks of fixed shape, not for a mixed one: leave it out")
        return self


class NetworkConfig(RunConfig):
    """`hwnas train CONFIG`: one found network, from scratch or from the weights it had.

    Attributes:
        arch: the architecture in the notation of `space`.
        init: a super-network's checkpoint folder or a trained network's to start from; from scratch where absent.
        ema: decay of the moving average of the weights that is evaluated and saved, 0 for none.
        mixup: alpha of mixup's Beta distribution, 0 for none.
    """

    arch: str
    init: Path | None = None
    epochs: Positive = 180.0
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    ema: Fraction = 0.9995
    mixup: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _warm_up_fits(self) -> NetworkConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError("warmup_epochs must be less than epochs")
        return self
