"""IDConv, STE, DMixer and MSFFN: the authors' fixtures, training, folding, tracing, arguments."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import parity
import pytest
import torch
from implementations import LAYOUTS, force, identify, lay_out
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volution.bench.peers_transxnet import PlainDMixer, PlainIDConv, PlainMSFFN
from volution.ops import MSFFN, STE, DMixer, IDConv, PositionTable, dynamic_depthwise_conv2d
from volution.ops.dmixer.msffn import MultiScaleDWConv
from volution.ops.dmixer.norm import ChannelAffine

DIM = 32
LAYERS: dict[str, Any] = {
    "idconv": lambda: IDConv(DIM),
    "idconv-no-bias": lambda: IDConv(DIM, 5, 3, bias=False),
    "ste": lambda: STE(DIM),
    "dmixer": lambda: DMixer(DIM, num_heads=2, sr_ratio=2),
    "msffn": lambda: MSFFN(DIM, 50),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def lively(layer: nn.Module) -> nn.Module:
    """In evaluation, with no parameter or statistic at its initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in layer.state_dict().items():
            if not tensor.is_floating_point():
                continue
            z = torch.randn(tensor.shape, generator=generator)
            if key.endswith("running_var"):
                tensor.copy_(0.5 + z.abs())
            elif tensor.dim() > 1:
                tensor.copy_(2 * z / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(z)
    return layer.eval()


def drawn(dtype: torch.dtype = torch.float32, layout: str = "channels_last") -> Tensor:
    return lay_out(torch.randn(2, DIM, 9, 10, dtype=dtype), layout)


def authors(fixture: parity.Fixture) -> nn.Module:
    """Return our layer for a fixture."""
    construct = dict(fixture.meta["construct"])
    if "msffn" in fixture.name:
        return MSFFN(**construct)
    if "msdwconv" in fixture.name:
        return MultiScaleDWConv(construct["dim"], construct["scale"])
    if "idconv" in fixture.name:
        return IDConv(**construct)
    construct.pop("relative_pos_enc", None)
    return Mixed(DMixer(**construct)) if len(fixture.meta["inputs"]) > 1 else DMixer(**construct)


class Mixed(nn.Module):
    """A mixer whose table of positions is its second input, as in the authors' code."""

    def __init__(self, mixer: DMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True) -> Any:
        return self.mixer.load_state_dict(state_dict, strict)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        position = PositionTable(table.shape[1], x.shape[2:], self.mixer.global_unit.sr_ratio)
        del position.weight
        position.weight = table
        return self.mixer(x, position)


NAMES = [
    name
    for part in ("idconv", "dmixer", "msdwconv", "msffn")
    for name in parity.names(f"transxnet_{part}")
]


@parity.needs_fixtures
class TestAuthors:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=identify)
    @pytest.mark.parametrize("implementation", ["reference", "native"])
    @pytest.mark.parametrize("name", NAMES)
    def test_outputs_and_gradients(self, name, implementation, dtype):
        fixture = parity.load(name)
        with force(implementation):
            rename = lambda name: name.removeprefix("mixer.")  # noqa: E731
            parity.compare(fixture, authors(fixture), dtype, rename)

    @pytest.mark.parametrize("name", NAMES)
    def test_keys_in_their_order(self, name):
        fixture = parity.load(name)
        keys = [key.removeprefix("mixer.") for key in authors(fixture).state_dict()]
        assert sorted(keys) == sorted(fixture.meta["manifest"])

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("name", ["transxnet_dmixer", "transxnet_idconv_g2_k7_13x18"])
    def test_inference_in_any_layout(self, name, layout):
        fixture = parity.load(name)
        layer = authors(fixture)
        layer.load_state_dict(fixture.weights())
        [x] = fixture.inputs(torch.float32)
        with torch.inference_mode():
            got = layer.eval()(lay_out(x, layout))
        fixture.check({"output": got}, torch.float32)


PEERS: dict[str, Any] = {
    "idconv": (lambda: IDConv(DIM, 7, 4), lambda: PlainIDConv(DIM, 7, 4)),
    "idconv-no-bias": (
        lambda: IDConv(DIM, 5, 3, 8, bias=False),
        lambda: PlainIDConv(DIM, 5, 3, 8, bias=False),
    ),
    "dmixer": (lambda: DMixer(DIM, 7, 2, 2, 2), lambda: PlainDMixer(DIM, 7, 2, 2, 2)),
    "msffn": (lambda: MSFFN(DIM, 50), lambda: PlainMSFFN(DIM, 50)),
}


