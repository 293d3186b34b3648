"""IDConv, STE, DMixer and MSFFN folded, traced, compiled and exported."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from dmixer_cases import DIM, drawn, each_layer, lively
from torch import nn
from torch.testing import assert_close

from volution.ops import MSFFN, STE
from volution.ops.dmixer.norm import ChannelAffine


class TestFolding:
    @each_layer
    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
    @pytest.mark.parametrize("inference", [False, True], ids=["recorded", "inference"])
    def test_equals_the_layer(self, make, dtype, bound, inference):
        layer, x = lively(make()).to(dtype), drawn(dtype)
        before = copy.deepcopy(layer.state_dict())
        fused = layer.fuse()
        with torch.inference_mode() if inference else nullcontext():
            got, wanted = fused(x), layer(x)
        assert (got - wanted).abs().max() <= bound * wanted.abs().max()
        assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
        assert_close(layer.state_dict(), before, rtol=0, atol=0)

    @each_layer
    def test_is_saved_loaded_and_trained(self, make):
        fused, other = lively(make()).fuse(), make().eval().fuse()
        x = drawn()
        assert not torch.allclose(fused(x), other(x))
        other.load_state_dict(fused.state_dict())
        assert_close(other(x), fused(x), rtol=0, atol=0)
        fused.train()(x).square().sum().backward()
        for name, parameter in fused.named_parameters():
            assert parameter.grad.any(), name

    @each_layer
    def test_not_in_training(self, make):
        layer = lively(make()).train()
        with pytest.raises(ValueError, match="fuse\\(\\) needs BatchNorm in evaluation mode"):
            layer.fuse()

    @each_layer
    def test_twice_is_once(self, make):
        fused, x = lively(make()).fuse(), drawn()
        again = fused.fuse()
        assert again.state_dict().keys() == fused.state_dict().keys()
        assert_close(again(x), fused(x), rtol=1e-6, atol=1e-6)

    def test_what_is_left_of_a_norm_before_padding(self):
        fused = lively(MSFFN(DIM, 50)).fuse()
        assert [type(m) for m in fused.modules()].count(ChannelAffine) == 1
        assert isinstance(fused.norm, nn.Identity)

    @pytest.mark.parametrize("fold", [False, True])
    def test_residuals(self, fold):
        ffn, ste = (lively(m).double() for m in (MSFFN(DIM, 50), STE(DIM)))
        if fold:
            ffn, ste = ffn.fuse(), ste.fuse()
        x, residual = drawn(torch.float64), drawn(torch.float64)
        for inference in (False, True):
            with torch.inference_mode(inference):
                kept = residual.clone()
                assert_close(ffn(x, kept), ffn(x) + residual)
                assert_close(ste.branch(x, kept), ste.branch(x) + residual)
                assert_close(ste(x), ste.branch(x) + x)
                assert torch.equal(kept, residual)


class TestTracing:
    @each_layer
    @pytest.mark.parametrize("fold", [False, True])
    def test_symbolic_trace(self, make, fold):
        layer, x = lively(make()), drawn()
        layer = layer.fuse() if fold else layer
        traced = torch.fx.symbolic_trace(layer)
        assert_close(traced(x), layer(x), rtol=0, atol=0)
        if not fold:
            layer.train()
            traced = torch.fx.symbolic_trace(layer).train()
            assert_close(traced(x), layer(x), rtol=0, atol=0)

    @each_layer
    @pytest.mark.parametrize("training", [False, True])
    def test_compiles_without_graph_break(self, make, training):
        torch._dynamo.reset()
        layer = lively(make()).double().train(training)
        other = copy.deepcopy(layer)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
        for size in ((9, 10), (13, 7)):
            x = torch.randn(3, DIM, *size, dtype=torch.float64)
            assert_close(compiled(x), other(x))

    @each_layer
    @pytest.mark.parametrize("fold", [False, True])
    def test_exports_with_dynamic_batch_and_sizes(self, make, fold):
        layer, dynamic = lively(make()).double(), torch.export.Dim.DYNAMIC
        layer = layer.fuse() if fold else layer
        x = torch.randn(2, DIM, 12, 14, dtype=torch.float64)
        shapes = ({0: dynamic, 2: dynamic, 3: dynamic},)
        with torch.no_grad():
            program = torch.export.export(layer, (x,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                assert node.target.namespace == "aten", node.target
                assert node.target.overloadpacket is not torch.ops.aten.addcmul.out
        for n, *size in ((3, 16, 10), (5, 8, 22)):
            x = torch.randn(n, DIM, *size, dtype=torch.float64)
            assert_close(program.module()(x), layer(x))
