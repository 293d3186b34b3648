"""Networks as people run them: inference and a training step, against their plain formulations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volution import models
from volution.bench import memory, runner
from volution.bench.contest import LAYOUTS, Wanted, WrongResultError
from volution.bench.peers import with_unfold
from volution.bench.peers_hornet import PlainHorNet
from volution.bench.peers_transxnet import PlainTransXNet
from volution.bench.peers_van import PlainVAN

INFERENCE_BATCH, TRAINING_BATCH = 4, 8
TOLERANCE = 1e-4  # of the largest logit, in float32


def _plain_rednet50(num_classes: int) -> nn.Module:
    return with_unfold(timm.create_model("rednet50", num_classes=num_classes))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "van_b2": PlainVAN,
    "hornet_tiny_7x7": PlainHorNet,
    "hornet_tiny_gf": partial(PlainHorNet, gf=True),
    "rednet50": _plain_rednet50,
    "transxnet_t": PlainTransXNet,
}
"""Networks and, for a number of classes, what they are measured against."""


def measure(
    device: str,
    *,
    size: int,
    budget: float,
    compiled: bool,
    wanted: Wanted = lambda name: True,
) -> Iterator[dict[str, Any]]:
    """Yield inference at batch 4 and a training step at batch 8, at ``size`` by ``size`` pixels.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        size: Height and width of the images.
        budget: Seconds for each pair of contestants.
        compiled: Add the fused and compiled form of ours, and the compiled forms of the peer.
        wanted: Chooses cases by name: a network's, and ``inference`` or ``training step``.
    """
    for name in NETWORKS:
        if wanted(f"{name} inference"):
            yield from _inference(name, device, size=size, budget=budget, compiled=compiled)
        if wanted(f"{name} training step"):
            yield _training(name, device, size=size, budget=budget)


def build(
    name: str, form: str, device: str, layout: torch.memory_format, *, size: int
) -> nn.Module:
    """Return a network with weights that hide no mistake, the same in each form.

    Args:
        name: One of ``NETWORKS``.
        form: ``"ours"`` or ``"plain"``.
        device: Where it lives.
        layout: Memory format of its weights.
        size: Side of the images it is for; small ones get a small classifier.
    """
    classes = 1000 if size >= 224 else 10
    torch.manual_seed(0)
    net = enliven(NETWORKS[name](classes))
    if form == "ours":
        weights = net.state_dict()
        net = timm.create_model(name, num_classes=classes)
        models.load_official(net, weights)
    return net.to(device).to(memory_format=layout)


@torch.no_grad()
def enliven(net: nn.Module) -> nn.Module:
    """Fill a network so that no branch is switched off and every norm has something to do.

    At their default initialisation layer scales of 1e-6 and zero last norms would hide almost
    everything from the correctness gate. Statistics are taken from a batch of noise.
    """
    for key, parameter in net.named_parameters():
        if parameter.dim() < 2:
            parameter.uniform_(0.1, 0.5)
        elif "relative_pos_enc" in key:
            parameter.normal_()  # one logit each, not a filter
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    net.train()(torch.randn(8, 3, 64, 64))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net


def _inference(
    name: str, device: str, *, size: int, budget: float, compiled: bool
) -> Iterator[dict[str, Any]]:
    torch._dynamo.reset()
    contestants = _eager(name, device, size=size)
    _check_equal(name, contestants)
    best = {
        f"{form}, eager": runner.fastest(
            {who: work for who, work in contestants.items() if who.startswith(form)}, device
        )
        for form in ("ours", "plain")
    }
    if compiled:
        # Compiling takes as long as all the rest: the peer's quickest format is compiled alone.
        layout = best["plain, eager"].rpartition(", ")[2]
        contestants |= _compiled(name, device, layout, size=size)
        _check_equal(name, contestants)
        best |= {who.rpartition(", ")[0]: who for who in contestants if "compiled" in who}
    pairs = (
        ("ours, eager", "plain, eager"),
        ("ours, fused, compiled", "plain, eager"),
        ("ours, fused, compiled", "plain, compiled"),
    )
    for ours, peer in pairs:
        if ours in best and peer in best:
            work = contestants[best[ours]], contestants[best[peer]]
            yield {
                "case": f"{name} {_mode(ours)}/{_mode(peer)}",
                "batch": INFERENCE_BATCH,
                "image_size": size,
                "dtype": "float32",
                "direction": "forward",
                "ours": best[ours],
                "peer": best[peer],
                **runner.paired(*work, device, budget=budget),
            }


def _mode(who: str) -> str:
    """Return the last word on how a contestant runs: eager or compiled."""
    return who.rpartition(", ")[2]


def _eager(name: str, device: str, *, size: int) -> dict[str, runner.Work]:
    """Return the works as they are, by form and memory format."""
    found = {}
    for form in ("ours", "plain"):
        for label, layout in LAYOUTS.items():
            net = build(name, form, device, layout, size=size).eval()
            found[f"{form}, eager, {label}"] = _forward(net, _images(device, layout, size))
    return found


def _compiled(name: str, device: str, label: str, *, size: int) -> dict[str, runner.Work]:
    """Return ours fused and compiled, as the README advises, and the peer in one format."""
    last, layout = torch.channels_last, LAYOUTS[label]
    ours = build(name, "ours", device, last, size=size).eval()
    plain = build(name, "plain", device, layout, size=size).eval()
    fused = _frozen(ours.fuse())  # type: ignore[operator]
    return {
        "ours, fused, compiled, channels_last": _forward(fused, _images(device, last, size)),
        f"plain, compiled, {label}": _forward(_frozen(plain), _images(device, layout, size)),
    }


def _images(device: str, layout: torch.memory_format, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(INFERENCE_BATCH, 3, size, size, generator=generator)
    return x.to(device).contiguous(memory_format=layout)


def _frozen(net: Any) -> Any:
    # With its weights as constants the compiler folds norms and joins to a convolution what
    # follows it, for either form: on the CPU nothing else is as fast.
    return torch.compile(net, options={"freezing": True})


def _forward(model: Any, images: Tensor) -> runner.Work:
    return torch.inference_mode()(partial(model, images))


def _check_equal(name: str, contestants: dict[str, runner.Work]) -> None:
    results = {who: work() for who, work in contestants.items()}
    want = next(result for who, result in results.items() if who.startswith("plain, eager"))
    for who, result in results.items():
        error = ((result - want).abs().max() / want.abs().max()).item()
        if not error < TOLERANCE:
            raise WrongResultError(f"{name}, {who}: differs by {error:.1e} of the largest logit")


def _training(name: str, device: str, *, size: int, budget: float) -> dict[str, Any]:
    check_gradients(name, device)
    # Ours is run as the README advises, the peer in its fastest format.
    ours = "ours, channels_last"
    steps = {ours: training_step(name, ours, device, size)}
    peers = {
        who: training_step(name, who, device, size)
        for who in (f"plain, {form}" for form in LAYOUTS)
    }
    peer, steps = runner.fastest(peers, device), steps | peers
    times = runner.paired(steps[ours], steps[peer], device, budget=budget)
    peaks = {
        who: memory.measured_apart(
            "networks.training_step", name=name, who=who, device=device, size=size
        )
        for who in (ours, peer)
    }
    return {
        "case": f"{name} training step",
        "batch": TRAINING_BATCH,
        "image_size": size,
        "dtype": "float32",
        "direction": "both",
        "ours": ours,
        "peer": peer,
        **times,
        "ours_peak_mib": peaks[ours],
        "peer_peak_mib": peaks[peer],
        "memory_share": peaks[ours] / peaks[peer],
    }


def check_gradients(name: str, device: str) -> None:
    """Raise ``WrongResultError`` unless both forms send the same gradient into the image.

    In float64, where a deep network's rounding does not hide a wrong derivative, and on small
    images, which both forms take.
    """
    x = torch.randn(2, 3, 64, 64, device=device, dtype=torch.float64)
    grads = []
    for form in ("plain", "ours"):
        net = build(name, form, device, torch.channels_last, size=64).double().train()
        image = x.clone().requires_grad_()
        loss = net(image).square().sum()
        grads.append(torch.autograd.grad(loss, image)[0])
    error = ((grads[1] - grads[0]).abs().max() / grads[0].abs().max()).item()
    if not error < 1e-6:
        raise WrongResultError(f"{name}, gradient of the image: differs by {error:.1e}")


def training_step(name: str, who: str, device: str, size: int) -> runner.Work:
    """Return a call that runs a training step at batch 8.

    Args:
        name: A network.
        who: Its form and memory format, such as ``"ours, channels_last"``.
        device: Where it is trained.
        size: Side of the images.
    """
    form, _, label = who.partition(", ")
    model = build(name, form, device, LAYOUTS[label], size=size).train()
    images = torch.randn(TRAINING_BATCH, 3, size, size, device=device)
    return step(model, images.contiguous(memory_format=LAYOUTS[label]))


def step(model: nn.Module, images: Tensor) -> runner.Work:
    """Return a call that runs forward, loss, backward and an SGD update."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    labels = torch.arange(len(images), device=images.device)

    def run() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return run
