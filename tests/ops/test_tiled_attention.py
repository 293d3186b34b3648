"""Attention in tiles: the same as with all logits at once, derivatives, tracing, memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from implementations import CUDA, DEVICES
from op_contract import JIT_IS_DEPRECATED
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from volution.ops import PositionTable, reference_ops
from volution.ops.dmixer import attention, tiles
from volution.ops.dmixer.attention import biased_attention

SCALE = 0.3


@dataclass(frozen=True)
class Case:
    id: str
    n: int = 2
    heads: int = 3
    queries: int = 30
    keys: int = 9
    width: int = 4
    table: tuple[int, int] | None = (6, 5)  # the map it was made for

    def operands(self, dtype=torch.float64, device="cpu") -> list[Tensor]:
        """Queries, keys and values, with heads beside each other as layers have them."""
        counts = (self.queries, self.keys, self.keys)
        shapes = [(self.n, count, self.heads, self.width) for count in counts]
        made = [torch.randn(s, dtype=torch.float64).to(device, dtype) for s in shapes]
        return [x.transpose(1, 2).requires_grad_() for x in made]

    def position(self, dtype=torch.float64, device="cpu") -> PositionTable | None:
        if self.table is None:
            return None
        position = PositionTable(self.heads, self.table, 2, dtype=torch.float64)
        nn.init.normal_(position.weight)
        return position.to(device, dtype)


CASES = [  # a table of 6 by 5 has 30 queries and 9 keys
    Case("no-table", table=None),
    Case("own-size"),
    Case("more-queries", queries=77),
    Case("fewer-queries", queries=11),
    Case("more-keys", keys=20),
    Case("both-resized", queries=63, keys=16),
    Case("one-head-one-image", 1, 1, 45, 12),
    Case("one-query-one-key", 2, 2, 1, 1),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
RESIZED = CASES[5]


@pytest.fixture
def tiny_tiles(monkeypatch):
    """Cut even small problems into many tiles, of 16 queries and of one image at a time."""
    for budgets in (tiles._FORWARD, tiles._BACKWARD):
        monkeypatch.setitem(budgets, "cpu", 1)
    monkeypatch.setattr(tiles, "_ELSEWHERE", 1)
    monkeypatch.setattr(attention, "SMALL", 1)


def by_definition(q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None) -> Tensor:
    """With all logits in memory, and the table resized whole by PyTorch."""
    logits = SCALE * torch.einsum("nhle,nhme->nhlm", q, k)
    if weight is not None:
        size = logits.shape[2:]
        resized = F.interpolate(weight, size, mode="bicubic", align_corners=False)
        logits = logits + (weight if weight.shape[2:] == size else resized)
    return torch.einsum("nhlm,nhme->nhle", logits.softmax(-1), v)


def with_gradients(function, operands, position, cotangent=None):
    weight = None if position is None else position.weight
    leaves = [*operands, *([] if weight is None else [weight])]
    out = function(*operands)
    cotangent = torch.ones_like(out) if cotangent is None else cotangent
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def compare(case: Case, device="cpu", **tolerance) -> None:
    operands, position = case.operands(device=device), case.position(device=device)
    weight = None if position is None else position.weight
    cotangent = torch.randn_like(operands[0])
    got = with_gradients(
        lambda *x: biased_attention(*x, position, scale=SCALE), operands, position, cotangent
    )
    want = with_gradients(lambda *x: by_definition(*x, weight), operands, position, cotangent)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, **tolerance)


class TestArithmetic:
    @each_case
    @pytest.mark.parametrize("device", DEVICES)
    def test_follows_the_definition(self, case, device):
        compare(case, device, atol=1e-11, rtol=1e-11)

    @each_case
    @pytest.mark.parametrize("device", DEVICES)
    def test_tiles_follow_the_definition(self, case, device, tiny_tiles):
        compare(case, device, atol=1e-11, rtol=1e-11)

    @each_case
    def test_where_nothing_is_recorded(self, case, tiny_tiles):
        operands, position = case.operands(), case.position()
        wanted = by_definition(*operands, None if position is None else position.weight)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                got = biased_attention(*operands, position, scale=SCALE)
            assert_close(got, wanted.detach(), atol=1e-11, rtol=1e-11)
            assert got.transpose(1, 2).is_contiguous()

    @pytest.mark.parametrize("step", [1, 5, 16, 40, 63])
    def test_any_tile(self, step, monkeypatch):
        """Tiles of one query, of some that do not divide, of all."""

        def cut(q, *_):
            count = q.shape[2]
            return (tiles.Tile(a, min(count, a + step), count) for a in range(0, count, step))

        monkeypatch.setattr(tiles, "tiles", cut)
        monkeypatch.setattr(attention, "SMALL", 1)
        compare(RESIZED, atol=1e-11, rtol=1e-11)

    @pytest.mark.parametrize("layout", ["contiguous", "channels-first", "sliced"])
    def test_layouts(self, layout, tiny_tiles):
        position = RESIZED.position()
        operands = RESIZED.operands()
        want = biased_attention(*operands, position, scale=SCALE)
        moved = {
            "contiguous": lambda x: x.detach().contiguous(),
            "channels-first": lambda x: x.detach().mT.contiguous().mT,
            "sliced": lambda x: torch.cat([x.detach(), x * torch.nan], 3)[..., : x.shape[3]],
        }[layout]
        got = biased_attention(*map(moved, operands), position, scale=SCALE)
        assert_close(got, want)
        assert got.stride() == want.stride()

    def test_empty_batch(self):
        operands = [x[:0].detach().requires_grad_() for x in RESIZED.operands()]
        position = RESIZED.position()
        got = biased_attention(*operands, position, scale=SCALE)
        assert got.shape == operands[0].shape
        got.sum().backward()
        assert not position.weight.grad.any()
        with torch.no_grad():
            assert biased_attention(*operands, position, scale=SCALE).shape == got.shape

    def test_some_need_no_gradient(self, tiny_tiles):
        position = RESIZED.position()
        wanted = with_gradients(
            lambda *x: biased_attention(*x, position, scale=SCALE), RESIZED.operands(), position
        )
        for chosen in itertools.product([False, True], repeat=4):
            operands = [x.detach() for x in RESIZED.operands()]
            leaves = [*operands, position.weight]
            for x, needed in zip(leaves, chosen, strict=True):
                x.requires_grad_(needed)
            out = biased_attention(*operands, position, scale=SCALE)
            assert out.requires_grad == any(chosen)
            if any(chosen):
                out.sum().backward()
            assert [x.grad is not None for x in leaves] == list(chosen)
            position.weight.grad = None
        assert len(wanted) == 5


class TestDerivatives:
    @pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.id)
    @pytest.mark.filterwarnings(JIT_IS_DEPRECATED)
    @pytest.mark.parametrize("tiled", [False, True])
    def test_of_first_and_second_order(self, case, tiled, request):
        if tiled:
            request.getfixturevalue("tiny_tiles")
        operands, position = case.operands(), case.position()
        leaves = [*operands, *([] if position is None else [position.weight])]

        def function(q, k, v, *_):
            return biased_attention(q, k, v, position, scale=SCALE)

        assert gradcheck(function, leaves, fast_mode=True)
        assert gradgradcheck(function, leaves, fast_mode=True)

    @pytest.mark.filterwarnings(JIT_IS_DEPRECATED)
    def test_forward_mode(self, tiny_tiles):
        rows = torch.randn(3, 30, 9, dtype=torch.float64, requires_grad=True)
        operands = [*CASES[2].operands(), rows]

        def function(*x):
            return attention._ATTENTION(*x, SCALE)

        checks = {"check_forward_ad": True, "check_batched_forward_grad": False}
        assert gradcheck(function, operands, fast_mode=True, **checks)
        tangents = [torch.randn_like(x) for x in operands]
        plain = [x.detach() for x in operands]
        _, got = torch.func.jvp(function, tuple(plain), tuple(tangents))
        _, want = torch.func.jvp(
            lambda *x: attention._plain_attention(*x, SCALE), tuple(plain), tuple(tangents)
        )
        assert_close(got, want)

    def test_forward_over_reverse(self, tiny_tiles):
        operands, position = RESIZED.operands(), RESIZED.position()
        weight = position.weight.detach()
        q, *rest = (x.detach() for x in operands)

        def energy(q):
            return biased_attention(q, *rest, position, scale=SCALE).square().sum()

        def wanted(q):
            return by_definition(q, *rest, weight).square().sum()

        tangent = torch.randn_like(q)
        got = torch.func.jvp(torch.func.grad(energy), (q,), (tangent,))
        want = torch.func.jvp(torch.func.grad(wanted), (q,), (tangent,))
        assert_close(got, want)
        # Dual numbers through a backward pass that is not recorded.
        with torch.autograd.forward_ad.dual_level():
            leaf = q.clone().requires_grad_()
            dual = torch.autograd.forward_ad.make_dual(leaf, tangent)
            (grad,) = torch.autograd.grad(energy(dual), leaf)
            unpacked = torch.autograd.forward_ad.unpack_dual(grad)
        assert_close(unpacked.primal, want[0])
        assert_close(unpacked.tangent, want[1])

    def test_vmap(self, tiny_tiles):
        operands, position = RESIZED.operands(), RESIZED.position()
        many = [torch.stack([x, 2 * x]) for x in operands]

        def attend(q, k, v):
            return biased_attention(q, k, v, position, scale=SCALE)

        got = torch.vmap(attend, (0, None, 0))(many[0], operands[1], many[2])
        want = [attend(many[0][i], operands[1], many[2][i]) for i in range(2)]
        assert_close(got, torch.stack(want))
        leaves = [x.detach().requires_grad_() for x in operands]
        out = attend(*leaves)
        cotangents = torch.randn(2, *out.shape, dtype=out.dtype)
        got = torch.autograd.grad(out, leaves, cotangents, is_grads_batched=True, retain_graph=True)
        want = [torch.autograd.grad(out, leaves, c, retain_graph=True) for c in cotangents]
        for a, *b in zip(got, *want, strict=True):
            assert_close(a, torch.stack(b))

    def test_gradients_as_an_operator_have_no_derivative_of_their_own(self):
        q, k, v = RESIZED.operands()
        with pytest.raises(NotImplementedError, match="create_graph=True"):
            attention._GRADS(q, q, k, v, None, SCALE).sum().backward()


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("device", DEVICES)
    def test_close_to_float64(self, dtype, device, tiny_tiles):
        operands = RESIZED.operands(dtype, device)
        position = RESIZED.position(dtype, device)
        got = with_gradients(
            lambda *x: biased_attention(*x, position, scale=SCALE), operands, position
        )
        exact = [x.detach().double().requires_grad_() for x in operands]
        weight = position.weight.detach().double().requires_grad_()
        position.double()
        want = with_gradients(lambda *x: by_definition(*x, position.weight), exact, position)
        eps = torch.finfo(dtype).eps
        assert weight.shape == position.weight.shape
        for a, b in zip(got, want, strict=True):
            assert a.dtype == dtype
            # The table and the logits' summands are rounded before the softmax.
            assert (a.double() - b).abs().max() < 16 * eps * b.abs().max()

    @pytest.mark.parametrize("device", DEVICES)
    def test_autocast(self, device, tiny_tiles):
        operands = RESIZED.operands(torch.float32, device)
        position = RESIZED.position(torch.float32, device)
        with torch.autocast(device, torch.bfloat16):
            got = biased_attention(*operands, position, scale=SCALE)
        assert got.dtype == torch.bfloat16
        got.float().sum().backward()
        for x in (*operands, position.weight):
            assert x.grad.dtype == torch.float32
            assert x.grad.isfinite().all()
        want = biased_attention(*operands, position, scale=SCALE)
        assert (got - want).abs().max() < 0.02 * want.abs().max()


class TestArguments:
    @pytest.mark.parametrize("recorded", [False, True])
    def test_message_names_the_culprit(self, recorded):
        q, k, v = RESIZED.operands()
        position = RESIZED.position()
        with torch.set_grad_enabled(recorded):
            with pytest.raises(ValueError, match="each of the 3 heads, got one for 2 heads"):
                biased_attention(q, k, v, PositionTable(2, 5), scale=1.0)
            with pytest.raises(ValueError, match=r"v must have shape .* \(2, 3, 16, 4\), got"):
                biased_attention(q, k, v[:, :, :5], position, scale=1.0)
            with pytest.raises(TypeError, match="k must have the dtype of q"):
                biased_attention(q, k.float(), v, position, scale=1.0)


class TestDropout:
    @pytest.mark.parametrize("case", [CASES[0], CASES[1], RESIZED], ids=lambda case: case.id)
    def test_backward_leaves_out_what_forward_did(self, case, tiny_tiles):
        operands, position = case.operands(), case.position()
        leaves = [*operands, *([] if position is None else [position.weight])]

        def function(q, k, v, *_):
            torch.manual_seed(3)
            return biased_attention(q, k, v, position, scale=SCALE, dropout=0.4)

        assert gradcheck(function, leaves, fast_mode=True)

    def test_tiles_draw_what_is_expected(self, tiny_tiles):
        operands, position = RESIZED.operands(), RESIZED.position()
        with torch.no_grad():
            want = biased_attention(*operands, position, scale=SCALE)
            drawn = [
                biased_attention(*operands, position, scale=SCALE, dropout=0.3) for _ in range(400)
            ]
        assert not torch.equal(drawn[0], drawn[1])
        mean = torch.stack(drawn).mean(0)
        assert (mean - want).abs().max() < 0.15 * want.abs().max()


class TestTracing:
    # opcheck looks at the gradients of its own copies.
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("case", [CASES[0], CASES[1], RESIZED], ids=lambda case: case.id)
    def test_registration(self, case):
        operands, position = case.operands(), case.position()
        rows = None if position is None else position.key_side(case.keys).detach()
        if rows is not None:
            rows.requires_grad_()
        torch.library.opcheck(attention._ATTENTION, (*operands, rows, SCALE))
        plain = [x.detach() for x in (operands[0], *operands)]
        rows = None if rows is None else rows.detach()
        torch.library.opcheck(attention._GRADS, (*plain, rows, SCALE))

    @pytest.mark.parametrize("dynamic", [False, True])
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compiles_without_graph_break(self, dynamic, backend, monkeypatch):
        monkeypatch.setattr(attention, "SMALL", 1)
        position = RESIZED.position()

        def function(q, k, v):
            return 2 * biased_attention(q.sin(), k, v, position, scale=SCALE)

        torch._dynamo.reset()
        compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)
        sizes = (RESIZED, Case("other", 3, queries=41, keys=12)) if dynamic else (RESIZED, CASES[1])
        for number, case in enumerate(sizes):
            operands = case.operands()
            with torch._dynamo.config.patch(error_on_recompile=dynamic and number > 0):
                got = with_gradients(compiled, operands, position)
            for a, b in zip(got, with_gradients(function, operands, position), strict=True):
                assert_close(a, b)
        with torch.no_grad():
            assert_close(compiled(*operands), function(*operands))

    def test_exports_to_plain_aten_of_any_size(self):
        position = RESIZED.position()

        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                self.position = position

            def forward(self, q, kv):
                return biased_attention(q, kv, kv, self.position, scale=SCALE)

        q, k, _ = (x.detach() for x in RESIZED.operands())
        queries, keys = (torch.export.Dim(name, min=2) for name in ("queries", "keys"))
        program = torch.export.export(Module(), (q, k), dynamic_shapes=({2: queries}, {2: keys}))
        called = {n.target for n in program.graph.nodes if n.op == "call_function"}
        assert not [target for target in called if "volution" in str(target)]
        for case in (RESIZED, CASES[1], CASES[3]):
            q, k, _ = (x.detach() for x in case.operands())
            assert_close(program.module()(q, k), Module()(q, k), atol=1e-11, rtol=1e-11)

    def test_reference_ops(self):
        operands, position = RESIZED.operands(), RESIZED.position()
        want = biased_attention(*operands, position, scale=SCALE)
        with reference_ops():
            assert_close(biased_attention(*operands, position, scale=SCALE), want)


def largest_allocation(function) -> int:
    """Return the bytes of the largest block of memory that a function asks for."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    asked = [event.nbytes() for event in _memory_events(seen)]
    assert asked
    return max(asked)