class TestTraining:
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    @pytest.mark.parametrize(("make", "make_peer"), PEERS.values(), ids=PEERS)
    def test_equals_the_plain_formulation(self, make, make_peer, layout):
        """Outputs, gradients, and running statistics after two passes of a batch."""
        layer, peer = lively(make()).double().train(), make_peer().double().train()
        peer.load_state_dict(layer.state_dict())
        x = drawn(torch.float64, layout)
        results = []
        for module in (layer, peer):
            leaf = x.detach().clone().requires_grad_()
            for _ in range(2):
                y = module(leaf)
            y.square().sum().backward()
            grads = {name: p.grad for name, p in module.named_parameters()}
            results.append((y.detach(), leaf.grad, grads, dict(module.named_buffers())))
        assert_close(*results, rtol=1e-9, atol=1e-9)

    def test_the_norm_of_the_generator_sees_two_batches(self):
        layer = IDConv(DIM).train()
        layer(drawn())
        assert layer.proj[0].bn.num_batches_tracked == 2
        layer = IDConv(DIM, bias=False).train()
        layer(drawn())
        assert layer.proj[0].bn.num_batches_tracked == 1

    def test_one_image_cannot_be_normalised(self):
        layer, x = IDConv(DIM).train(), drawn()[:1]
        before = copy.deepcopy(layer.state_dict())
        message = "input must have at least 2 images in training, got 1: .* batch of 2 or more"
        with pytest.raises(ValueError, match=message):
            layer(x)
        assert_close(layer.state_dict(), before, rtol=0, atol=0)
        layer.proj[0].bn.eval()
        assert layer(x).shape == x.shape
        assert IDConv(DIM, bias=False).train()(x).shape == x.shape

    @each_layer
    @pytest.mark.parametrize("compiled", [False, True])
    def test_under_autocast(self, make, compiled):
        torch._dynamo.reset()
        layer = lively(make()).train()
        run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
        x = drawn().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x)
        y.float().square().mean().backward()
        for name, parameter in [("input", x), *layer.named_parameters()]:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    @each_layer
    def test_half_precision(self, make):
        layer, x = lively(make()), drawn()
        with torch.inference_mode():
            wanted = layer(x)
            got = copy.deepcopy(layer).bfloat16()(x.bfloat16())
        assert got.dtype == torch.bfloat16
        assert (got.float() - wanted).norm() < 0.05 * wanted.norm()

    def test_softmax_of_half_precision_is_taken_in_float32(self):
        from volution.ops.dmixer.idconv import mix_by_softmax

        attention = torch.tensor([0.0, 3.0, 6.0, 12.0]).reshape(1, 4).bfloat16()
        weight = torch.ones(4, 1, dtype=torch.float64)
        got = mix_by_softmax(attention, weight)
        assert abs(got.item() - 1) < 1e-6


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


