"""The position table: resizing as PyTorch resizes images, what is kept between calls, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volution.ops import PositionTable
from volution.ops.dmixer import position as module
from volution.ops.dmixer.bicubic import bicubic_band, bicubic_matrix, bicubic_taps, cached_matrix

# Entries of a side before and after; the last are the keys at the size of detection.
SIDES = [
    (1, 1),
    (1, 5),
    (2, 7),
    (3, 2),
    (5, 5),
    (16, 9),
    (16, 33),
    (49, 54),
    (49, 1050),
    (256, 120),
]
each_side = pytest.mark.parametrize("sides", SIDES, ids=lambda s: f"{s[0]}to{s[1]}")
CPU = torch.device("cpu")


def table(heads: int = 2, size: tuple[int, int] = (6, 5), sr_ratio: int = 2) -> PositionTable:
    """A table of random numbers, in float64."""
    made = PositionTable(heads, size, sr_ratio, dtype=torch.float64)
    nn.init.normal_(made.weight)
    return made


def by_interpolation(weight: Tensor, queries: int, keys: int) -> Tensor:
    return F.interpolate(weight, (queries, keys), mode="bicubic", align_corners=False)


class TestResizing:
    @each_side
    def test_matrix_is_what_interpolation_does(self, sides):
        size, out = sides
        unit = torch.eye(size, dtype=torch.float64)[None, None]
        want = F.interpolate(unit, (out, size), mode="bicubic", align_corners=False)[0, 0]
        # The other side keeps its size, so each column is one entry's share.
        got = bicubic_matrix(out, size, torch.float64, CPU)
        assert_close(got, want, atol=1e-12, rtol=0)

    @pytest.mark.parametrize("queries", [1, 12, 30, 77])
    @pytest.mark.parametrize("keys", [1, 4, 9, 35])
    def test_whole_table(self, queries, keys):
        position = table()
        got = position(queries, keys)
        assert_close(got, by_interpolation(position.weight, queries, keys), atol=1e-12, rtol=0)
        rows = position.key_side(keys)
        matrix = bicubic_matrix(queries, 30, torch.float64, CPU)
        assert_close((matrix @ rows)[None], got, atol=1e-12, rtol=0)

    @each_side
    @pytest.mark.parametrize("step", [1, 7, 64])
    def test_bands_are_the_matrix(self, sides, step):
        size, out = sides
        whole = bicubic_matrix(out, size, torch.float64, CPU)
        for first in range(0, out, step):
            last = min(out, first + step)
            start, part = bicubic_band(first, last, out, size, torch.float64, CPU)
            wanted = torch.zeros(last - first, size, dtype=torch.float64)
            wanted[:, start : start + part.shape[1]] = part
            assert_close(wanted, whole[first:last], atol=0, rtol=0)
            assert part.shape[1] <= (last - first) * size / out + 8

    def test_own_size_is_left_as_it_is(self):
        index, weight = bicubic_taps(49, 49, CPU)
        assert torch.equal(weight, torch.tensor([[0.0, 1, 0, 0]]).double().expand(49, 4))
        assert torch.equal(index[:, 1], torch.arange(49))
        position = table()
        assert torch.equal(position(30, 9), position.weight)
        assert position.key_side(9).data_ptr() == position.weight.data_ptr()

    def test_positions_have_all_their_digits(self):
        """At 3136 rows PyTorch's float32 is off by 3e-4 of the largest entry."""
        position = table(1, (56, 56), 8)
        rows = position.float().key_side(60)
        want = by_interpolation(position.weight.double(), 3136, 60)
        assert (rows.double() - want[0]).abs().max() < 5e-7 * want.abs().max()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_tables_round_once(self, dtype):
        position = table().to(dtype)
        want = by_interpolation(position.weight.double(), 30, 20)[0]
        for got in (position.key_side(20), position(30, 20)[0]):
            assert got.dtype == dtype
            bound = 0.51 * torch.finfo(dtype).eps * want.abs() + 1e-5
            assert bool(((got.double() - want).abs() <= bound).all())

    def test_autocast_leaves_it_in_float32(self):
        position = table().float()
        plain = position.key_side(20)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(position.key_side(20), plain)
            with torch.no_grad():
                assert torch.equal(position.key_side(20), plain)

    def test_gradients(self):
        position = table()
        cotangent = torch.randn(2, 30, 20, dtype=torch.float64)
        position.key_side(20).backward(cotangent)
        leaf = position.weight.detach().clone().requires_grad_()
        by_interpolation(leaf, 30, 20)[0].backward(cotangent)
        assert_close(position.weight.grad, leaf.grad, atol=1e-12, rtol=0)


