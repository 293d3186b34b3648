"""Overlapping spatial-reduction attention: the authors' numbers, folding, layouts, tracing."""

from __future__ import annotations

import copy

import parity
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volution import deploy
from volution.ops import OSRA, PositionTable, reference_ops
from volution.ops.dmixer import attention, tiles

RATIOS = [1, 2, 4, 8]
each_ratio = pytest.mark.parametrize("ratio", RATIOS)
FIXTURES = parity.names("transxnet_osra_")


def randomised(module: nn.Module) -> nn.Module:
    """Give a module parameters and statistics that hide nothing, in evaluation."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_(0, 0.5)
    return module.eval()


def problem(
    ratio: int = 2, size=(12, 10), dtype=torch.float64
) -> tuple[OSRA, PositionTable, Tensor]:
    layer = randomised(OSRA(16, 2, ratio).to(dtype))
    position = randomised(PositionTable(2, (9, 8), ratio).to(dtype))
    x = torch.randn(2, 16, *size, dtype=dtype)
    return layer, position, x.contiguous(memory_format=torch.channels_last)


def by_definition(layer: OSRA, x: Tensor, weight: Tensor | None) -> Tensor:
    """The layer as the paper describes it, from PyTorch's own functions."""
    y, ratio, channels = x, layer.sr_ratio, x.shape[1]
    if ratio > 1:
        first, second = layer.sr
        kernel, pad = first.conv.weight, (ratio + 3) // 2
        y = F.conv2d(y, kernel, stride=ratio, padding=pad, groups=channels)
        y = second.bn(F.gelu(first.bn(y)) * second.conv.weight[:, 0])
    local = layer.local_conv
    y = y + F.conv2d(y, local.weight, local.bias, padding=1, groups=channels)
    q = layer.q(x).flatten(2).unflatten(1, (layer.num_heads, -1))  # N H E L
    k, v = layer.kv(y).flatten(2).unflatten(1, (2, layer.num_heads, -1)).unbind(1)
    logits = q.mT @ k * q.shape[2] ** -0.5
    if weight is not None:
        logits = logits + F.interpolate(weight, logits.shape[2:], mode="bicubic")
    return (v @ logits.softmax(-1).mT).reshape(x.shape)


class _TableAsTensor(nn.Module):
    """The layer with the table as its second input, as the authors' takes it."""

    def __init__(self, layer: OSRA) -> None:
        super().__init__()
        self.layer = layer

    def load_state_dict(self, state, strict=True):
        return self.layer.load_state_dict(state, strict)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            return self.layer(x)
        position = PositionTable(weight.shape[1], 1)
        del position.weight
        position.weight = weight
        return self.layer(x, position)


class TestParity:
    @parity.needs_fixtures
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("name", FIXTURES)
    @pytest.mark.parametrize("tiled", [False, True])
    def test_equals_the_authors(self, name, dtype, tiled, monkeypatch):
        if tiled:
            for budgets in (tiles._FORWARD, tiles._BACKWARD):
                monkeypatch.setitem(budgets, "cpu", 1)
            monkeypatch.setattr(attention, "SMALL", 1)
        fixture = parity.load(name)
        made = fixture.meta["construct"]
        layer = OSRA(made["dim"], made["num_heads"], made["sr_ratio"])
        rename = lambda name: name.removeprefix("layer.")  # noqa: E731
        parity.compare(fixture, _TableAsTensor(layer), dtype, rename)

    @parity.needs_fixtures
    def test_every_kind_is_there(self):
        assert len(FIXTURES) == 10
        assert sum("resized" in name for name in FIXTURES) == 2


class TestLayer:
    @each_ratio
    @pytest.mark.parametrize("size", [(12, 10), (9, 8), (7, 17), (1, 1)])
    @pytest.mark.parametrize("with_table", [False, True])
    def test_follows_the_definition(self, ratio, size, with_table):
        layer, position, x = problem(ratio, size)
        got = layer(x, position if with_table else None)
        want = by_definition(layer, x, position.weight if with_table else None)
        assert_close(got, want, atol=1e-11, rtol=1e-11)
        assert got.shape == x.shape
        with torch.no_grad():  # where other kernels run
            again = layer(x, position if with_table else None)
        assert_close(again, want, atol=1e-11, rtol=1e-11)

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "half"])
    def test_layout_follows_the_input(self, layout):
        layer, position, x = problem()
        want = layer(x, position)
        moved = {
            "contiguous": lambda: x.contiguous(),
            "channels_last": lambda: x,
            # A mixer gives it half of the channels of a map.
            "half": lambda: torch.cat([x * torch.nan, x], 1)[:, 16:],
        }[layout]()
        got = layer(moved, position)
        assert_close(got, want)
        wanted = torch.contiguous_format if layout == "contiguous" else torch.channels_last
        assert got.is_contiguous(memory_format=wanted)

    def test_trains(self):
        layer, position, _ = problem(dtype=torch.float32)
        layer.train()
        for autocast in (False, True):
            for size in ((9, 8), (12, 10)):
                image = torch.randn(2, 16, *size)
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    y = layer(image, position)
                assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
                y.float().square().mean().backward()
                for p in (*layer.parameters(), *position.parameters()):
                    assert p.grad.isfinite().all()
                    assert p.grad.any()
                    p.grad = None

    def test_attention_dropout_is_for_training(self):
        layer, position, x = problem()
        want = layer(x, position)
        layer.attn_drop = 0.5
        assert torch.equal(layer(x, position), want)
        layer.train()
        assert (layer(x, position) - layer(x, position)).abs().max() > 1e-3

    def test_state_dict_keys_are_frozen(self):
        plain = {
            f"{name}.{kind}" for name in ("q", "kv", "local_conv") for kind in ("weight", "bias")
        }
        assert set(OSRA(8).state_dict()) == plain
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        reduction = {f"sr.{i}.bn.{kind}" for i in (0, 1) for kind in norm}
        reduction |= {f"sr.{i}.conv.weight" for i in (0, 1)}
        assert set(OSRA(8, sr_ratio=2).state_dict()) == plain | reduction

    def test_repr_shows_hyperparameters(self):
        shown = repr(OSRA(8, 2, 4, attn_drop=0.1))
        assert "num_heads=2, sr_ratio=4, attn_drop=0.1" in shown

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"dim": 0}, "dim must be an integer of at least 1, got 0"),
            ({"num_heads": 3}, "num_heads must divide dim, got num_heads=3 and dim=16"),
            ({"sr_ratio": 3}, "sr_ratio must be 1 or even, .* got 3"),
            ({"sr_ratio": 0}, "sr_ratio must be an integer of at least 1, got 0"),
            ({"attn_drop": 1.0}, "attn_drop must be at least 0 and below 1, got 1.0"),
        ],
    )
    def test_bad_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            OSRA(**{"dim": 16, **kwargs})

    def test_table_of_other_heads(self):
        layer, _, x = problem()
        with pytest.raises(ValueError, match="each of the 2 heads, got one for 4 heads"):
            layer(x, PositionTable(4, 8, 2))


