"""A run that is killed at any moment and continued ends as if nothing had happened."""

import csv
import random

import networks
import pytest
import small
import torch

from volution import hub
from volution.train.config import write_config

EPOCHS, BATCHES = 3, 8
TIMES = {"seconds", "images_per_second"}

FAMILIES = {
    "rednet26": {
        "model_args": {"widths": [32, 32, 32, 32]},
        "drop_path_rate": 0.3,
        "ema_decay": 0.8,
        "mixup": 0.8,
        "cutmix": 1.0,
        "accumulate": 3,  # the last step of an epoch is of two batches
        "workers": 2,
        "clip_grad": 1.0,
    },
    "van_b0": {
        "model_args": {"depths": [1, 1, 1, 1]},
        "drop_path_rate": 0.2,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "random_erasing": 0.5,
        "repeats": 2,
        "precision": "bf16",
        "layer_decay": 0.8,
    },
    "transxnet_t": {
        "model_args": {"depths": [1, 1, 1, 1]},
        "drop_path_rate": 0.2,
        "ema_decay": 0.9,
        "mixup": 0.5,
        "accumulate": 2,
        "workers": 1,
        "optimizer": "sgd",
        "lr": 0.05,
    },
}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=14)


def settings(family, folder, colours):
    chosen = dict(FAMILIES[family])
    chosen["model_args"] = {"widths": networks.narrow(family), **chosen["model_args"]}
    config = small.colour_run(
        colours,
        folder / "run",
        model=family,
        epochs=EPOCHS,
        batch_size=4,
        save_steps=1,
        **chosen,
    )
    folder.mkdir()
    write_config(config, folder / "settings.yaml")
    return folder / "settings.yaml"


def rows(path):
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def equal(one, other):
    """Whether two nests of containers and tensors are the same to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            equal(one[k], other[k]) for k in one if k not in {*TIMES, "time"}
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_at_any_moment_it_ends_the_same(family, mother, colours, tmp_path):
    """SIGKILL, twice, at batches and moments that are drawn anew each time the test runs."""
    whole = mother.start(
        "killed:run", settings(family, tmp_path / "whole", colours), log=tmp_path / "whole.txt"
    )
    config = settings(family, tmp_path / "broken", colours)
    draw = random.SystemRandom()
    # Anywhere in the run, then anywhere in its rest.
    moments = [draw.randrange(EPOCHS * BATCHES) for _ in range(2)]
    delays = [draw.random() * 0.2 for _ in range(2)]
    codes = []
    for number, (batch, delay) in enumerate(zip(sorted(moments), delays, strict=True)):
        left = batch if number == 0 else max(1, batch - moments[0]) // 2
        killed = mother.start(
            "killed:run", config, left, delay, log=tmp_path / f"killed{number}.txt"
        )
        codes.append(killed.wait())
    last = mother.start("killed:run", config, log=tmp_path / "last.txt")
    assert last.wait() == 0, last.output()
    assert whole.wait() == 0, whole.output()
    story = f"killed in batches {moments} after {delays} s, exit codes {codes}"
    # The last batches may be over before the signal comes.
    assert -9 in codes, story

    theirs, ours = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    for name in ("metrics.csv", "steps.csv"):
        assert rows(ours / name) == rows(theirs / name), story
    assert len(rows(ours / "metrics.csv")) == EPOCHS
    best, other = (hub.read_checkpoint(r / "best.safetensors") for r in (ours, theirs))
    assert equal(best, other), story
    one, two = small.newest_state(ours), small.newest_state(theirs)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "learned", "global_step"):
        assert equal(one[part], two[part]), f"{part}; {story}"
    assert equal(one["callbacks"]["History"]["rows"], two["callbacks"]["History"]["rows"]), story
    assert one["callbacks"]["Checkpoints"] == two["callbacks"]["Checkpoints"], story
