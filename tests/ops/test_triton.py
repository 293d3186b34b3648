"""What the Triton launchers decide before a kernel runs, and that a GPU's compiler takes it.

Their results are under the contract of the operators.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from implementations import CUDA, force

from volution.ops import depthwise_conv2d
from volution.ops._shared import tiles
from volution.ops._shared.depthwise import reference as depthwise
from volution.ops._shared.depthwise import triton_plan
from volution.ops._shared.neighbourhood import reference

DEVICE = "cuda" if CUDA else "cpu"


class TestTiles:
    def test_reach_counts_the_image_and_not_the_batch(self):
        image = torch.empty(2, 3, 4, 5)
        assert tiles.reach(image) == 59
        assert tiles.reach(image.expand(2, 3, 4, 5)) == 59
        assert tiles.reach(torch.empty(1, 1, 1, 1).expand(2, 9, 9, 9)) == 0
        huge = torch.empty(4, 2**10, 2**11, 2**10, device="meta")
        assert tiles.reach(huge) == 2**31 - 1
        assert not tiles.needs_64_bits(image, None, huge)
        assert tiles.needs_64_bits(image, torch.empty(1, 2**10, 2**11, 2**10 + 1, device="meta"))

    @pytest.mark.parametrize(("size", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
    def test_power_of_2(self, size, power):
        assert tiles.power_of_2(size) == power


class TestNeighbourhood:
    """Gather, scatter, correlate."""

    @pytest.fixture
    def plan(self):
        pytest.importorskip("triton")
        from volution.ops._shared.neighbourhood import triton_plan

        return triton_plan

    @pytest.mark.parametrize("stride", [1, 2])
    def test_images_beyond_32_bits_use_wide_offsets(self, plan, monkeypatch, stride):
        """The wide path on a small image; a real one would need 8 GiB."""
        monkeypatch.setattr(tiles, "INT32_LIMIT", 0)
        side = -(-5 // stride)
        x, k = torch.randn(2, 3, 5, 5).double(), torch.randn(2, 1, 9, side, side).double()
        offsets = (-1, -1, -1, 0, -1, 1, 0, -1, 0, 0, 0, 1, 1, -1, 1, 0, 1, 1)
        w = torch.randn(2, 3, side, side).double()
        wanted = [
            reference.gather(x, k, offsets, stride),
            reference.scatter(w, k, offsets, (5, 5), stride),
            reference.correlate(w, x, offsets, 1, stride),
        ]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        x, k, w = x.to(device), k.to(device), w.to(device)
        with force("triton"):
            got = [
                torch.ops.volution.gather(x, k, offsets, stride),
                torch.ops.volution.scatter(w, k, offsets, (5, 5), stride),
                torch.ops.volution.correlate(w, x, offsets, 1, stride),
            ]
        torch.testing.assert_close([t.cpu() for t in got], wanted)

    @pytest.mark.parametrize("fast", [True, False])
    @pytest.mark.parametrize("width", [1, 3, 16, 20, 64, 300])
    @pytest.mark.parametrize("size", [(1, 1), (7, 7), (1, 500), (56, 56)])
    def test_tiles_are_powers_of_two_and_fit_registers(self, plan, size, width, fast):
        tile = plan.tile(8, width, *size, fast)
        assert all(side & (side - 1) == 0 for side in tile)
        rows, columns, groups, channels = tile
        assert 1 <= rows * columns * groups * channels <= 2048

    def test_windows_are_recognised(self, plan):
        from volution.ops import window_offsets

        for size in (1, 3, 7, 15):
            assert plan._window(window_offsets(size)) == (size, 1)
        assert plan._window(window_offsets(3, 5)) == (3, 5)
        assert plan._window((0, 1)) == (0, 0)
        assert plan._window((0, 0, 0, 1)) == (0, 0)
        # A mirrored window is one with a negative step.
        assert plan._window(tuple(-step for step in window_offsets(3))) == (3, -1)
        assert plan._window(window_offsets(17)) == (0, 0)


class TestDepthwise:
    """The depthwise convolution and its adjoints."""

    def problem(self):
        """Return the arguments of the three operators, of which nothing is square or shared."""
        x, y = torch.randn(2, 5, 7, 6).double(), torch.randn(2, 5, 4, 3).double()
        k, b, g = torch.randn(2, 5, 3, 3).double(), torch.randn(2, 5).double(), y[:, :3] + 1
        return {
            "depthwise_conv2d": (x, k, b, g, 2, 2, 0.3, True),
            "depthwise_conv2d_input": (y, k, (7, 6), 2, 2),
            "depthwise_conv2d_weight": (y, x, 2, 3, 2, 2),
        }

    def run(self, name, args):
        """Run a dispatcher's operator on Triton, with every tensor on the device it needs."""
        args = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in args]
        with force("triton"):
            return getattr(torch.ops.volution, name)(*args).cpu()

    def test_images_beyond_32_bits_use_wide_offsets(self, monkeypatch):
        """The wide path on a small image; a real one would need 8 GiB."""
        wide = []

        def needs_64_bits(*tensors):
            wide.append(tensors)
            return True

        monkeypatch.setattr(triton_plan, "needs_64_bits", needs_64_bits)
        for name, args in self.problem().items():
            wanted = getattr(depthwise, name)(*args)
            torch.testing.assert_close(self.run(name, args), wanted)
        assert len(wide) == 3

    @pytest.mark.parametrize(
        "name", [f"depthwise_conv2d{end}" for end in ("", "_input", "_weight")]
    )
    def test_steps_aside_where_the_rule_says_so(self, name, monkeypatch):
        """No rule has been measured; whatever it will be, the launchers follow it."""
        pytest.importorskip("triton")
        from volution.ops._shared.depthwise import triton_kernels

        seen = []
        monkeypatch.setattr(triton_kernels, "_launch", lambda *args: seen.append("triton"))
        args = self.problem()[name]
        self.run(name, args)
        assert seen == ["triton"]
        monkeypatch.setattr(triton_plan, "framework_is_faster", lambda *args: True)
        torch.testing.assert_close(self.run(name, args), getattr(depthwise, name)(*args))
        assert seen == ["triton"]

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("programs", [1, 16])
    def test_weight_is_summed_in_any_number_of_parts(self, programs, batch, layout, monkeypatch):
        """Few programs walk over many pixels each; many write many partial sums."""
        monkeypatch.setattr(triton_plan, "_PROGRAMS", programs)
        x, y = (torch.randn(3, 40, 13, 17).double().to(memory_format=layout) for _ in range(2))
        args = (y, x, batch, 3, 1, 2)
        plan = triton_plan.WeightPlan.make(y, x, *args[2:])
        assert plan.constants["STEPS"] > 1
        assert (plan.chunks > 1) == (programs > batch * 6)
        wanted = depthwise.depthwise_conv2d_weight(*args)
        torch.testing.assert_close(self.run("depthwise_conv2d_weight", args), wanted)

    @pytest.mark.parametrize("name", ["stride", "dilation"])
    def test_enormous_steps_are_those_of_the_image(self, name):
        """Beyond the image all are alike; without that row numbers would leave 32 bits."""
        x, weight = torch.randn(1, 2, 3, 4, device=DEVICE), torch.randn(2, 1, 5, 5, device=DEVICE)
        with force("triton"):
            got = depthwise_conv2d(x, weight, **{name: 2**40})
        wanted = depthwise_conv2d(x.cpu().double(), weight.cpu().double(), **{name: 9})
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-5, atol=1e-5)

    def test_residues_name_the_taps_that_reach_a_pixel(self):
        for stride, dilation, side in itertools.product(range(1, 9), range(1, 9), (1, 3, 5, 11)):
            plan = triton_plan.residues(stride, dilation)
            for residue in range(stride):
                wanted = [
                    u for u in range(side) if (residue - (u - side // 2) * dilation) % stride == 0
                ]
                first = side
                if residue % plan["COMMON"] == 0:
                    first = side // 2 + residue // plan["COMMON"] * plan["INVERSE"]
                    first %= plan["PERIOD"]
                assert list(range(first, side, plan["PERIOD"])) == wanted

    @pytest.mark.parametrize("fast", [True, False])
    @pytest.mark.parametrize("channels", [1, 3, 16, 20, 64, 300])
    @pytest.mark.parametrize("size", [(1, 1), (7, 7), (1, 500), (500, 1), (56, 56)])
    def test_tiles_are_powers_of_two_and_fit_registers(self, size, channels, fast):
        sides = triton_plan.tile(channels, *size, fast)
        assert all(side >= 1 and side & (side - 1) == 0 for side in sides)
        rows, columns, width = sides
        assert rows * columns * width <= 2048
        assert rows < 2 * size[0]
        assert columns < 2 * size[1]
        assert width < 2 * channels

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize(("channels", "size"), [(1, 1), (5, 7), (64, 56), (300, 14)])
    def test_parts_of_the_weight_cover_every_pixel_once(self, channels, size, batch, layout):
        x = torch.empty(2, channels, size, size, device="meta").to(memory_format=layout)
        plan = triton_plan.WeightPlan.make(x, x, batch, 7, 1, 1)
        pixels = 2 // batch * size**2
        length = plan.constants["STEPS"] * plan.constants["BP"]
        assert (plan.chunks - 1) * length < pixels <= plan.chunks * length
        values = plan.constants["BV"] * plan.constants["BP"] * plan.constants["BC"]
        assert values <= 4096
        assert values & (values - 1) == 0


def test_a_gpus_compiler_takes_every_kernel(tmp_path):
    """The interpreter runs much that the compiler refuses; the compiler needs no GPU."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    names = ("gather", "scatter", "correlate", "conv", "transpose", "weight")
    assert {line.split()[0] for line in done.stdout.splitlines()} == {f"_{n}_kernel" for n in names}
