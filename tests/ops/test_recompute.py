"""Layers of the mixer that make large maps again instead of keeping them: the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from volution.ops import MSFFN, STE
from volution.ops.dmixer import recompute

LAYERS = {"MSFFN": lambda: MSFFN(16, 64), "STE": lambda: STE(16)}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    made = LAYERS[request.param]().double()
    with torch.no_grad():
        for norm in made.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.normal_()
                norm.bias.normal_()
    return made


def derivatives(layer, x):
    """Output, gradients and a second derivative."""
    out = layer(x)
    leaves = [x, *layer.parameters()]
    grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    return [out, *grads, *torch.autograd.grad(grads[0].square().sum(), x)]


def kept(layer, x):
    """Elements that the backward pass keeps, those of parameters aside."""
    known = {p.data_ptr() for p in layer.parameters()}
    sizes = {}

    def pack(tensor):
        if tensor.data_ptr() not in known:
            sizes[tensor.data_ptr(), tensor.shape] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(x)
    assert out.requires_grad
    return sum(tensor.numel() for tensor in sizes.values())


def test_the_same_to_the_last_bit(layer, monkeypatch):
    x = torch.randn(2, 16, 9, 7, dtype=torch.float64, requires_grad=True)
    wanted = derivatives(layer.eval(), x)
    monkeypatch.setattr(recompute, "LARGE", 0)
    for got, want in zip(derivatives(layer, x), wanted, strict=True):
        assert torch.equal(got, want)


def test_keeps_less(layer, monkeypatch):
    x = torch.randn(2, 16, 9, 7, dtype=torch.float64, requires_grad=True)
    plain = kept(layer.eval(), x)
    monkeypatch.setattr(recompute, "LARGE", 0)
    assert kept(layer, x) < 0.5 * plain


def test_norms_in_training_see_a_batch_once(layer, monkeypatch):
    monkeypatch.setattr(recompute, "LARGE", 0)
    x = torch.randn(2, 16, 9, 7, dtype=torch.float64, requires_grad=True)
    layer.train()(x).sum().backward()
    norms = [m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.num_batches_tracked.item() for norm in norms} == {1}


def test_traces_and_transforms_see_the_plain_form(layer, monkeypatch):
    monkeypatch.setattr(recompute, "LARGE", 0)
    x = torch.randn(2, 16, 9, 7, dtype=torch.float64)
    want = layer.eval()(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), want)
    gradient = torch.func.grad(lambda x: layer(x).sum())(x)
    assert gradient.isfinite().all()
