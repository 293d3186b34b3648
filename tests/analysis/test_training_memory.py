"""Memory of a training step: told without any, held against what one really takes."""

import time
from dataclasses import replace

import networks
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from volution.analysis import training_memory
from volution.cli import main

MIB = 2**20
# Memory that is told over memory that is measured. Above 1, since some of what the forward pass
# kept is given back before the last gradient is there; below, for what kernels need themselves.
BAND = (0.9, 1.3)
SIZE, BATCH = 64, 16
SHAPES = {
    "rednet26": {"widths": (64, 128, 256, 512)},
    "van_b0": {},
    "hornet_tiny_7x7": {"widths": (32, 64, 128, 256), "depths": (2, 2, 4, 2)},
    "transxnet_t": {"depths": (2, 2, 2, 2)},
    "resnet18": {},
}


def measured(net, optimizer="adamw", image_size=SIZE, batch=BATCH):
    """Bytes that a real step takes at its peak, counted by the allocator."""
    net = net.to(memory_format=torch.channels_last)
    learning = [p for p in net.parameters() if p.requires_grad]
    steps = create_optimizer_v2(learning, opt=optimizer, lr=1e-3)

    def step():
        images = torch.randn(batch, 3, image_size, image_size)
        labels = torch.zeros(batch, dtype=torch.long)
        cross_entropy(net(images.to(memory_format=torch.channels_last)), labels).backward()
        steps.step()
        steps.zero_grad()

    step()
    resident = sum(t.numel() * t.element_size() for t in [*net.parameters(), *net.buffers()])
    for state in steps.state.values():
        resident += sum(t.numel() * t.element_size() for t in state.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return resident + peak


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_what_a_real_step_takes(name):
    net = timm.create_model(name, **SHAPES[name]).train()
    told = training_memory(net, batch_size=BATCH, image_size=SIZE)
    real = measured(net)
    assert BAND[0] < told.total / real < BAND[1], (told, real / MIB)


def test_frozen_stages_keep_nothing():
    net = timm.create_model("rednet26", **SHAPES["rednet26"]).train()
    whole = training_memory(net, batch_size=BATCH, image_size=SIZE)
    for part in (net.stem, net.layer1, net.layer2):
        part.eval().requires_grad_(False)
    told = training_memory(net, batch_size=BATCH, image_size=SIZE)
    learning = sum(p.numel() * 4 for p in net.parameters() if p.requires_grad)
    assert (told.gradients, told.optimizer) == (learning, 2 * learning)
    assert told.parameters == whole.parameters
    assert told.activations < 0.5 * whole.activations
    assert BAND[0] < told.total / measured(net) < 1.5
    assert not any(p.is_meta for p in net.parameters())
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing in it learns"):
        training_memory(net, batch_size=2)


def test_checkpointed_blocks_keep_their_inputs_and_make_one_again():
    told = {
        again: training_memory(
            "resnet18", batch_size=BATCH, image_size=128, grad_checkpointing=again
        )
        for again in (False, True)
    }
    assert told[True].activations < 0.75 * told[False].activations
    assert replace(told[True], activations=0) == replace(told[False], activations=0)
    net = timm.create_model("resnet18").train()
    net.set_grad_checkpointing()
    real = measured(net, image_size=128)
    assert BAND[0] < told[True].total / real < BAND[1], (told[True], real / MIB)


def test_our_checkpointed_networks_are_counted_too():
    sizes = {
        again: training_memory(
            "rednet26", batch_size=8, image_size=128, grad_checkpointing=again
        ).activations
        for again in (False, True)
    }
    assert 0.2 * sizes[False] < sizes[True] < 0.8 * sizes[False]


class TestParts:
    def test_by_hand(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
        net.pretrained_cfg = {"input_size": (3, 2, 2)}
        told = training_memory(net, batch_size=4, optimizer="sgd", ema=True)
        weights = 4 * (12 * 5 + 5 + 5 * 3 + 3)
        assert told.parameters == told.gradients == told.optimizer == told.ema == weights
        # Images and a flat copy of them (they come in channels-last), the output of ReLU, the
        # logarithms of the softmax, labels, and one number to divide by.
        assert told.activations == 4 * (2 * 4 * 12 + 4 * 5 + 4 * 3) + 8 * 4 + 4

    def test_half_precision_keeps_less(self):
        full, half = (
            training_memory("van_b0", batch_size=32, image_size=64, precision=precision)
            for precision in ("32", "bf16")
        )
        assert 0.4 < half.activations / full.activations < 0.75
        assert half.parameters == full.parameters

    def test_it_grows_with_the_batch(self):
        one, two = (
            training_memory("resnet18", batch_size=n, image_size=64).activations for n in (8, 16)
        )
        assert two == pytest.approx(2 * one, rel=0.01)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("hornet_tiny_gf", "bf16"),
        ("hornet_tiny_gf", "fp16"),
        ("transxnet_t", "bf16"),
        ("xvolution_resnet34", "fp16"),
    ],
)
def test_every_family_runs_dry_under_autocast(name, precision):
    widths = networks.narrow(name)
    net = timm.create_model(name, widths=widths, depths=[1, 1, 1, 1], device="meta")
    assert training_memory(net, batch_size=2, image_size=64, precision=precision).activations > 0


def test_a_large_batch_takes_seconds_and_no_memory():
    start = time.process_time()
    told = training_memory("rednet50", batch_size=128, image_size=224)
    assert time.process_time() - start < 20
    assert 10 * 2**30 < told.activations < 20 * 2**30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2, "image_size": -1}, "image_size must be at least 1, got -1"),
        ({"batch_size": 2, "precision": "64"}, "precision must be 32, bf16 or fp16, got 64"),
        ({"batch_size": 2, "optimizer": "adamm"}, "unknown optimizer 'adamm'; nearest: adam"),
        ({"batch_size": 2, "image_size": 8}, "images must be at least 32 by 32 pixels, got 8 by 8"),
    ],
)
def test_what_cannot_be_is_told(settings, message):
    with pytest.raises(ValueError, match=message):
        training_memory("van_b0", **settings)


def test_the_command_shows_it(capsys):
    assert main(["info", "resnet18", "--batch-size=8", "--image-size=64", "--json"]) == 0
    assert '"total":' in capsys.readouterr().out
    assert main(["info", "resnet18", "--batch_size=8", "--image_size=64", "--ema"]) == 0
    assert "activations" in capsys.readouterr().out
    assert main(["info", "resnet18", "--ema"]) == 2
    assert "are about the memory of training" in capsys.readouterr().err
    assert main(["info", "--batch_size=8"]) == 2
    assert "batch_size goes with a network" in capsys.readouterr().err
