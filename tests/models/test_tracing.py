"""The networks under PyTorch's tracers.

Tracers take minutes over whole networks, so one network of each kind is traced with few blocks:
each way to change channels or stride, and a block that keeps them. The slow tests trace the
others as they are.
"""

from __future__ import annotations

import pytest
import torch
from networks import depths, images, kinds, one_of_each_kind, twin
from torch import Tensor, nn
from torch.testing import assert_close

every_network = pytest.mark.parametrize("name", one_of_each_kind())


def make(name: str) -> nn.Module:
    blocks = (2, 1, 1, 1) if name in kinds() else depths(name)
    return twin(name, depths=blocks).double()


def noise(count: int = 2) -> Tensor:
    return images(count).double()


def run(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


@every_network
def test_symbolic_trace(name):
    net = make(name)
    graph = torch.fx.symbolic_trace(net)
    assert_close(run(graph, noise(3)), run(net, noise(3)), atol=0, rtol=0)


@every_network
def test_export_is_plain_pytorch(name):
    net = make(name)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(net, (noise(),), dynamic_shapes=({0: batch},))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {call.namespace for call in calls if isinstance(call, torch._ops.OpOverload)} == {"aten"}
    assert_close(run(program.module(), noise(5)), run(net, noise(5)), atol=1e-9, rtol=1e-9)


@every_network
def test_compile_without_graph_break(name):
    net = make(name)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_close(run(compiled, noise()), run(net, noise()), atol=1e-9, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds())
def test_compiled_training_step(name):
    """Through the code generator, in forward and backward."""
    net, other = make(name).train(), make(name).train()
    torch._dynamo.reset()
    net(noise()).square().sum().backward()
    torch.compile(other, fullgraph=True)(noise()).square().sum().backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert_close(q.grad, p.grad, atol=1e-7, rtol=1e-7)
