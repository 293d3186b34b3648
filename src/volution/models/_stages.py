"""What the constructors of four-stage networks share: rates, strides, groups of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return a drop-path rate for each block of each stage, rising linearly from 0 to ``rate``.

    >>> drop_path_rates(0.2, (1, 2))
    [[0.0], [0.1, 0.2]]
    """
    # Plain numbers: a tensor would be on the meta device where the network is built there.
    last = max(1, sum(depths) - 1)
    blocks = iter(range(sum(depths)))
    return [[rate * next(blocks) / last for _ in range(depth)] for depth in depths]


def check_output_stride(output_stride: int, allowed: Sequence[int]) -> None:
    """Raise unless a network can be built with this output stride.

    >>> check_output_stride(16, (32,))
    Traceback (most recent call last):
    ValueError: output_stride must be 32, got 16
    """
    if output_stride not in allowed:
        *others, last = map(str, allowed)
        listed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"output_stride must be {listed}, got {output_stride!r}")


def check_stages(**values: Sequence[Any]) -> None:
    """Raise unless each of the arguments has one value for each of four stages.

    >>> check_stages(depths=(3, 3, 5, 2), widths=(32, 64))
    Traceback (most recent call last):
    ValueError: widths must have one number for each of four stages, got (32, 64)
    """
    for name, value in values.items():
        if len(value) != 4:
            raise ValueError(
                f"{name} must have one number for each of four stages, got {tuple(value)}"
            )


def stage_steps(output_stride: int, stages: int = 4) -> list[tuple[int, int, int]]:
    """Return stride, first block's dilation and other blocks' dilation for each stage.

    Stages beyond the output stride trade their stride for dilation, so that a weight meets the
    same neighbours as before. The first block keeps the dilation of the stage before it.

    >>> stage_steps(16)
    [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]
    """
    check_output_stride(output_stride, (8, 16, 32))
    steps, reduction, dilation = [], 4, 1
    for stage in range(stages):
        stride, before = 1 if stage == 0 else 2, dilation
        if reduction * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reduction *= stride
        steps.append((stride, before, dilation))
    return steps


def match_stages(coarse: bool) -> dict[str, Any]:
    """Return timm's group patterns of stages that are ``downsample``, numbered blocks and ``norm``.

    A stage's downsampling joins its first block, its norm the last one. What all its blocks use,
    a table of positions, is as early as the first of them.
    """
    if coarse:
        return {"blocks": r"^stage(\d+)"}
    joins_previous = (99999,)
    return {
        "blocks": [
            (r"^stage(\d+)\.(?:downsample|position)", (0,)),
            (r"^stage(\d+)\.(\d+)", None),
            (r"^stage(\d+)\.norm", joins_previous),
        ]
    }