def _memory_events(seen):
    """What the allocator was asked for, kernels inside operators included."""
    from torch._C._profiler import _EventType

    waiting = list(seen.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation and event.extra_fields.alloc_size > 0:
            yield _Asked(event.extra_fields.alloc_size)


@dataclass(frozen=True)
class _Asked:
    size: int

    def nbytes(self) -> int:
        return self.size


class TestMemory:
    """The first stage of a network at 800 by 1344 pixels, half of it: 100 by 168 queries."""

    case = Case("detection", 1, 1, 100 * 168, 13 * 21, 24, (56, 56))

    def problem(self):
        operands = self.case.operands(torch.float32)
        position = PositionTable(1, 56, 8)
        nn.init.normal_(position.weight)
        return operands, position

    def limit(self) -> int:
        """A third of the logits; gradients of the table's key side are smaller than that."""
        return self.case.queries * self.case.keys * 4 // 3

    @pytest.mark.parametrize("mode", ["training", "no_grad", "inference"])
    def test_no_tensor_of_queries_times_keys(self, mode):
        operands, position = self.problem()

        def run():
            contexts = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
            with contexts.get(mode, torch.enable_grad)():
                out = biased_attention(*operands, position, scale=SCALE)
            if mode == "training":
                out.square().sum().backward()

        assert largest_allocation(run) < self.limit()

    def test_the_measure_finds_one(self):
        operands, position = self.problem()
        rows = position.key_side(self.case.keys)
        found = largest_allocation(lambda: attention._plain_attention(*operands, rows, SCALE))
        assert found >= self.case.queries * self.case.keys * 4


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_memory_on_a_gpu():
    case = Case("detection", 1, 2, 200 * 336, 25 * 42, 24, (56, 56))
    operands = case.operands(torch.float32, "cuda")
    position = PositionTable(2, 56, 8, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    biased_attention(*operands, position, scale=SCALE).sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < case.heads * case.queries * case.keys * 4
