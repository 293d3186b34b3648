"""The X-volution layer: its two branches, in place of a convolution, its arguments."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from implementations import CUDA, IMPLEMENTATIONS, force
from torch import nn
from torch.nn import functional as F

from volution.ops import PSSA, DepthwiseConv2d, Involution2d, Xvolution2d
from volution.ops.xvolution.global_attention import GlobalAttention


def lively(layer: nn.Module) -> nn.Module:
    """Fill parameters and statistics: fresh norms and biases would hide mistakes."""
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor)
                tensor.copy_(1 + noise.abs() if name.endswith("running_var") else noise / 2)
    return layer


KINDS = {
    "pssa": {"heads": 2},
    "stride2": {"stride": 2, "heads": 4, "qk_channels": 4},
    "depthwise": {"groups": 8},
    "offsets": {"offsets": [(0, 3), (-2, 0)], "normalize": "softmax"},
    "involution": {"attention": "involution", "stride": 2},
    "sa": {"attention": "sa", "heads": 2, "stride": 2},
    "sa-linear": {"attention": "sa", "normalize": "none"},
    "conv": {"branches": "conv"},
    "attention": {"branches": "attention"},
}
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


class TestBranches:
    def test_both_are_normalised_and_added(self):
        layer = lively(Xvolution2d(6, 8, 5, 2, groups=2, heads=2)).eval()
        x = torch.randn(2, 6, 9, 7)
        conv = F.conv2d(x, layer.conv.weight, layer.conv.bias, 2, 2, groups=2)
        attended = layer.attention(x)
        wanted = layer.conv_norm(conv) + layer.attention_norm(attended)
        torch.testing.assert_close(layer(x), wanted)

    def test_one_alone(self):
        both = lively(Xvolution2d(8, 8)).eval()
        parts = []
        for branches in ("conv", "attention"):
            alone = Xvolution2d(8, 8, branches=branches).eval()
            names = alone.state_dict()
            alone.load_state_dict({name: both.state_dict()[name] for name in names})
            parts.append(alone)
        x = torch.randn(2, 8, 7, 5)
        torch.testing.assert_close(parts[0](x) + parts[1](x), both(x))

    def test_the_window_follows_the_convolution_unless_said(self):
        def window(**options) -> tuple[int, ...]:
            return Xvolution2d(4, 4, 3, dilation=2, **options).attention.offsets

        assert max(window()) == 2
        assert len(window()) == 18
        assert max(window(attention_dilation=1)) == 1
        assert max(window(attention_kernel_size=7)) == 6
        assert window(offsets=[(5, 6)]) == (5, 6)

    @pytest.mark.parametrize(("stride", "channels"), [(1, 8), (2, 8), (1, 12)])
    def test_involution_has_the_parameters_of_its_layer(self, stride, channels):
        layer = lively(Xvolution2d(8, channels, 5, stride, attention="involution")).eval()
        alone = Involution2d(channels, 5, stride).eval()
        generator = layer.attention.kernel_generator.state_dict(prefix="kernel_generator.")
        alone.load_state_dict(generator)
        x = torch.randn(2, 8, 7, 5)
        values = x if channels == 8 else F.conv2d(x, layer.attention.value.weight)
        torch.testing.assert_close(layer.attention(x), alone(values))

    @pytest.mark.parametrize("normalize", ["none", "softmax"])
    def test_global_attention_is_pssa_over_all_offsets(self, normalize):
        h, w = 5, 4
        steps = [(i, j) for i in range(1 - h, h) for j in range(1 - w, w)]
        wide = GlobalAttention(6, 8, 2, heads=2, normalize=normalize, dtype=torch.float64)
        near = PSSA(6, 8, stride=2, heads=2, offsets=steps, normalize=normalize).double()
        near.load_state_dict(wide.state_dict())
        x = torch.randn(2, 6, h, w, dtype=torch.float64)
        torch.testing.assert_close(wide(x), near(x))

    def test_a_factory_makes_any_attention(self):
        seen = []

        def factory(*arguments: int) -> nn.Module:
            seen.append(arguments)
            return nn.AvgPool2d(3, 2, 1)

        layer = Xvolution2d(8, 8, stride=2, attention=factory)
        assert seen == [(8, 8, 2)]
        assert layer(torch.randn(2, 8, 7, 5)).shape == (2, 8, 4, 3)
        assert "attention='own'" in repr(layer)


class TestInPlaceOfAConvolution:
    @pytest.mark.parametrize("options", [{}, {"attention": "involution"}, {"attention": "sa"}])
    @pytest.mark.parametrize(
        "conv",
        [
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 12, 3, 2, padding=1, bias=False),
            nn.Conv2d(8, 8, 5, padding="same", dilation=2, groups=4),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
            nn.Conv2d(8, 4, 1),
            DepthwiseConv2d(8, 7),
        ],
        ids=["plain", "strided", "grouped", "depthwise", "pointwise", "own"],
    )
    @pytest.mark.parametrize("norm", [False, True])
    def test_computes_what_the_convolution_did(self, conv, norm, options):
        conv = lively(copy.deepcopy(conv))
        norm = lively(nn.BatchNorm2d(conv.out_channels, eps=1e-3)).eval() if norm else None
        layer = Xvolution2d.from_conv(conv, norm, **options)
        assert layer.training == conv.training
        x = torch.randn(2, 8, 9, 6)
        wanted = conv(x) if norm is None else norm(conv(x))
        got = layer.eval()(x)
        assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max().clamp(1)
        if options.get("attention") != "sa":
            torch.testing.assert_close(layer.fuse()(x), wanted, rtol=1e-5, atol=1e-5)
        # What was given is neither changed nor shared.
        assert conv.weight.data_ptr() != layer.conv.weight.data_ptr()
        assert norm is None or norm.weight is not layer.conv_norm.weight

    def test_attention_starts_to_learn_at_once(self):
        layer = Xvolution2d.from_conv(nn.Conv2d(8, 8, 3, padding=1))
        layer(torch.randn(4, 8, 7, 5)).square().sum().backward()
        assert layer.attention_norm.weight.grad.abs().max() > 0
        with torch.no_grad():
            layer.attention_norm.weight.add_(0.1)
        layer.zero_grad()
        layer(torch.randn(4, 8, 7, 5)).pow(3).sum().backward()
        assert all(p.grad.abs().max() > 0 for p in layer.attention.parameters())

    @each_kind
    def test_looks_like_the_convolution(self, options):
        groups, stride = options.get("groups", 1), options.get("stride", 1)
        layer = Xvolution2d(8, 8, 3, **{"dilation": 2, **options})
        conv = nn.Conv2d(8, 8, 3, stride, 2, 2, groups)
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        for name in (*names, "groups", "padding_mode"):
            assert getattr(layer, name) == getattr(conv, name), name
        for size in ((9, 6), (8, 7), (1, 1), (2, 5)):
            x = torch.randn(2, 8, *size)
            assert layer(x).shape == conv(x).shape

    @pytest.mark.parametrize(
        ("conv", "error", "message"),
        [
            (nn.Conv2d(8, 8, 3), ValueError, r"padding must be 'same' .* = 1 .*got \(0, 0\)"),
            (nn.Conv2d(8, 8, (3, 5), padding="same"), ValueError, "kernel_size must be the same"),
            (nn.Conv2d(8, 8, 2, 2), ValueError, "kernel_size must be a positive odd integer, got"),
            (nn.Conv2d(8, 8, 3, (1, 2), 1), ValueError, "stride must be the same in both"),
            (
                nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
                ValueError,
                "padding_mode must be 'zeros', got 'reflect'",
            ),
            (nn.Conv1d(8, 8, 3, padding=1), TypeError, r"plain torch\.nn\.Conv2d, got Conv1d"),
            (DepthwiseConv2d(8, 3, activation="gelu"), TypeError, "got DepthwiseConv2d"),
        ],
    )
    def test_what_it_cannot_stand_in_for(self, conv, error, message):
        with pytest.raises(error, match=message):
            Xvolution2d.from_conv(conv)

    def test_what_it_cannot_absorb(self):
        with pytest.raises(ValueError, match=r"norm must be a BatchNorm2d .* got GroupNorm"):
            Xvolution2d.from_conv(nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 8))
        with pytest.raises(ValueError, match="branches must be 'both' or 'conv' to carry"):
            Xvolution2d.from_conv(nn.Conv2d(8, 8, 1), branches="attention")


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kernel_size": 4}, "kernel_size must be a positive odd integer, got 4"),
            ({"kernel_size": (3, 5)}, r"kernel_size must be the same in both .*, got \(3, 5\)"),
            ({"stride": 0}, "stride must be an integer of at least 1, got 0"),
            ({"padding": 0}, r"padding must be 'same' or .* = 1 on every side, got 0"),
            ({"padding": (1, 2)}, r"padding must be 'same' or .*, got \(1, 2\)"),
            ({"padding": "valid"}, "padding must be 'same' or .*, got 'valid'"),
            ({"padding": "full"}, "padding must be 'same' or .*, got 'full'"),
            ({"padding_mode": "circular"}, "padding_mode must be 'zeros', got 'circular'"),
            ({"groups": 3}, "groups must divide in_channels, got groups=3 and in_channels=8"),
            ({"heads": 3}, "heads must divide out_channels, got heads=3 and out_channels=8"),
            ({"heads": 4, "qk_channels": 6}, "heads must divide qk_channels, got heads=4"),
            ({"attention": "ssa"}, "attention must be one of 'pssa', 'involution', 'sa', got"),
            ({"branches": "all"}, "branches must be one of 'both', 'conv', 'attention', got"),
            ({"normalize": "l1"}, "normalize must be one of 'none', 'softmax', got 'l1'"),
            ({"offsets": []}, "offsets must have at least one pair"),
            ({"offsets": [(0, 0), (0, 0)]}, "offsets must all differ"),
            ({"offsets": [(0, 1)], "attention_kernel_size": 3}, "attention_kernel_size or offsets"),
            ({"attention": "sa", "offsets": [(0, 1)]}, "offsets must be left out with .*'sa'"),
            ({"attention": "involution", "scale": 2.0}, "scale must be left out with"),
            ({"attention": "involution", "normalize": "softmax"}, "normalize must be left out"),
            ({"attention": "involution", "qk_channels": 8}, "qk_channels must be left out with"),
        ],
    )
    def test_message_names_the_culprit(self, options, message):
        with pytest.raises(ValueError, match=message):
            Xvolution2d(8, 8, **options)

    def test_padding_may_be_said_as_a_number(self):
        for padding in ("same", 4, (4, 4)):
            assert Xvolution2d(8, 8, 5, padding=padding, dilation=2).padding == (4, 4)
        assert Xvolution2d(8, 8, 1, padding="valid").padding == (0, 0)


class TestLayer:
    def test_state_dict_keys_are_frozen(self):
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        assert list(Xvolution2d(8, 8).state_dict()) == [
            *("conv.weight", "conv.bias"),
            *(f"conv_norm.{name}" for name in norm),
            *(f"attention.{name}.{kind}" for name in ("query", "key") for kind in norm[:2]),
            "attention.value.weight",
            *(f"attention_norm.{name}" for name in norm),
        ]

    def test_repr_shows_hyperparameters(self):
        text = repr(Xvolution2d(8, 16, 5, 2, heads=4))
        assert "8, 16, kernel_size=5, stride=2, dilation=1, groups=1, attention='pssa'" in text
        assert "heads=4, taps=25, scale=0.5, normalize='none'" in text

    @each_kind
    def test_device_dtype_and_copies(self, options):
        layer = Xvolution2d(8, 8, **options, device="meta", dtype=torch.float64)
        floating = [t for t in layer.state_dict().values() if t.is_floating_point()]
        assert {(t.device.type, t.dtype) for t in floating} == {("meta", torch.float64)}
        layer = lively(Xvolution2d(8, 8, **options)).eval()
        x = torch.randn(2, 8, 7, 5)
        for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(again(x), layer(x))

    @each_kind
    def test_channels_last(self, options):
        layer, x = lively(Xvolution2d(8, 8, **options)).eval(), torch.randn(2, 8, 7, 5)
        wanted = layer(x)
        got = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)

    # One compilation is enough: its graph calls the same kernels. The last is the GPU's, if any.
    @pytest.mark.parametrize(
        ("where", "compiled"),
        [*((where, False) for where in IMPLEMENTATIONS), (("cpu", "native"), True)]
        + [(("cuda", "triton"), True)] * CUDA,
        ids=lambda value: "-".join(value) if isinstance(value, tuple) else f"compiled={value}",
    )
    def test_trains_under_autocast(self, where, compiled):
        device, implementation = where
        torch._dynamo.reset()
        layer = lively(Xvolution2d(8, 8, 3, 2, heads=2)).to(device)
        run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
        x = torch.randn(3, 8, 5, 7, device=device, requires_grad=True)
        with force(implementation):
            with torch.autocast(device, torch.bfloat16):
                y = run(x)
            y.float().square().mean().backward()
        for name, parameter in [("input", x), *layer.named_parameters()]:
            # The norm takes the bias away again.
            assert parameter.grad.isfinite().all(), name
            assert name == "conv.bias" or parameter.grad.abs().max() > 0, name

    @each_kind
    def test_exports_with_any_size(self, options):
        layer = lively(Xvolution2d(8, 8, **options)).eval().double()
        sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        x = torch.randn(2, 8, 9, 12, dtype=torch.float64)
        program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,))
        for shape in ((2, 8, 9, 12), (3, 8, 31, 5), (5, 8, 8, 7)):
            x = torch.randn(shape, dtype=torch.float64)
            torch.testing.assert_close(program.module()(x), layer(x))

    @pytest.mark.parametrize("kind", ["pssa", "stride2", "involution"])
    def test_symbolic_trace(self, kind):
        layer = nn.Sequential(lively(Xvolution2d(8, 8, **KINDS[kind])).eval())
        x = torch.randn(2, 8, 5, 6)
        assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))

    @pytest.mark.parametrize(("branches", "scale"), [("both", 0.1), ("attention", 1.0)])
    def test_attention_starts_small_beside_a_convolution(self, branches, scale):
        layer = Xvolution2d(8, 8, branches=branches)
        assert torch.equal(layer.attention_norm.weight, torch.full((8,), scale))
        x = torch.randn(16, 8, 9, 9)
        with torch.no_grad():
            share = layer.attention_norm(layer.attention(x)).std().item()
        assert share == pytest.approx(scale, rel=0.01)

    def test_stacked_layers_stay_bounded_in_training(self):
        """Each is of third degree; unnormalised, four of them would be of degree 81."""
        layers = nn.Sequential(*(Xvolution2d(16, 16, heads=2) for _ in range(4)))
        x = torch.randn(8, 16, 9, 9)

        plain = nn.Sequential(*(PSSA(16, heads=2, bias=False) for _ in range(4))).double()
        with torch.no_grad():
            got, wanted = layers(10 * x).std().item(), layers(x).std().item()
            grown = (plain(10 * x.double()).std() / plain(x.double()).std()).item()
        assert got == pytest.approx(wanted, rel=0.05)
        assert grown == pytest.approx(1e81, rel=1e-6)
