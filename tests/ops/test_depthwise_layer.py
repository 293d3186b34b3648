"""Depthwise convolution: what it says of bad arguments, and the module."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from implementations import CUDA, IMPLEMENTATIONS, force, identify
from torch import nn
from torch.nn import functional as F

from volution.ops import DepthwiseConv2d, depthwise_conv2d, reference_ops

INPUT = torch.ops.volution.depthwise_conv2d_input.default
WEIGHT = torch.ops.volution.depthwise_conv2d_weight.default
each_implementation = pytest.mark.parametrize("where", IMPLEMENTATIONS, ids=identify)


class TestArguments:
    """Every message names the culprit, what was expected and what came."""

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((4, 3, 3), r"weight must have 4 dimensions .* got 3 with shape \(4, 3, 3\)"),
            ((4, 1, 2, 2), r"weight must be square with an odd side, got K by K = 2 by 2"),
            ((4, 1, 3, 5), r"weight must be square with an odd side, got K by K = 3 by 5"),
            (
                (5, 1, 3, 3),
                r"weight must have shape \(C, 1, K, K\) = \(4, 1, 3, 3\), or \(N, C, K, K\) = "
                r"\(2, 4, 3, 3\) for kernels of each image's own, to fit input of shape "
                r"\(2, 4, 5, 5\), got \(B, C, K, K\) = \(5, 1, 3, 3\)",
            ),
            ((3, 4, 3, 3), r"weight must have shape .* got \(B, C, K, K\) = \(3, 4, 3, 3\)"),
            ((4, 4, 3, 3), r"weight must have shape .* got \(B, C, K, K\) = \(4, 4, 3, 3\)"),
        ],
        ids=["rank", "even", "not-square", "channels", "batch", "dense"],
    )
    @pytest.mark.parametrize("plain", [False, True], ids=["dispatched", "plain"])
    def test_message_names_the_weight(self, shape, message, plain):
        x, weight = torch.ones(2, 4, 5, 5), torch.ones(shape)
        with reference_ops() if plain else nullcontext(), pytest.raises(ValueError, match=message):
            depthwise_conv2d(x, weight)

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("bias", (3,), r"bias must have shape \(C,\) = \(4,\) or \(N, C\) = \(2, 4\), got"),
            ("bias", (3, 4), r"bias must have shape .* got \(B, C\) = \(3, 4\)"),
            ("bias", (1, 4, 1), r"bias must have 2 dimensions \(B, C\), got 3 with shape"),
            ("gate", (2, 5, 3, 3), r"gate must have 1 to C = 4 channels, got 5"),
            ("gate", (2, 0, 3, 3), r"gate must have 1 to C = 4 channels, got 0"),
            ("gate", (2, 3, 5, 5), r"gate must have shape .* = \(2, 3, 3, 3\), got \(2, 3, 5, 5\)"),
            ("gate", (1, 3, 3, 3), r"gate must have shape .* = \(2, 3, 3, 3\), got \(1, 3, 3, 3\)"),
            ("gate", (3, 3, 3), r"gate must have 4 dimensions \(N, C_g, h, w\), got 3"),
        ],
    )
    def test_message_names_bias_and_gate(self, name, shape, message):
        x, weight = torch.ones(2, 4, 5, 5), torch.ones(4, 1, 3, 3)
        with pytest.raises(ValueError, match=message):
            depthwise_conv2d(x, weight, stride=2, **{name: torch.ones(shape)})

    def test_message_names_the_input(self):
        weight = torch.ones(4, 1, 3, 3)
        with pytest.raises(ValueError, match=r"input must have 4 dimensions \(N, C, H, W\), got 3"):
            depthwise_conv2d(torch.ones(4, 5, 5), weight)
        with pytest.raises(TypeError, match=r"input must be floating point, got torch.int64"):
            depthwise_conv2d(torch.ones(1, 4, 5, 5, dtype=torch.int64), weight.long())
        message = r"input must be at least 1 pixel high and wide, got \(0, 5\)"
        with pytest.raises(ValueError, match=message):
            depthwise_conv2d(torch.ones(1, 4, 0, 5), weight)

    @pytest.mark.parametrize("name", ["weight", "bias", "gate"])
    def test_message_names_dtype_and_device(self, name):
        x = torch.ones(1, 4, 5, 5)
        rest = {"weight": torch.ones(4, 1, 3, 3), "bias": torch.ones(4), "gate": torch.ones_like(x)}
        message = rf"{name} must have the dtype of input, torch.float32, got torch.float64"
        with pytest.raises(TypeError, match=message):
            depthwise_conv2d(x, **{**rest, name: rest[name].double()})
        with pytest.raises((TypeError, RuntimeError), match=r"device"):
            depthwise_conv2d(x, **{**rest, name: rest[name].to("meta")})

    @pytest.mark.parametrize("name", ["stride", "dilation"])
    @pytest.mark.parametrize("value", [0, -1])
    def test_message_names_the_step(self, name, value):
        message = rf"{name} must be an integer of at least 1, got {value}"
        with pytest.raises(ValueError, match=message):
            depthwise_conv2d(torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3), **{name: value})

    def test_message_names_the_activation(self):
        message = r"activation must be one of None, 'gelu', got 'relu'"
        with pytest.raises(ValueError, match=message):
            depthwise_conv2d(torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3), activation="relu")

    def test_adjoints_check_theirs(self):
        y, weight = torch.ones(1, 4, 3, 3), torch.ones(1, 4, 3, 3)
        with pytest.raises(ValueError, match=r"grad must have shape .* = \(1, 4, 4, 3\), got"):
            INPUT(y, weight, (7, 6), 2, 1)
        with pytest.raises(ValueError, match=r"size must be \(height, width\), got \(7,\)"):
            INPUT(y, weight, (7,), 2, 1)
        with pytest.raises(ValueError, match=r"grad must have shape .* = \(1, 4, 4, 4\), got"):
            WEIGHT(y, torch.ones(1, 4, 7, 7), 1, 3, 2, 1)
        with pytest.raises(ValueError, match=r"kernel_size must be a positive odd integer, got 4"):
            WEIGHT(y, torch.ones(1, 4, 5, 5), 1, 4, 2, 1)
        with pytest.raises(
            ValueError, match=r"batch must be 1 or the batch size of input, 1, got 2"
        ):
            WEIGHT(y, torch.ones(1, 4, 5, 5), 2, 3, 2, 1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"channels": 0}, "channels must be an integer of at least 1, got 0"),
            ({"kernel_size": 4}, "kernel_size must be a positive odd integer, got 4"),
            ({"stride": 0}, "stride must be an integer of at least 1, got 0"),
            ({"dilation": -2}, "dilation must be an integer of at least 1, got -2"),
            ({"activation": "relu"}, "activation must be one of None, 'gelu', got 'relu'"),
        ],
    )
    def test_layer_checks_its_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            DepthwiseConv2d(**{"channels": 8, "kernel_size": 3, **arguments})


class TestLayer:
    @each_implementation
    @pytest.mark.parametrize("activation", [None, "gelu"])
    @pytest.mark.parametrize("bias", [True, False])
    def test_layer_equals_function_and_nn_conv2d(self, where, bias, activation):
        device, implementation = where
        layer = DepthwiseConv2d(12, 5, 2, 3, bias, activation).to(device)
        x = torch.randn(2, 12, 9, 8, device=device)
        plain = nn.Conv2d(12, 12, 5, 2, 6, 3, 12, bias).to(device)
        plain.load_state_dict(layer.state_dict())
        wanted = plain(x)
        wanted = wanted if activation is None else F.gelu(wanted)
        with force(implementation):
            got = layer(x)
            options = {"stride": 2, "dilation": 3, "activation": activation}
            assert torch.equal(got, depthwise_conv2d(x, layer.weight, layer.bias, **options))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        last = layer.to(memory_format=torch.channels_last)
        with force(implementation):
            got = last(x.to(memory_format=torch.channels_last))
        assert got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (2, 3)])
    def test_output_size(self, size, stride):
        y = DepthwiseConv2d(4, 3, stride)(torch.randn(2, 4, *size))
        assert y.shape == (2, 4, *(-(-side // stride) for side in size))

    def test_state_dict_keys_are_frozen(self):
        shapes = {name: tuple(x.shape) for name, x in DepthwiseConv2d(6, 5).state_dict().items()}
        assert shapes == {"weight": (6, 1, 5, 5), "bias": (6,)}
        assert list(DepthwiseConv2d(6, 5, bias=False).state_dict()) == ["weight"]

    def test_repr_shows_hyperparameters(self):
        text = repr(DepthwiseConv2d(32, 5, 2, 3, bias=False, activation="gelu"))
        for part in ("32", "kernel_size=(5, 5)", "stride=(2, 2)", "dilation=(3, 3)", "groups=32"):
            assert part in text
        assert text.endswith("bias=False, activation='gelu')")
        assert "activation" not in repr(DepthwiseConv2d(8, 3))

    def test_device_and_dtype(self):
        layer = DepthwiseConv2d(6, 3, device="meta", dtype=torch.float64)
        assert {(x.device.type, x.dtype) for x in layer.parameters()} == {("meta", torch.float64)}
        y = layer(torch.empty(2, 6, 5, 5, device="meta", dtype=torch.float64))
        assert y.shape == (2, 6, 5, 5)

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
        layer = DepthwiseConv2d(8, 5, 2, 3, activation="gelu").to(device)
        run = torch.compile(layer, fullgraph=True, dynamic=True) if compiled else layer
        x = torch.randn(3, 8, 5, 7, device=device, requires_grad=True)
        with force(implementation):
            with torch.autocast(device, torch.bfloat16):
                y = run(x)
            assert y.dtype == torch.bfloat16
            y.float().square().mean().backward()
        for name, parameter in [("input", x), *layer.named_parameters()]:
            assert parameter.grad.dtype == torch.float32, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
