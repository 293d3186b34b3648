"""IDConv, STE, DMixer and MSFFN: the authors' fixtures, training, what they promise, arguments."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import parity
import pytest
import torch
from dmixer_cases import DIM, drawn, each_layer, lively
from implementations import LAYOUTS, force, identify, lay_out
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from volution.bench.peers_transxnet import PlainDMixer, PlainIDConv, PlainMSFFN
from volution.ops import MSFFN, STE, DMixer, IDConv, PositionTable, dynamic_depthwise_conv2d
from volution.ops._shared import pointwise
from volution.ops.dmixer.idconv import softmax_over_groups
from volution.ops.dmixer.msffn import MultiScaleDWConv


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
        attention = torch.tensor([0.0, 3.0, 6.0, 12.0]).bfloat16()
        got = softmax_over_groups(attention, 4)
        assert_close(got[:, 0], attention.float().softmax(0), rtol=1e-6, atol=0)


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
