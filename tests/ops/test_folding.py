"""Folding norms and scales into the layers beside them: exact, and refused where it is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from volution.ops import DepthwiseConv2d
from volution.ops._shared.folding import (
    batch_norm_affine,
    fold_batch_norm,
    fold_batch_norm_before,
    with_affine_input,
    with_affine_output,
)

CONVOLUTIONS = {
    "dense": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "no-bias": lambda: nn.Conv2d(6, 8, 3, 2, bias=False),
    "grouped": lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2),
    "depthwise": lambda: DepthwiseConv2d(6, 5, dilation=2),
    "pointwise": lambda: nn.Conv2d(6, 8, 1),
}
every_convolution = pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)


def lively(module: nn.Module) -> nn.Module:
    """Evaluation mode, float64, and nothing at its initial value."""
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor)
                tensor.copy_(0.5 + noise.abs() if key.endswith("running_var") else noise)
    return module.double().eval()


def norm(channels: int, **kwargs: object) -> nn.BatchNorm2d:
    return lively(nn.BatchNorm2d(channels, **kwargs))


def drawn(channels: int = 6) -> Tensor:
    return torch.randn(2, channels, 9, 7, dtype=torch.float64)


class TestAfter:
    @every_convolution
    @pytest.mark.parametrize("affine", [True, False])
    def test_equals_both(self, make, affine):
        conv = lively(make())
        bn = norm(conv.out_channels, affine=affine)
        folded, rest = fold_batch_norm(conv, bn)
        assert type(rest) is nn.Identity
        assert type(folded) is type(conv)
        x = drawn()
        assert_close(folded(x), bn(conv(x)), rtol=1e-12, atol=1e-12)

    def test_the_arguments_stay_as_they_are(self):
        conv, bn = lively(nn.Conv2d(6, 8, 3)), norm(8)
        before = [t.clone() for m in (conv, bn) for t in m.state_dict().values()]
        folded, _ = fold_batch_norm(conv, bn)
        folded.weight.data.zero_()
        after = [t for m in (conv, bn) for t in m.state_dict().values()]
        assert all(map(torch.equal, before, after))

    def test_synchronised_norms_fold_too(self):
        bn = norm(8)
        other = nn.SyncBatchNorm(8).double().eval()
        other.load_state_dict(bn.state_dict())
        conv = lively(nn.Conv2d(6, 8, 3))
        folded, _ = fold_batch_norm(conv, other)
        assert_close(folded(x := drawn()), bn(conv(x)), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        "bn",
        [
            nn.GroupNorm(2, 6),
            nn.BatchNorm2d(6, track_running_stats=False),
            type("WithActivation", (nn.BatchNorm2d,), {})(6),
            nn.Identity(),
        ],
        ids=["group", "no-statistics", "subclass", "none"],
    )
    def test_what_is_no_fixed_affine_stays(self, bn):
        conv = nn.Conv2d(6, 6, 3)
        assert fold_batch_norm(conv, bn) == (conv, bn)

    def test_an_activation_between_stays(self):
        conv, bn = DepthwiseConv2d(6, 3, activation="gelu"), norm(6)
        assert fold_batch_norm(conv, bn) == (conv, bn)

    def test_training_mode(self):
        with pytest.raises(ValueError, match=r"training mode.* call eval\(\) first"):
            fold_batch_norm(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
        with pytest.raises(ValueError, match="without"):
            batch_norm_affine(nn.BatchNorm2d(6, track_running_stats=False).eval())


class TestBefore:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(("side", "groups"), [(1, 1), (1, 2), (3, 1), (3, 3), (1, 6)])
    def test_equals_both(self, side, groups, bias):
        conv = lively(nn.Conv2d(6, 12, side, groups=groups, bias=bias))
        bn = norm(6)
        rest, folded = fold_batch_norm_before(bn, conv)
        assert type(rest) is nn.Identity
        x = drawn()
        assert_close(folded(x), conv(bn(x)), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("padding", [1, "same", (0, 1)])
    def test_a_padded_convolution_stays(self, padding):
        conv, bn = nn.Conv2d(6, 6, 3, padding=padding), norm(6)
        assert fold_batch_norm_before(bn, conv) == (bn, conv)
        with pytest.raises(ValueError, match="convolution without padding, got Conv2d"):
            with_affine_input(conv, *batch_norm_affine(bn))

    def test_a_scale_alone_passes_through_padding(self):
        conv = lively(nn.Conv2d(6, 4, 3, padding=1))
        scale, x = torch.randn(6, dtype=torch.float64), drawn()
        got = with_affine_input(conv, scale)(x)
        assert_close(got, conv(x * scale[:, None, None]), rtol=1e-12, atol=1e-12)

    def test_what_is_no_convolution_stays(self):
        bn, pool = norm(6), nn.MaxPool2d(2)
        assert fold_batch_norm_before(bn, pool) == (bn, pool)


class TestParameters:
    @pytest.mark.parametrize("bias", [True, False])
    def test_linear_layers(self, bias):
        layer = lively(nn.Linear(6, 8, bias=bias))
        x = torch.randn(3, 6, dtype=torch.float64)
        scale, shift = torch.randn(2, 8, dtype=torch.float64)
        assert_close(with_affine_output(layer, scale, shift)(x), layer(x) * scale + shift)
        assert_close(with_affine_output(layer, scale)(x), layer(x) * scale)
        scale, shift = torch.randn(2, 6, dtype=torch.float64)
        assert_close(with_affine_input(layer, scale, shift)(x), layer(x * scale + shift))

    def test_nothing_to_add_makes_no_bias(self):
        scale = torch.ones(8)
        assert with_affine_output(nn.Conv2d(6, 8, 1, bias=False), scale).bias is None
        assert with_affine_input(nn.Linear(8, 2, bias=False), scale).bias is None

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_rounds_once(self, dtype):
        conv, bn = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        lively(conv).to(dtype), lively(bn).to(dtype)
        folded, _ = fold_batch_norm(conv, bn)
        exact, _ = fold_batch_norm(conv.double(), bn.double())
        for name, parameter in folded.named_parameters():
            assert parameter.dtype == dtype
            assert torch.equal(parameter, exact.get_parameter(name).to(dtype)), name

    def test_keeps_memory_format_device_and_what_is_frozen(self):
        conv = nn.Conv2d(6, 8, 3, bias=False).to(memory_format=torch.channels_last)
        conv.requires_grad_(False)
        folded, _ = fold_batch_norm(conv, nn.BatchNorm2d(8).eval())
        assert folded.weight.is_contiguous(memory_format=torch.channels_last)
        assert not any(parameter.requires_grad for parameter in folded.parameters())
        meta, _ = fold_batch_norm(conv.to("meta"), nn.BatchNorm2d(8, device="meta").eval())
        assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}
