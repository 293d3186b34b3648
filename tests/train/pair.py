"""What every process of a launched pair does: train each network, in float64.

    torchrun --nproc_per_node 2 tests/train/pair.py IMAGES OUT

Also called in one process, with the same settings, for what the pair has to equal.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import networks
import small
import timm
import torch
from lightning.pytorch import Callback

from volution.train import TrainConfig, fit

# The norms decide what a network needs for two processes to equal one.
FAMILIES = {
    "rednet26": "batch norms",
    "xvolution_resnet34": "batch norms",
    "hornet_tiny_7x7": "layer norms",
    "hornet_tiny_gf": "layer norms",
    "van_b0": "batch norms in blocks, layer norms after stages",
    "transxnet_t": "group norms in blocks, batch norms in mixers and feed-forwards",
}
SHARED_OUT = ("transxnet_t",)
# Looking up how each step of AdamW is shared out takes PyTorch half a minute on a CPU.
PLAIN = {"optimizer": "momentum", "layer_decay": None}


def settings(name: str, strategy: str) -> dict[str, Any]:
    """Three steps of eight images, with all that has to agree over processes."""
    return {
        "model": name,
        "model_args": {**networks.small(name), "depths": [1, 1, 1, 1]},
        "drop_path_rate": 0.0,
        "image_size": networks.SIZE,
        "epochs": 1,
        "batch_size": 8,
        "lr": 1e-3,
        "clip_grad": 1.0,
        "layer_decay": 0.9,
        "ema_decay": 0.5,
        "sync_bn": "batch" in FAMILIES[name],
        "strategy": strategy,
    }


def cases() -> dict[str, dict[str, Any]]:
    """The runs by their names."""
    ddp = {name: settings(name, "ddp") for name in FAMILIES}
    return {**ddp, **{f"{n}-fsdp": {**settings(n, "fsdp"), **PLAIN} for n in SHARED_OUT}}


class InFloat64(Callback):
    """Let nothing be switched off at the start, and leave no room for rounding."""

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        # A plain copy: norms of several processes do not take statistics one by one.
        config = module.config
        plain = timm.create_model(
            config.model, num_classes=3, drop_path_rate=0.0, **config.model_args
        )
        module.model.double().load_state_dict(networks.liven(plain).state_dict())
        module.average.module.double().load_state_dict(module.model.state_dict())
        for net in (module.model, module.average.module):
            net.register_forward_pre_hook(lambda net, args: (args[0].double(),))


def config(case: dict[str, Any], images: Path, out: Path) -> TrainConfig:
    return small.colour_run(images, out, **case)


def main(images: str, out: str) -> None:
    torch.set_num_threads(1)
    for name, case in cases().items():
        run = config(case, Path(images), Path(out) / name)
        fit(run, show_progress=False, callbacks=[InFloat64()])


if __name__ == "__main__":
    main(*sys.argv[1:])