class TestFolding:
    @each_ratio
    @pytest.mark.parametrize("size", [(9, 8), (12, 10), (31, 7)])
    @pytest.mark.parametrize("with_table", [False, True])
    def test_fused_equals_unfused(self, ratio, size, with_table):
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            layer, position, x = problem(ratio, size, dtype)
            position = position if with_table else None
            want, fused = layer(x, position), layer.fuse()
            assert (fused(x, position) - want).abs().max() <= tolerance * want.abs().max()
            again = fused.fuse()
            assert (again(x, position) - want).abs().max() <= tolerance * want.abs().max()
            assert torch.equal(layer(x, position), want)  # it is left as it was

    def test_has_fewer_layers(self):
        layer, *_ = problem(4)
        fused = layer.fuse()
        assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
        assert fused.scale == 1
        assert len([m for m in fused.modules() if isinstance(m, nn.Conv2d)]) == 5

    def test_a_norm_in_training_is_refused(self):
        layer, *_ = problem(4)
        with pytest.raises(ValueError, match="BatchNorm in evaluation mode"):
            layer.train().fuse()

    def test_state_dict_of_the_fused_loads(self):
        layer, position, x = problem(4)
        fused = layer.fuse()
        other = randomised(OSRA(16, 2, 4).double()).fuse()
        other.load_state_dict(fused.state_dict())
        assert torch.equal(other(x, position), fused(x, position))


class _Net(nn.Module):
    """A layer with its table; what goes in is an image."""

    def __init__(self, layer: OSRA, position: PositionTable) -> None:
        super().__init__()
        self.layer, self.position = layer, position

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.position)


class TestTracing:
    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compiles_without_graph_break(self, dynamic):
        net = _Net(*problem(4, dtype=torch.float32)[:2])
        torch._dynamo.reset()
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        for size in ((12, 10), (9, 8), (21, 30)):
            x = torch.randn(2, 16, *size)
            got, want = compiled(x), net(x)
            assert_close(got, want)
            parameters = list(net.parameters())
            grads = [torch.autograd.grad(y.square().sum(), parameters) for y in (got, want)]
            for a, b in zip(*grads, strict=True):
                assert_close(a, b, atol=1e-4, rtol=1e-4)
            with torch.no_grad():
                assert_close(compiled(x), want)

    def test_fx(self):
        net = _Net(*problem(4)[:2])
        traced = torch.fx.symbolic_trace(net.layer, concrete_args={"position": None})
        x = torch.randn(2, 16, 12, 10, dtype=torch.float64)
        assert_close(traced(x), net.layer(x))

    @pytest.mark.parametrize("fused", [False, True])
    def test_onnx_of_any_size(self, fused, tmp_path):
        layer, position, x = problem(4, dtype=torch.float32)
        net = _Net(layer.fuse() if fused else layer, position)
        path = deploy.export_onnx(net, x, tmp_path / "osra.onnx", dynamic_size=True)
        for size in ((12, 10), (9, 8), (23, 5)):
            check = deploy.check_onnx(net, torch.randn(3, 16, *size), path)
            assert check.passed, check
            assert check.scale > 0.1

    def test_reference_ops(self):
        layer, position, x = problem(4)
        want = layer(x, position)
        with reference_ops():
            assert_close(layer(x, position), want)

    def test_copies_and_pickles(self, tmp_path):
        net = _Net(*problem(4)[:2])
        x = torch.randn(1, 16, 12, 10, dtype=torch.float64)
        with torch.no_grad():
            want = net(x)
            torch.save(net, tmp_path / "net.pt")
            for other in (
                copy.deepcopy(net),
                torch.load(tmp_path / "net.pt", weights_only=False),
            ):
                assert torch.equal(other(x), want)
                other.position.weight.add_(1).mul_(2)
                assert not torch.equal(other(x), want)
            assert torch.equal(net(x), want)
