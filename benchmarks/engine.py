"""What the engine costs, over doing without it: ``python benchmarks/engine.py --photos FOLDER``.

Every figure is a ratio of pairs: what volution does and what it is compared with take turns in one
process. Before the clock runs, both must have come to the same result.

- loader: images per second of ``volution.data.loader``, over those of a loop that opens, transforms
  and stacks the same photos and does nothing else, on one core.
- engine: seconds of a training step under ``volution.train.fit``, over those of a plain PyTorch
  loop with the same network, batches and optimizer (RedNet-26, batch 32).
- saving: how much longer the steps around a checkpoint take than the others, in steps.
- help: seconds of ``volution --help``, over those of ``import timm``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate

from volution import data, tasks
from volution._support.environment import environment
from volution.bench.runner import paired, spread
from volution.train import TrainConfig, fit
from volution.train.optimisation import optimizer

BATCH = 32


def loader_rate(photos: str, workers: int = 0) -> dict[str, Any]:
    """Pair the loader with a bare loop over the same photos, transforms and batches."""
    images = data.load(photos).train
    inputs = data.InputConfig(3, 224, (0.5,) * 3, (0.5,) * 3)
    transform = inputs.training_transform(data.Augmentation(auto_augment="rand-m9-mstd0.5-inc1"))

    def bare() -> None:
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = range(start, start + BATCH)
            default_collate([(transform(images.open(i)), images.labels[i]) for i in batch])

    batches = data.loader(images, transform, batch_size=BATCH, workers=workers, shuffle_seed=0)
    epochs = count()

    def ours() -> int:
        # Another epoch each time, as the bare loop draws anew: some draws cost more than others.
        data.set_position(batches, next(epochs))
        return sum(len(batch.labels) for batch in batches)

    photos_read = len(images) // BATCH * BATCH
    if ours() != photos_read:
        raise SystemExit(f"the loader did not give each of {photos_read} photos")
    torch.set_num_threads(1)
    found = paired(ours, bare, "cpu", budget=90.0, most=25)
    return {**found, "images_per_second": 1e3 * photos_read / found["ours_ms"]["median"]}


class Bare:
    """The plain loop: what a step needs, and nothing else."""

    def __init__(self, config: TrainConfig, images: data.ImageData) -> None:
        torch.manual_seed(config.seed)
        net = tasks.create_model(config.model, num_classes=len(images.classes))
        self.net: nn.Module = net.to(memory_format=torch.channels_last).train()
        self.optimizer = optimizer(config, self.net)
        inputs = tasks.input_config(net, images, config.image_size)
        transform = inputs.training_transform(images.augmentation)
        self.loader = data.loader(
            images.train, transform, batch_size=config.batch_size, shuffle_seed=config.seed
        )
        self.smoothing = config.label_smoothing
        self.batches = self._batches()

    def _batches(self) -> Iterator[data.Batch]:
        epoch = 0
        while True:
            data.set_position(self.loader, epoch)
            yield from self.loader
            epoch += 1

    def step(self) -> float:
        batch = next(self.batches)
        pixels = batch.images.to(memory_format=torch.channels_last)
        loss = cross_entropy(self.net(pixels), batch.labels, label_smoothing=self.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Turns(Callback):
    """Between any two steps of the engine, one of the bare loop; both are timed."""

    def __init__(self, bare: Bare, gate: int) -> None:
        self.bare, self.gate, self.since = bare, gate, 0.0
        self.own, self.other = list[float](), list[float]()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        now = time.perf_counter()
        if self.since:
            self.own.append(now - self.since)
        start = time.perf_counter()
        self.bare.step()
        if self.since:
            self.other.append(time.perf_counter() - start)
        if trainer.global_step == self.gate:
            ours, theirs = module.model.state_dict(), self.bare.net.state_dict()
            if not all(torch.equal(ours[k], theirs[k]) for k in ours):
                raise SystemExit("the engine and the bare loop do not compute the same")
        self.since = time.perf_counter()


def _config(out: Path, photos: str, steps: int, **more: Any) -> TrainConfig:
    images = len(data.load(photos).train)
    return TrainConfig(
        model="rednet26",
        data=photos,
        out=out,
        batch_size=BATCH,
        schedule="constant",
        warmup_epochs=0,
        epochs=max(1, steps // (images // BATCH)),
        device="cpu",
        **more,
    )


def engine_overhead(photos: str, folder: Path, image_size: int, steps: int) -> dict[str, Any]:
    """Pair the steps of a run, logs, bar and history included, with those of the bare loop."""
    config = _config(folder / "engine", photos, steps, image_size=image_size)
    turns = Turns(Bare(config, data.load(photos)), gate=3)
    fit(config, callbacks=[turns])
    # The step after an epoch's end contains the validation; it is no step.
    pairs = list(zip(turns.own, turns.other, strict=True))
    middle = sorted(own for own, _ in pairs)[len(pairs) // 2]
    kept = [(own, other) for own, other in pairs if own < 2 * middle]
    return {
        "ours_ms": spread([1e3 * own for own, _ in kept]),
        "peer_ms": spread([1e3 * other for _, other in kept]),
        "ratio": spread([own / other for own, other in kept]),
        "pairs": len(kept),
    }


class Intervals(Callback):
    """Seconds from the end of each step to the end of the next, by the number of steps done."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        self.times[trainer.global_step] = time.perf_counter()


def saving_stall(photos: str, folder: Path, image_size: int, every: int = 8) -> dict[str, Any]:
    """Compare the steps after a save with those that no save is near to."""
    watch = Intervals()
    config = _config(folder / "saving", photos, 75, image_size=image_size, save_steps=every)
    fit(config, callbacks=[watch])
    per_epoch = len(data.load(photos).train) // BATCH
    near, far = list[float](), list[float]()
    for step, ended in watch.times.items():
        if step - 1 not in watch.times or (step - 1) % per_epoch == 0:
            continue
        took = ended - watch.times[step - 1]
        (near if (step - 1) % every < every // 2 and step > every else far).append(took)
    plain = spread(far)["median"]
    extra = sum(near) - plain * len(near)
    saves = sum(1 for step in watch.times if step % every == 0)
    return {
        "step_ms": 1e3 * plain,
        "stall_in_steps": extra / plain / max(1, saves),
        "longest_in_steps": max(near) / plain,
        "saves": saves,
    }


def help_time(tries: int = 7) -> dict[str, Any]:
    """Pair the start of the command with the import of timm, each in a fresh process."""

    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, capture_output=True)

    found = paired(
        lambda: run("-m", "volution", "--help"),
        lambda: run("-c", "import timm"),
        "cpu",
        budget=600.0,
        most=tries,
    )
    difference = found["ours_ms"]["median"] - found["peer_ms"]["median"]
    return {**found, "longer_than_timm_s": difference / 1e3}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", required=True, help="folder of photos in class folders")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--only", choices=("loader", "engine", "saving", "help"))
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    photos = f"folder:{words.photos}"
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), words.image_size
        parts = {
            "engine": lambda: engine_overhead(photos, folder, size, words.steps),
            "saving": lambda: saving_stall(photos, folder, size),
            "help": help_time,
            "loader": lambda: loader_rate(photos),
        }
        chosen = [words.only] if words.only else list(parts)
        results = {part: parts[part]() for part in chosen}
    text = json.dumps({**environment(), "image_size": size, "results": results}, indent=2)
    if words.out:
        unfinished = words.out.with_name(f".{words.out.name}.unfinished")
        unfinished.write_text(text + "\n")
        os.replace(unfinished, words.out)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
