"""The picture of pixel shift self-attention, and the numbers behind it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import volution
from volution.analysis import receptive_fields, shift_picture


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_every_layer_sees_one_window_further(kernel_size):
    size, middle = 19, 9
    for depth, field in enumerate(receptive_fields(3, kernel_size, size), 1):
        reach = depth * (kernel_size // 2)
        wanted = torch.zeros(size, size, dtype=torch.bool)
        wanted[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1] = True
        assert torch.equal(field > 0, wanted)
        assert field.max() == 1


def test_the_same_for_every_call_and_no_noise_is_used_up():
    torch.manual_seed(3)
    first = receptive_fields(2, size=9)
    drawn = torch.randn(1)
    again = receptive_fields(2, size=9)
    assert all(map(torch.equal, first, again))
    torch.manual_seed(3)
    assert torch.equal(torch.randn(1), drawn)
    assert shift_picture() == shift_picture()


def test_works_where_nothing_is_recorded():
    with torch.no_grad():
        assert receptive_fields(1, size=5)[0].count_nonzero() == 9


def test_the_picture_in_the_readme_is_the_one_that_is_drawn():
    folder = Path(volution.ops.xvolution.__file__).parent
    picture = (folder / "shifts.svg").read_bytes()
    assert "shifts.svg" in (folder / "README.md").read_text()
    assert len(picture) <= 60_000
    drawn = shift_picture()
    assert ElementTree.fromstring(drawn.decode()).tag.endswith("svg")
    assert drawn.count(b"<image") == picture.count(b"<image") == 8
    for title in (b"Multiply", b"sees 17 by 17"):
        assert title in picture
        assert title in drawn


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"depth": 1, "size": 0}])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match="depth and size must be at least 1"):
        receptive_fields(**wrong)
