"""The settings of a run: checked before anything is written, kept in the run's folder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from volution._support.names import unknown
from volution.train import checks

__all__ = ["PLACE", "TrainConfig", "find_config", "read_config", "recipes", "write_config"]

PLACE = frozenset(
    {"out", "workers", "device", "devices", "nodes", "strategy", "save_minutes", "save_steps"}
    | {"keep", "check_data", "tensorboard", "wandb"}
)
"""Settings that say where and how carefully a run computes; a resumed run may change them."""

_RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class TrainConfig:
    """What a training run does.

    Args:
        model: Name of a network of volution or timm.
        data: digits, a set of torchvision such as cifar10, folder:PATH of images in class folders,
            wds:URLS of shards, or hf:NAME of a Hugging Face dataset.
        out: The run's folder; runs/MODEL-DATA if not given.
        epochs: Passes over the training images, warm-up and cool-down included.
        batch_size: Images that go through the network at once, on all devices together.
        accumulate: Batches whose gradients are averaged for one step of the optimizer.
        lr: Learning rate after the warm-up.
        lr_scaling: How lr follows the images per step, batch_size times accumulate: linear takes it
            as the rate for lr_base_batch images, sqrt likewise by the square root, none as it is.
        lr_base_batch: Images per step that lr is meant for, where lr_scaling is not none.
        optimizer: Name of an optimizer of timm; its sgd has Nesterov momentum.
        momentum: Momentum, for optimizers that have one.
        weight_decay: Strength of weight decay; norms and biases are left out of it.
        layer_decay: Factor on the learning rate from each block to the one before it.
        clip_grad: Largest norm of all gradients together; longer ones are shortened to it.
        schedule: How the learning rate goes down after the warm-up.
        min_lr: Learning rate at the end of a cosine or linear schedule.
        warmup_epochs: Epochs in which the learning rate goes up.
        warmup_lr: Learning rate at the start of the warm-up; a hundredth of lr if not given.
        cooldown_epochs: Last epochs, all at min_lr.
        ema_decay: Decay of a moving average of the weights, over about 1 / (1 - ema_decay) steps;
            with it the averaged weights are those that are measured and kept as the best.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Alpha of mixup, 0 for none; together with cutmix each batch gets one of them.
        cutmix: Alpha of cutmix, 0 for none.
        drop_path_rate: Greatest probability of leaving a block out; the network's own if not given.
        image_size: Side of the images; the dataset's or the network's if not given.
        crop_scale: Least share of the area that a random crop keeps; the dataset's if not given.
        crop_pct: Share of the side that the centre crop keeps when not training; the network's if
            not given.
        pretrained: Start from published weights, where there are some.
        weights: File of weights to start from; its classifier is left out where the classes differ.
        model_args: Further arguments of the network, such as '{"global_pool": "max"}'.
        auto_augment: An augmentation policy of timm, such as rand-m9-mstd0.5-inc1.
        color_jitter: Strength of random brightness, contrast and saturation, where there is no
            auto_augment; the dataset's if not given.
        random_erasing: Probability of erasing a rectangle of a training image.
        repeats: Times an image is seen in a row of epochs of the same length, each time varied
            anew (repeated augmentation); 1 for none.
        check_data: Read every image before training, once and for all, and list those that cannot
            be read.
        max_pixels: Images of more pixels are refused, unread.
        teacher: A network to learn from besides the labels: a name of timm, whose published weights
            are taken, or the file of a trained network with the same classes.
        distill: What the teacher gives: its probabilities (soft) or its decision (hard).
        distill_alpha: Share of the loss that the teacher has.
        distill_temperature: What logits are divided by before soft targets are compared.
        freeze: Stages that stay as they are, counted from the stem; it goes with the first.
        linear_probe: Train the classifier alone, on a network that stays as it is.
        sync_bn: Gather the statistics of batch norms over all devices.
        grad_checkpointing: Compute the insides of blocks a second time instead of keeping them.
        compile: Compile the network; the first steps take minutes.
        precision: 32 for float32; bf16 computes in bfloat16 where that is safe (autocast), fp16 in
            float16 with a loss scale, on a GPU.
        seed: Decides weights, order and augmentation.
        workers: Processes that read images, for each device.
        device: Where to compute; auto takes a GPU if there is one.
        devices: Devices, or processes on a CPU, of each machine.
        nodes: Machines.
        strategy: ddp has the whole network on every device, fsdp a share of it; auto is ddp where
            there is more than one.
        save_minutes: Time after which the state is saved again, besides the end of each epoch.
        save_steps: Steps after which the state is saved as well.
        keep: States that are kept, the newest and those before it.
        tensorboard: Write events for TensorBoard too.
        wandb: Project of Weights & Biases to log to as well.
    """

    model: str = "rednet26"
    data: str = "digits"
    out: Path | None = None
    epochs: int = 20
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 1e-3
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    lr_base_batch: int = 256
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float | None = None
    clip_grad: float | None = None
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    min_lr: float = 0.0
    warmup_epochs: int = 1
    warmup_lr: float | None = None
    cooldown_epochs: int = 0
    ema_decay: float | None = None
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path_rate: float | None = None
    image_size: int | None = None
    crop_scale: float | None = None
    crop_pct: float | None = None
    pretrained: bool = False
    weights: Path | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    auto_augment: str | None = None
    color_jitter: float | None = None
    random_erasing: float = 0.0
    repeats: int = 1
    check_data: bool = False
    max_pixels: int = 100_000_000
    teacher: str | None = None
    distill: Literal["soft", "hard"] = "soft"
    distill_alpha: float = 0.5
    distill_temperature: float = 1.0
    freeze: int = 0
    linear_probe: bool = False
    sync_bn: bool = False
    grad_checkpointing: bool = False
    compile: bool = False
    precision: Literal["32", "bf16", "fp16"] = "32"
    seed: int = 0
    workers: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    save_minutes: float = 10.0
    save_steps: int | None = None
    keep: int = 2
    tensorboard: bool = False
    wandb: str | None = None

    @property
    def ranks(self) -> int:
        """Return how many processes train together."""
        return self.devices * self.nodes

    @property
    def images_per_step(self) -> int:
        """Return how many images decide one step of the optimizer, on all devices together."""
        return self.batch_size * self.accumulate

    @property
    def scaled_lr(self) -> float:
        """Return the learning rate after the warm-up, by the rule of ``lr_scaling``.

        Example:
            >>> TrainConfig(lr=0.1, lr_scaling="linear", batch_size=1024).scaled_lr
            0.4
        """
        ratio = self.images_per_step / self.lr_base_batch
        return self.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.lr_scaling]

    @property
    def lr_rule(self) -> str:
        """Return how the learning rate comes about, in a line.

        Example:
            >>> config = TrainConfig(lr=0.001, lr_scaling="linear", batch_size=4096)
            >>> config.lr_rule
            'learning rate 0.016 = 0.001 x 4096 / 256 images per step (linear)'
            >>> TrainConfig(lr=0.001).lr_rule
            'learning rate 0.001'
        """
        rate = f"learning rate {self.scaled_lr:.4g}"
        if self.lr_scaling == "none":
            return rate
        ratio = f"{self.images_per_step} / {self.lr_base_batch}"
        ratio = f"sqrt({ratio})" if self.lr_scaling == "sqrt" else ratio
        return f"{rate} = {self.lr:.4g} x {ratio} images per step ({self.lr_scaling})"

    @property
    def folder(self) -> Path:
        """Return the run's folder.

        Example:
            >>> TrainConfig(data="folder:photos/birds").folder.as_posix()
            'runs/rednet26-birds'
        """
        data = Path(self.data.partition(":")[2]).name or self.data
        return self.out or Path("runs") / f"{self.model}-{data}"

    def check(self) -> None:
        """Raise ``ValueError`` for a setting that cannot work."""
        checks.check(self)


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    return parser


def write_config(config: TrainConfig, path: Path) -> None:
    """Write a configuration as YAML, for :func:`read_config` and ``volution train --config``."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    parser = _parser()
    path.write_text(parser.dump(parser.parse_object(settings)))


def read_config(path: Path) -> TrainConfig:
    """Read a configuration; raises ``ValueError`` if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}")
    parser = _parser()
    try:
        return TrainConfig(**vars(parser.parse_path(path)))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{path} is not a training configuration: {error}") from error


def recipes() -> dict[str, Path]:
    """Return the recipes that come with volution: configuration files by name.

    Example:
        >>> "van_imagenet" in recipes()
        True
    """
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """Return the configuration file of a path, or of the name of a recipe.

    Raises:
        FileNotFoundError: If there is neither; the message has the nearest recipes.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = recipes()
    if name not in known:
        raise FileNotFoundError(unknown("config", name, known, more="a YAML file or a recipe"))
    return known[name]
