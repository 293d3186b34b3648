"""Folding an X-volution: one convolution, at every pixel, and nothing else is left."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from implementations import IMPLEMENTATIONS, force, identify
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from volution.ops import PSSA, FoldedXvolution2d, Xvolution2d, gather, window_offsets
from volution.ops.xvolution import EffectiveKernel

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies
# The same examples on every run: a red test must stay red when somebody looks at it.
settings = hypothesis.settings(deadline=None, derandomize=True, database=None)

FORMATS = [torch.contiguous_format, torch.channels_last]


def lively(layer: nn.Module) -> nn.Module:
    """Fill parameters and statistics: fresh norms and biases would hide mistakes."""
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor)
                tensor.copy_(1 + noise.abs() if name.endswith("running_var") else noise / 2)
    return layer.eval()


class Own(nn.Module):
    """A user's attention: weights that know only the pixel, over one row."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.offsets = (0, -2, 0, 0, 0, 2)
        self.stride = stride
        self.value = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
        self.weigh = nn.Conv2d(in_channels, 3, 1, stride)

    def kernel(self, input: Tensor) -> Tensor:
        return self.weigh(input).unsqueeze(1).sigmoid()

    def forward(self, input: Tensor) -> Tensor:
        return gather(self.value(input), self.kernel(input), self.offsets, stride=self.stride)


@st.composite
def drawn_layers(draw):
    """Draw the arguments of a layer that folds, and a map for it."""
    groups = draw(st.sampled_from([1, 2, 4, "depthwise", "multiplied"]))
    heads = draw(st.sampled_from([1, 2, 4]))
    inner = 4 * draw(st.integers(1, 3))
    outer = inner * draw(st.sampled_from([1, 1, 2]))
    if isinstance(groups, str):
        outer = inner if groups == "depthwise" else 2 * inner
        groups = inner
    kind = draw(st.sampled_from(["pssa", "pssa", "involution", "own"]))
    arguments = {
        "kernel_size": draw(st.sampled_from([1, 3, 5])),
        "stride": draw(st.sampled_from([1, 2, 3])),
        "dilation": draw(st.sampled_from([1, 2])),
        "groups": groups,
        "bias": draw(st.booleans()),
        "branches": draw(st.sampled_from(["both", "both", "attention", "conv"])),
        "attention": kind,
    }
    if kind == "own":
        arguments["attention"] = lambda a, b, stride: Own(a, b, stride, groups)
    else:
        arguments["heads"] = heads
    where = draw(st.sampled_from(["same", "wider", "offsets"]))
    if kind == "pssa":
        arguments["normalize"] = draw(st.sampled_from(["none", "softmax"]))
        arguments["qk_channels"] = draw(st.sampled_from([None, 4]))
        arguments["scale"] = draw(st.sampled_from([None, 0.0, -0.7]))
        if where == "offsets":
            arguments["offsets"] = [(0, 1), (-3, 2), (7, 0)]
    if where == "wider" and kind != "own":
        arguments |= {"attention_kernel_size": 5, "attention_dilation": draw(st.integers(1, 2))}
    size = draw(st.integers(1, 4)) * 2 - 1, draw(st.integers(1, 9))
    return (inner, outer), arguments, (draw(st.integers(1, 2)), inner, *size)


def make(drawn, dtype: torch.dtype = torch.float64) -> tuple[Xvolution2d, Tensor]:
    channels, arguments, shape = drawn
    return lively(Xvolution2d(*channels, **arguments, dtype=dtype)), torch.randn(shape, dtype=dtype)


