"""The global filter: two forms of one function, sizes, dtypes, what is kept between calls."""

from __future__ import annotations

import copy

import pytest
import torch
from implementations import CUDA
from op_contract import JIT_IS_DEPRECATED
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from volution.ops import GlobalLocalFilter, global_filter2d, reference_ops
from volution.ops.gnconv import global_filter, reference
from volution.ops.gnconv.dft import cached_matrices, dft_matrices, filter_by_products

SIZES = [(7, 7), (14, 14), (15, 17), (25, 42), (8, 5), (1, 1), (1, 2), (2, 1), (3, 2)]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
FORMS = ["products", "fft"]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Force one of the two forms."""
    monkeypatch.setattr(global_filter, "uses_products", lambda *_: request.param == "products")
    return request.param


def draw(size: tuple[int, int], channels: int = 4) -> tuple[Tensor, Tensor]:
    """A map, and a weight of its size that no real map has: imaginary parts where none belong."""
    weight = torch.randn(channels, size[0], size[1] // 2 + 1, 2, dtype=torch.float64)
    return torch.randn(2, channels, *size, dtype=torch.float64), weight


def by_fft(x: Tensor, weight: Tensor) -> Tensor:
    return reference.global_filter2d(x, torch.view_as_complex(weight))


class TestForms:
    @each_size
    def test_products_equal_the_fft(self, size):
        x, weight = draw(size)
        matrices = dft_matrices(*size, torch.float64, x.device)
        real, imag = weight.permute(3, 1, 2, 0)
        got = filter_by_products(x, real, imag, matrices)
        assert_close(got, by_fft(x, weight), atol=1e-12, rtol=1e-12)

    @each_size
    def test_gradients_are_equal_too(self, size):
        results = []
        x, weight = draw(size)
        cotangent = torch.randn_like(x)
        for products in (False, True):
            with reference_ops() if products else torch.enable_grad():
                leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
                y = global_filter2d(*leaves) if products else by_fft(*leaves)
            results.append([y, *torch.autograd.grad(y, leaves, cotangent)])
        for got, want in zip(*results, strict=True):
            assert_close(got, want, atol=1e-12, rtol=1e-12)

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_precision_in_float32(self, form, layout):
        for size in SIZES[:4]:
            x, weight = draw(size, 8)
            want = by_fft(x, weight)
            got = global_filter2d(x.float().contiguous(memory_format=layout), weight.float())
            assert got.dtype == torch.float32
            assert (got - want).abs().max() < 1e-6 * want.abs().max()

    def test_choice_by_size(self):
        choose = global_filter.uses_products
        assert choose(14, 14, "cpu")
        assert choose(25, 42, "cpu")
        assert not choose(64, 64, "cpu")
        assert not choose(14, 14, "cuda")
        assert not choose(14, 14, "meta")
        with reference_ops():
            assert choose(640, 640, "cuda")

    def test_no_turn_of_the_waves_is_lost(self):
        """The sines of half turns are zeros, not 1e-16: they drop what a real map cannot have."""
        matrices = dft_matrices(6, 8, torch.float64, torch.device("cpu"))
        assert not matrices.columns[5].any()  # imaginary part of column 0
        assert not matrices.columns_back[:, [5, 9]].any()  # and of the fastest wave
        assert matrices.columns[4].tolist() == [1, -1] * 4

    def test_circular_convolution(self, form):
        """A fact known from elsewhere: a spectrum of one wave shifts the map in a circle."""
        x, _ = draw((6, 7))
        rows, columns = torch.arange(6).double(), torch.arange(4).double()
        turns = rows[:, None] / 6 + 2 * columns / 7
        shift = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
        weight = torch.view_as_real(shift).expand(4, -1, -1, -1)
        assert_close(global_filter2d(x, weight), x.roll((1, 2), (2, 3)))

    @pytest.mark.filterwarnings(JIT_IS_DEPRECATED)
    def test_derivatives(self, form):
        leaves = [x.requires_grad_() for x in draw((3, 4), 2)]
        assert gradcheck(global_filter2d, leaves, check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(global_filter2d, leaves, fast_mode=True)

    def test_vmap(self, form):
        x, weight = draw((5, 6))
        many = torch.stack([x, 2 * x, -x])
        with torch.no_grad():
            got = torch.vmap(global_filter2d, (0, None))(many, nn.Parameter(weight))
        assert_close(got, torch.stack([global_filter2d(m, weight) for m in many]))


class TestSizesAndTypes:
    def test_resized_weight(self, form):
        x, _ = draw((11, 9))
        weight = torch.randn(4, 8, 5, 2, dtype=torch.float64)
        resized = reference.resize_spectrum(weight, 11, 5)
        assert_close(resized[:, [0, -1]], weight[:, [0, -1]])  # corners are aligned
        assert_close(global_filter2d(x, weight), by_fft(x, resized.contiguous()))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("device", ["cpu", *["cuda"] * CUDA])
    def test_half_inputs_of_any_size(self, form, dtype, device):
        """Half precision has Fourier transforms of powers of two, and those on GPUs alone."""
        for size in ((15, 17), (7, 7), (8, 16)):
            x, weight = (t.to(device, dtype) for t in draw(size))
            got = global_filter2d(x, weight)
            want = global_filter2d(x.double(), weight)
            assert got.dtype == dtype
            # One rounding at the end.
            bound = torch.finfo(dtype).eps * want.abs() + 1e-5 * want.abs().max()
            assert bool(((got - want).abs() <= bound).all())

    @pytest.mark.parametrize("device", ["cpu", *["cuda"] * CUDA])
    def test_autocast_leaves_it_in_float32(self, form, device):
        x, weight = (t.float().to(device) for t in draw((15, 17)))
        with torch.autocast(device, torch.bfloat16):
            got = global_filter2d(x, weight)
        assert_close(got, global_filter2d(x, weight), atol=0, rtol=0)

    def test_empty_batch(self, form):
        x, weight = draw((5, 6))
        assert global_filter2d(x[:0], weight).shape == (0, 4, 5, 6)

    @pytest.mark.parametrize(
        ("x", "weight", "message"),
        [
            ((2, 4, 7), (4, 7, 4, 2), "input must have 4 dimensions"),
            ((2, 4, 7, 7), (4, 7, 4), "complex_weight must have 4 dimensions"),
            ((2, 4, 7, 7), (3, 7, 4, 2), r"with C = 4 channels of input, got \(3, 7, 4, 2\)"),
            ((2, 4, 7, 7), (4, 7, 4, 3), "complex_weight must have shape"),
            ((2, 4, 0, 7), (4, 7, 4, 2), "at least 1 pixel high and wide, got"),
            ((2, 4, 7, 7), (4, 7, 7, 2), r"\(4, 7, 4, 2\) to fit .* 7 by 7 .* \(4, 7, 7, 2\)"),
        ],
    )
    def test_message_names_the_culprit(self, x, weight, message):
        with pytest.raises(ValueError, match=message):
            global_filter2d(torch.ones(x), torch.ones(weight), resize=False)

    def test_integers_and_other_devices(self):
        x, weight = draw((4, 4))
        with pytest.raises(TypeError, match="input must be floating point"):
            global_filter2d(x.int(), weight)
        with pytest.raises(TypeError, match="device of input, cpu, got meta"):
            global_filter2d(x, weight.to("meta"))


class TestKept:
    """Weights are resized once for each size of map, until they change."""

    @pytest.fixture
    def counted(self, monkeypatch):
        prepare, calls = global_filter._prepare, []

        def count(*args):
            calls.append(args[1:3])
            return prepare(*args)

        monkeypatch.setattr(global_filter, "_prepare", count)
        return calls

    def check(self, weight: Tensor, size: tuple[int, int] = (9, 8)) -> None:
        x = torch.randn(1, 4, *size)
        got = global_filter2d(x, weight)
        fresh = weight.detach().clone()
        assert_close(got, global_filter2d(x, fresh), atol=0, rtol=0)

    def test_once_for_each_size(self, counted):
        weight = nn.Parameter(torch.randn(4, 6, 4, 2))
        x, y = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 5, 5)
        with torch.no_grad():
            for image in (x, y, x, y, x):
                global_filter2d(image, weight)
        assert counted == [(9, 5), (5, 3)]

    def test_changes_are_noticed(self):
        weight = nn.Parameter(torch.randn(4, 6, 4, 2))
        with torch.no_grad():
            self.check(weight)
            weight.add_(1)
            self.check(weight)
            weight.data = torch.randn(4, 6, 4, 2)
            self.check(weight)
            weight.data = torch.randn(4, 3, 2, 2)
            self.check(weight)
            module = nn.ParameterList([weight]).double()
            module[0].mul_(2)
            module.float()
            self.check(weight)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        global_filter2d(torch.randn(1, 4, 9, 8), weight).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            self.check(weight)

    def test_not_where_gradients_are_recorded(self, counted):
        weight = nn.Parameter(torch.randn(4, 6, 4, 2))
        for _ in range(2):
            global_filter2d(torch.randn(1, 4, 9, 8), weight).sum().backward()
        assert len(counted) == 2
        assert weight.grad.any()

    def test_inference_mode_leaves_nothing_behind_that_training_cannot_use(self):
        cached_matrices.cache_clear()
        weight = nn.Parameter(torch.randn(4, 6, 4, 2))
        with torch.inference_mode():
            self.check(weight)
        x = torch.randn(1, 4, 9, 8, requires_grad=True)
        global_filter2d(x, weight).square().sum().backward()
        weight.requires_grad_(False)
        global_filter2d(x, weight).square().sum().backward()
        with torch.inference_mode():
            made_inside = nn.Parameter(torch.randn(4, 6, 4, 2), requires_grad=False)
            self.check(made_inside)
            made_inside.add_(1)
            self.check(made_inside)

    def test_few_sizes_and_no_longer_than_the_weight(self):
        weight = nn.Parameter(torch.randn(4, 6, 4, 2))
        with torch.no_grad():
            for side in range(2, 20):
                global_filter2d(torch.randn(1, 4, side, side), weight)
        assert len(global_filter._PREPARED[weight]) == 8
        before = len(global_filter._PREPARED)
        del weight
        assert len(global_filter._PREPARED) == before - 1


class TestLayer:
    def test_scale_is_exact(self):
        layer = GlobalLocalFilter(8, 4, 3).double()
        x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
        assert_close(layer(x, 0.3), 0.3 * layer(x))

    def test_halves_are_interleaved(self):
        """Without norms' effect on order: a dead global half leaves every other channel at 0."""
        layer = GlobalLocalFilter(8, 4, 3)
        with torch.no_grad():
            layer.complex_weight.zero_()
            layer.post_norm.bias.zero_()
        y = layer(torch.randn(1, 8, 4, 4))
        assert_close(y[:, 1::2], y[:, 1:2].expand(-1, 4, -1, -1))
        assert (y[:, 0::2] - y[:, 0:1]).abs().max() > 1e-3

    @pytest.mark.parametrize("assign", [False, True])
    def test_takes_the_stored_size(self, assign):
        stored, layer = GlobalLocalFilter(8, 24, 13), GlobalLocalFilter(8, 14, 8)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        x = torch.randn(1, 8, 9, 7)
        layer(x).sum().backward()
        layer.load_state_dict(copy.deepcopy(stored.state_dict()), assign=assign)
        assert layer.complex_weight.shape == (4, 24, 13, 2)
        assert_close(layer(x), stored(x), atol=0, rtol=0)
        if not assign:
            assert optimizer.param_groups[0]["params"][0] is layer.complex_weight
            optimizer.step()

    def test_other_widths_stay_errors(self):
        with pytest.raises(RuntimeError, match=r"size mismatch for complex_weight"):
            GlobalLocalFilter(8).load_state_dict(GlobalLocalFilter(12).state_dict())

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"dim": 7}, "dim must be even, .* got 7; take 6 or 8"),
            ({"h": 0}, "h must be an integer of at least 1, got 0"),
        ],
    )
    def test_bad_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            GlobalLocalFilter(**{"dim": 8, **kwargs})