class TestLayers:
    def test_idconv_is_the_function_on_what_it_generates(self):
        layer, x = lively(IDConv(DIM)), drawn()
        kernel, bias = layer.generate(x)
        assert_close(layer(x), dynamic_depthwise_conv2d(x, kernel, bias))
        pooled = layer.proj(F.adaptive_avg_pool2d(x, 7)).unflatten(1, (2, DIM))
        assert_close(kernel, (pooled.softmax(1) * layer.weight).sum(1))

    @pytest.mark.parametrize(("dim", "groups", "side", "ratio"), [(24, 2, 7, 4), (64, 4, 3, 8)])
    def test_parameters_of_idconv(self, dim, groups, side, ratio):
        """C^2 (G + 1) / r + G C K^2, two for each channel of the norm, and G C of each bias."""
        layer = IDConv(dim, side, groups, ratio, bias=False)
        paper = dim**2 * (groups + 1) // ratio + groups * dim * side**2
        count = sum(p.numel() for p in layer.parameters())
        assert count == paper + 2 * dim // ratio + groups * dim
        layer = IDConv(dim, side, groups, ratio)
        assert sum(p.numel() for p in layer.parameters()) == count + groups * dim

    def test_multiplications_of_ste(self):
        """H W C (2 C / r + 9), with 16 channels between at least."""
        from torch.utils.flop_counter import FlopCounterMode

        for dim in (64, 256):
            counter = FlopCounterMode(display=False)
            with counter:
                STE(dim, device="meta")(torch.empty(2, dim, 5, 7, device="meta"))
            ratio = dim / max(16, dim // 8)
            assert counter.get_total_flops() == 2 * 2 * 5 * 7 * dim * (2 * dim / ratio + 9)

    def test_slices_of_the_multi_scale_convolution(self):
        layer = lively(MultiScaleDWConv(30))
        x = torch.randn(2, 30, 9, 8)
        parts = zip(layer.proj, x.split([9, 7, 7, 7], 1), strict=True)
        wanted = torch.cat([nn.Conv2d.forward(conv, part) for conv, part in parts], 1)
        assert_close(layer(x), wanted)
        assert_close(layer(x, shortcut=True, activation="gelu"), F.gelu(wanted + x))

    def test_large_batches_go_through_in_parts(self, monkeypatch):
        from volution.ops._shared import pointwise

        layer, x = lively(MSFFN(DIM, 50)), drawn().repeat(3, 1, 1, 1)
        residual = torch.randn_like(x)
        with torch.inference_mode():
            wanted = layer(x, residual), layer(x)
            monkeypatch.setattr(pointwise, "_LARGE", 2 * 50 * 9 * 10 * 4)
            assert pointwise.images_at_once(x, 50) == 2
            assert_close((layer(x, residual), layer(x)), wanted)

    @each_layer
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("fold", [False, True])
    def test_keeps_the_memory_format(self, make, memory_format, fold):
        layer = lively(make())
        layer = layer.fuse() if fold else layer
        x = drawn().contiguous(memory_format=memory_format)
        assert layer(x).is_contiguous(memory_format=memory_format)
        with torch.inference_mode():
            before = x.clone()
            assert layer(x).is_contiguous(memory_format=memory_format)
            assert torch.equal(x, before)

    @each_layer
    def test_inference_computes_what_training_records(self, make):
        layer, x = lively(make()), drawn()
        with torch.inference_mode():
            got = layer(x)
        assert_close(got, layer(x).detach(), rtol=1e-4, atol=1e-5)

    @each_layer
    def test_empty_batch(self, make):
        layer = lively(make())
        for mode in (torch.inference_mode(), nullcontext()):
            with mode:
                assert layer(drawn()[:0]).shape == (0, DIM, 9, 10)

    @each_layer
    def test_device_and_dtype(self, make, monkeypatch):
        with torch.device("meta"):
            layer = make().double()
        assert {p.device.type for p in layer.parameters()} == {"meta"}
        y = layer(torch.empty(2, DIM, 5, 5, device="meta", dtype=torch.float64))
        assert (y.shape, y.dtype) == ((2, DIM, 5, 5), torch.float64)

    def test_position_reaches_the_attention(self):
        layer, x = lively(DMixer(DIM, num_heads=2, sr_ratio=2)), drawn()
        table = lively(PositionTable(2, (9, 10), 2))
        assert_close(layer.mix(x, table)[:, DIM // 2 :], layer.global_unit(x[:, DIM // 2 :], table))
        assert not torch.allclose(layer(x, table), layer(x))

    def test_repr_shows_hyperparameters(self):
        assert "32, kernel_size=7, num_groups=2" in repr(IDConv(32))
        assert "bias=False" in repr(IDConv(32, bias=False))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: IDConv(0), "dim must be an integer of at least 1, got 0"),
            (lambda: IDConv(8, kernel_size=4), "kernel_size must be a positive odd integer, got 4"),
            (lambda: IDConv(8, num_groups=1), "num_groups must be at least 2, got 1: the softmax"),
            (lambda: IDConv(8, num_groups=0), "num_groups must be an integer of at least 1, got 0"),
            (
                lambda: IDConv(3, reduction_ratio=4),
                "reduction_ratio must be at most dim, got reduction_ratio=4 and dim=3",
            ),
            (lambda: STE(0), "dim must be an integer of at least 1, got 0"),
            (lambda: DMixer(33), "dim must be even, half local and half global, got 33"),
            (
                lambda: DMixer(32, num_heads=3),
                "num_heads must divide dim // 2, got num_heads=3 and dim // 2=16",
            ),
            (lambda: DMixer(32, sr_ratio=3), "sr_ratio must be 1 or even"),
            (lambda: MSFFN(0), "in_features must be an integer of at least 1, got 0"),
            (lambda: MSFFN(8, 3), "hidden_features must be at least 4, one for each scale, got 3"),
            (
                lambda: MultiScaleDWConv(3),
                r"kernel_sizes must have 1 to dim = 3 entries, got \(1, 3, 5, 7\)",
            ),
            (lambda: MultiScaleDWConv(8, (3, 4)), "kernel_size must be a positive odd integer"),
        ],
    )
    def test_bad_arguments(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()