def applied(found: EffectiveKernel, x: Tensor, centre: tuple[int, int], groups: int) -> Tensor:
    """Apply a kernel to the patch around a pixel of the input, zero outside the image."""
    pairs = zip(found.offsets[0::2], found.offsets[1::2], strict=True)
    patch = x.new_zeros(*x.shape[:2], len(found.offsets) // 2)
    for tap, (row, column) in enumerate(pairs):
        i, j = centre[0] + row, centre[1] + column
        if 0 <= i < x.shape[2] and 0 <= j < x.shape[3]:
            patch[:, :, tap] = x[:, :, i, j]
    out_channels = found.kernel.shape[1]
    patch = patch.unflatten(1, (groups, -1)).repeat_interleave(out_channels // groups, 1)
    return (found.kernel * patch).sum((2, 3)) + found.bias


@pytest.mark.parametrize("where", IMPLEMENTATIONS[:2], ids=identify)
class TestIdentities:
    @settings
    @hypothesis.given(drawn=drawn_layers(), memory_format=st.sampled_from(FORMATS))
    def test_folded_equals_unfolded(self, where, drawn, memory_format):
        torch.manual_seed(0)
        layer, x = make(drawn)
        x = x.to(memory_format=memory_format)
        with force(where[1]), torch.no_grad():
            folded = layer.fuse()
            assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
            got, wanted = folded(x), layer(x)
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
            single = copy.deepcopy(layer).float().fuse()(x.float()).double()
        assert (single - wanted).abs().max() <= 1e-5 * wanted.abs().max()

    @settings
    @hypothesis.given(drawn=drawn_layers(), data=st.data())
    def test_kernel_times_patch_is_the_output(self, where, drawn, data):
        torch.manual_seed(0)
        layer, x = make(drawn)
        with force(where[1]), torch.no_grad():
            y = layer(x)
            pixel = tuple(data.draw(st.integers(0, side - 1)) for side in y.shape[2:])
            found = layer.effective_kernel(x, pixel)
            if isinstance(folded := layer.fuse(), FoldedXvolution2d):
                assert torch.equal(folded.effective_kernel(x, pixel).kernel, found.kernel)
        taps = len(found.offsets) // 2
        inner = layer.in_channels // layer.groups
        assert found.kernel.shape == (len(x), layer.out_channels, inner, taps)
        assert len(set(zip(found.offsets[0::2], found.offsets[1::2], strict=True))) == taps
        centre = tuple(layer.stride[0] * i for i in pixel)
        got = applied(found, x, centre, layer.groups)
        torch.testing.assert_close(got, y[:, :, pixel[0], pixel[1]], rtol=1e-10, atol=1e-10)


KINDS = {
    "dense": {"heads": 2},
    "dense-stride2": {"stride": 2, "heads": 2},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 8, "heads": 2},
    "attention-alone": {"branches": "attention"},
    "involution": {"attention": "involution"},
    "softmax": {"normalize": "softmax", "attention_kernel_size": 5},
}
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


class TestFoldedLayer:
    @each_kind
    def test_saves_and_loads_on_its_own(self, options):
        layer, x = lively(Xvolution2d(8, 8, **options)), torch.randn(2, 8, 7, 5)
        file = io.BytesIO()
        torch.save(layer.fuse().state_dict(), file)
        file.seek(0)
        again = FoldedXvolution2d(8, 8, **options)
        again.load_state_dict(torch.load(file))
        assert torch.equal(again.eval()(x), layer.fuse()(x))

    def test_state_dict_keys_are_frozen(self):
        pair = ("weight", "bias")
        assert list(FoldedXvolution2d(8, 8).state_dict()) == [
            *(f"{name}.{kind}" for name in ("attention.shared", "conv") for kind in pair)
        ]
        assert list(FoldedXvolution2d(8, 8, groups=8).state_dict()) == [
            *("scale", "weight", "bias", "attention.shared.weight", "attention.shared.bias")
        ]

    @each_kind
    def test_a_fresh_one_is_sane(self, options):
        x = torch.randn(2, 8, 7, 5)
        y = FoldedXvolution2d(8, 8, **options)(x)
        assert 0.05 < y.std() < 3

    def test_dense_projections_are_one_convolution(self):
        folded = Xvolution2d(8, 8).eval().fuse()
        assert sum(isinstance(m, nn.Conv2d) for m in folded.modules()) == 2
        assert sum(isinstance(m, nn.Conv2d) for m in folded.attention.modules()) == 1

    @pytest.mark.parametrize("groups", [1, 8])
    def test_no_kernel_per_pixel_and_channel_is_made(self, groups):
        largest = 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal largest
                out = func(*args, **(kwargs or {}))
                largest = max(largest, out.numel() if isinstance(out, Tensor) else 0)
                return out

        folded = Xvolution2d(8, 8, 3, groups=groups).eval().fuse()
        x = torch.randn(1, 8, 16, 16)
        with torch.no_grad(), Watch():
            folded(x)
        # The projections of three maps in one; nine weights for each channel would be 72.
        assert 9 * 256 <= largest <= 24 * 256

    @each_kind
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=identify)
    def test_keeps_dtype_mode_and_gradients(self, options, dtype):
        layer = lively(Xvolution2d(8, 8, **options, dtype=dtype))
        folded = layer.fuse()
        assert not folded.training
        assert {p.dtype for p in folded.parameters()} == {dtype}
        folded(torch.randn(2, 8, 7, 5, dtype=dtype)).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in folded.parameters())
        assert all(p.grad is None for p in layer.parameters())

    def test_the_layer_is_left_as_it_was(self):
        layer = lively(Xvolution2d(8, 8, attention="involution"))
        before = copy.deepcopy(layer.state_dict())
        folded = layer.fuse()
        with torch.no_grad():
            for parameter in folded.parameters():
                parameter.zero_()
        assert all(torch.equal(before[name], x) for name, x in layer.state_dict().items())

    @each_kind
    def test_compiles_and_exports_with_any_size(self, options):
        folded = lively(Xvolution2d(8, 8, **options)).fuse().double()
        sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        x = torch.randn(2, 8, 9, 12, dtype=torch.float64)
        program = torch.export.export(folded, (x,), dynamic_shapes=(sizes,))
        torch._dynamo.reset()
        compiled = torch.compile(folded, backend="aot_eager", fullgraph=True, dynamic=True)
        for shape in ((2, 8, 9, 12), (3, 8, 31, 5), (5, 8, 8, 7)):
            x = torch.randn(shape, dtype=torch.float64)
            torch.testing.assert_close(program.module()(x), folded(x))
            torch.testing.assert_close(compiled(x), folded(x))

    def test_symbolic_trace(self):
        folded = nn.Sequential(lively(Xvolution2d(8, 8, stride=2)).fuse())
        x = torch.randn(2, 8, 5, 6)
        assert torch.equal(torch.fx.symbolic_trace(folded)(x), folded(x))

    def test_autocast(self):
        layer = lively(Xvolution2d(8, 8, groups=8))
        x = torch.randn(2, 8, 7, 5)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            got = layer.fuse()(x)
        assert got.dtype == torch.bfloat16
        wanted = layer(x)
        assert (got.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


class TestRefusals:
    def test_training(self):
        layer = Xvolution2d(8, 8)
        for method in (layer.fuse, layer.fuse_convolution):
            with pytest.raises(ValueError, match=r"needs the layer in evaluation mode.*eval\(\)"):
                method()
        with pytest.raises(ValueError, match=r"effective_kernel\(\) needs the layer in evaluation"):
            layer.effective_kernel(torch.ones(1, 8, 3, 3), (0, 0))
        layer.eval()
        layer.attention_norm.train()
        with pytest.raises(ValueError, match="BatchNorm in evaluation mode"):
            layer.fuse()

    def test_global_attention(self):
        layer = lively(Xvolution2d(8, 8, attention="sa"))
        with pytest.raises(ValueError, match=r"'sa' does not fold: .*no window.*fuse_convolution"):
            layer.fuse()
        x = torch.randn(2, 8, 7, 5)
        remaining = layer.fuse_convolution()
        assert isinstance(remaining.conv_norm, nn.Identity)
        torch.testing.assert_close(remaining(x), layer(x), rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="'sa' does not fold"):
            FoldedXvolution2d(8, 8, attention="sa")

    def test_what_is_no_window(self):
        layer = Xvolution2d(8, 8, attention=lambda a, b, stride: nn.Conv2d(a, b, 1, stride)).eval()
        with pytest.raises(
            ValueError, match=r"folds if it has offsets, value and kernel\(\).*Conv2d"
        ):
            layer.fuse()

    def test_values_of_other_groups(self):
        layer = Xvolution2d(8, 8, groups=2, attention=lambda a, b, _: PSSA(a, b)).eval()
        with pytest.raises(ValueError, match="in 2 groups like the layer's convolution, got Conv"):
            layer.fuse()

    def test_another_norm(self):
        layer = Xvolution2d(8, 8).eval()
        layer.conv_norm = nn.GroupNorm(1, 8)
        with pytest.raises(ValueError, match=r"conv_norm must be a BatchNorm2d .*, got GroupNorm"):
            layer.fuse()

    def test_a_convolution_alone_folds_to_a_plain_one(self):
        layer = lively(Xvolution2d(8, 8, branches="conv"))
        x = torch.randn(2, 8, 7, 5)
        folded = layer.fuse()
        assert type(folded) is nn.Conv2d
        torch.testing.assert_close(folded(x), layer(x), rtol=1e-5, atol=1e-5)
        kernel, bias, offsets = layer.effective_kernel(x, (2, 3))
        assert offsets == window_offsets(3)
        assert torch.equal(kernel[0], folded.weight.flatten(2))
        assert torch.equal(bias, folded.bias)
        with pytest.raises(ValueError, match=r"folds to a plain torch\.nn\.Conv2d"):
            FoldedXvolution2d(8, 8, branches="conv")

    @pytest.mark.parametrize("pixel", [(7, 0), (0, 5), (-1, 0)])
    @pytest.mark.parametrize("branches", ["both", "conv"])
    def test_pixels_outside(self, pixel, branches):
        layer = Xvolution2d(8, 8, branches=branches).eval()
        with pytest.raises(ValueError, match="pixel must be a row and a column of the 7 by 5 out"):
            layer.effective_kernel(torch.ones(1, 8, 7, 5), pixel)


def test_a_grouped_fold_keeps_the_sparsity():
    """The identity of involution is diagonal, whatever the groups."""
    layer = lively(
        Xvolution2d(8, 8, groups=4, attention="involution", heads=2, dtype=torch.float64)
    )
    x = torch.randn(1, 8, 7, 5, dtype=torch.float64)
    kernel = layer.effective_kernel(x, (3, 2)).kernel[0]
    alone = F.conv2d(x, layer.conv.weight, padding=1, groups=4)
    assert alone.shape == layer(x).shape
    gain = layer.conv_norm.weight * (layer.conv_norm.running_var + layer.conv_norm.eps).rsqrt()
    dynamic = kernel - gain[:, None, None] * layer.conv.weight.flatten(2)
    off_diagonal = torch.arange(8)[:, None] % 2 != torch.arange(2)
    assert dynamic[off_diagonal].abs().max() < 1e-12
    assert dynamic[~off_diagonal].abs().min() > 1e-6
