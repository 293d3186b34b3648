"""Small data and small runs, for tests of everything that is built around networks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from volution import data, tasks
from volution.train import TrainConfig
from volution.train.store import Store

SHARED = Path(os.environ.get("VOLUTION_SHARED", Path(__file__).parents[2] / "shared"))
FLOWERS = SHARED / "data" / "flowers5"
needs_flowers = pytest.mark.skipif(not FLOWERS.is_dir(), reason=f"no flower photos at {FLOWERS}")

WIDTHS = {"widths": [32, 32, 32, 32], "drop_path_rate": 0.1}
COLOURS = {"blue": (40, 60, 200), "green": (30, 160, 60), "red": (210, 40, 40)}


def colour_folder(root: Path, per_class: int = 8, size: int = 32) -> Path:
    """Class folders of noisy squares of one colour each."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            noise = rng.integers(-30, 30, (size, size, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


def colour_run(images: Path, out: Path, **settings: Any) -> TrainConfig:
    """A run of a few seconds that learns to tell the colours apart."""
    defaults: dict[str, Any] = {
        "model": "rednet26",
        "model_args": WIDTHS,
        "image_size": 32,
        "epochs": 2,
        "batch_size": 8,
        "lr": 5e-3,
        "warmup_epochs": 0,
        "device": "cpu",
    }
    return TrainConfig(data=f"folder:{images}", out=out, **{**defaults, **settings})


def colour_classifier(classes: tuple[str, ...] = tuple(COLOURS)) -> tasks.Classifier:
    """An untrained network for the colours."""
    net = tasks.create_model("rednet26", num_classes=len(classes), model_args=WIDTHS)
    config = data.InputConfig(3, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return tasks.Classifier(net.eval(), "rednet26", classes, config, WIDTHS)


def lively_classifier() -> tasks.Classifier:
    """A network for the colours that says something else of each image.

    As it is made, most of a network's branches are switched off, and all images look the same.
    """
    torch.manual_seed(1)
    found = colour_classifier()
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.normal_(0.1, 0.3)
        for module in found.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        images = torch.rand(16, 3, 1, 1) + 0.3 * torch.randn(16, 3, 32, 32)
        found.model.train()(images * 2 - 1)
    found.model.eval()
    return found


def break_image(path: Path) -> Path:
    """Cut an image file off in the middle."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def newest_state(folder: Path) -> dict[str, Any]:
    """What a run would continue from."""
    store = Store(folder / "checkpoints")
    state = store.newest()
    assert state is not None
    content: dict[str, Any] = torch.load(store.path(state), weights_only=True)
    return content