class TestKept:
    """The side of the keys is resized once for each size, until the table changes."""

    @pytest.fixture
    def counted(self, monkeypatch):
        resize, calls = module._resize_keys, []

        def count(*args):
            calls.append(args[1])
            return resize(*args)

        monkeypatch.setattr(module, "_resize_keys", count)
        return calls

    def check(self, position: PositionTable, keys: int = 20) -> None:
        with torch.no_grad():
            got, fresh = position.key_side(keys), copy.deepcopy(position)
            assert_close(got, fresh.key_side(keys), atol=0, rtol=0)

    def test_once_for_each_size_and_dtype(self, counted):
        position = table()
        with torch.no_grad():
            for keys in (20, 33, 20, 33):
                position.key_side(keys)
            position.key_side(20, torch.float32)
            position.key_side(20, torch.float32)
        assert counted == [20, 33, 20]

    def test_changes_are_noticed(self):
        position = table()
        self.check(position)
        with torch.no_grad():
            position.weight.mul_(2)
        self.check(position)
        position.load_state_dict(table().state_dict())
        self.check(position)
        position.load_state_dict(table().state_dict(), assign=True)
        self.check(position)
        position.weight.data = torch.randn(1, 2, 30, 9, dtype=torch.float64)
        self.check(position)
        self.check(position.float())
        self.check(position.bfloat16())
        self.check(position.double())
        optimizer = torch.optim.SGD(position.parameters(), lr=0.1)
        position.key_side(20).square().sum().backward()
        optimizer.step()
        self.check(position)

    def test_not_where_gradients_are_recorded(self, counted):
        position = table()
        for _ in range(2):
            position.key_side(20).sum().backward()
        assert counted == [20, 20]
        assert position.weight.grad.any()

    def test_not_inside_transforms(self):
        position = table()
        with torch.no_grad():
            kept = position.key_side(20)

            def scaled(factor: Tensor) -> Tensor:
                weights = {"weight": position.weight * factor}
                with _method(position, weights):
                    return position.key_side(20)

            got = torch.vmap(scaled)(torch.tensor([1.0, 2.0]).double())
        assert_close(got, torch.stack([kept, 2 * kept]))

    def test_inference_mode_leaves_nothing_behind_that_training_cannot_use(self):
        cached_matrix.cache_clear()
        position = table()
        with torch.inference_mode():
            position.key_side(20)
            made_inside = table()
            first = made_inside.key_side(20)
            made_inside.weight.mul_(2)
            assert_close(made_inside.key_side(20), 2 * first)
        position.key_side(20).sum().backward()
        with torch.no_grad():
            rows = position.key_side(20)
        scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
        (rows * scale).square().sum().backward()

    def test_few_sizes_and_no_longer_than_the_table(self):
        position = table()
        with torch.no_grad():
            for keys in range(10, 25):
                position.key_side(keys)
        assert len(module._KEPT[position.weight]) == module._SIZES
        before = len(module._KEPT)
        del position
        assert len(module._KEPT) == before - 1


def _method(position: PositionTable, weights: dict[str, Tensor]):
    """Return a context in which the module has other parameters."""
    from torch.nn.utils.stateless import _reparametrize_module

    return _reparametrize_module(position, weights)


class TestModule:
    def test_is_zero_at_first_and_has_the_authors_shape(self):
        position = PositionTable(4, (7, 5), 2)
        assert position.weight.shape == (1, 4, 35, 12)
        assert not position.weight.any()
        assert PositionTable(1, 56, 8).weight.shape == (1, 1, 3136, 49)

    def test_state_dict_keys_are_frozen(self):
        assert set(table().state_dict()) == {"weight"}

    def test_repr_shows_hyperparameters(self):
        assert repr(table()) == "PositionTable(num_heads=2, size=(6, 5), sr_ratio=2)"

    @pytest.mark.parametrize("strict", [True, False])
    def test_tables_of_other_sizes_are_refused(self, strict):
        stored = {"position.weight": torch.zeros(1, 2, 49, 9)}
        net = nn.ModuleDict({"position": table()})
        message = r"stored position.weight must have shape .* \(1, 2, 30, 9\), got \(1, 2, 49, 9\)"
        with pytest.raises(ValueError, match=message):
            net.load_state_dict(stored, strict=strict)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"num_heads": 0}, "num_heads must be an integer of at least 1, got 0"),
            ({"size": 0}, "height must be an integer of at least 1, got 0"),
            ({"size": (3, -1)}, "width must be an integer of at least 1, got -1"),
            ({"sr_ratio": 0}, "sr_ratio must be an integer of at least 1, got 0"),
        ],
    )
    def test_bad_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            PositionTable(**{"num_heads": 2, "size": 8, **kwargs})
