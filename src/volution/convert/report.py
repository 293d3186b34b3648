"""What a conversion did or would do, as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

__all__ = ["Conversion", "Row", "describe", "ranges"]


@dataclass(frozen=True)
class Row:
    """What became of one layer.

    Args:
        path: Its name in the network; all of them, if it has several.
        before: What stood there.
        after: What stands there now; None if it was kept.
        params_before: Learned numbers of it.
        params_after: Learned numbers of what stands there now.
        carried: Whether what stands there now computes the same, from the same weights.
        why: Why it was kept; empty if it was not.
    """

    path: str
    before: str
    after: str | None
    params_before: int
    params_after: int
    carried: bool = False
    why: str = ""


@dataclass(frozen=True)
class Conversion:
    """What a conversion did or, with ``dry_run``, would do; printed as a table.

    Args:
        rows: The layers that were chosen, in the order of the network.
        params_before: Learned numbers of the network.
        params_after: The same, converted.
        macs_before: Multiplications for an image, counted as
            :func:`volution.analysis.network_cost` does; None if they could not be counted.
        macs_after: The same, converted.
        image_size: Height and width of the image they are counted for.
        uncounted: Why they could not be counted; empty if they were.

    Example:
        >>> import volution
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1))
        >>> found = volution.convert(
        ...     net, "*", volution.ops.Involution2d, dry_run=True, quiet=True, image_size=32
        ... )
        >>> [(row.path, row.after, row.why) for row in found.rows]
        [('0', 'proj 1x1, Involution2d 7x7', ''), ('1', None, 'its kernel is 1 by 1: it mixes \
channels, not pixels')]
        >>> found.params_before, found.params_after
        (584, 517)
    """

    rows: tuple[Row, ...]
    params_before: int
    params_after: int
    macs_before: int | None
    macs_after: int | None
    image_size: tuple[int, int]
    uncounted: str = ""

    @property
    def replaced(self) -> tuple[Row, ...]:
        """The rows of the layers that were replaced."""
        return tuple(row for row in self.rows if row.after is not None)

    @property
    def kept(self) -> tuple[Row, ...]:
        """The rows of the layers that were kept."""
        return tuple(row for row in self.rows if row.after is None)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain lists, dicts, numbers and strings."""
        record = asdict(self)
        return record | {"rows": list(record["rows"]), "image_size": list(self.image_size)}

    def table(self) -> Table:
        """Return what was replaced, as a table of rich; layers of a kind share a line."""
        table = _table("replaced", "before", "after", "weights", "parameters")
        table.columns[0].no_wrap = True
        alike: dict[Row, list[str]] = {}
        for row in self.replaced:
            alike.setdefault(replace(row, path=""), []).append(row.path)
        for row, paths in alike.items():
            weights = "carried over" if row.carried else "new"
            change = f"{_short(row.params_before)} to {_short(row.params_after)}"
            table.add_row("\n".join(ranges(paths)), row.before, row.after, weights, change)
        return table

    def table_of_kept(self) -> Table:
        """Return what was kept and why, as a table of rich."""
        table = _table("kept", "because")
        reasons: dict[str, list[str]] = {}
        for row in self.kept:
            reasons.setdefault(row.why, []).append(row.path)
        for why, paths in reasons.items():
            table.add_row(", ".join(ranges(paths)), why)
        return table

    def summary(self) -> str:
        """Return the totals in one or two sentences."""
        height, width = self.image_size
        words = f"{len(self.replaced)} replaced, {len(self.kept)} kept. Parameters "
        words += f"{_short(self.params_before)} to {_short(self.params_after)}; "
        if self.macs_before is None or self.macs_after is None:
            return words + f"multiplications not counted: {self.uncounted}"
        change = f"{_short(self.macs_before)} to {_short(self.macs_after)}"
        return words + f"multiplications for an image of {height} by {width} {change}."

    def print(self, console: Console) -> None:
        """Write table and totals."""
        # Names hold brackets, which are markup to rich.
        for table in (self.table(), self.table_of_kept()):
            if table.row_count:
                console.print(table, markup=False)
        console.print(self.summary(), markup=False, soft_wrap=True)

    def __str__(self) -> str:
        text = io.StringIO()
        self.print(Console(file=text, width=120, highlight=False, color_system=None))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def describe(module: nn.Module) -> str:
    """Return a layer in a few words.

    Example:
        >>> describe(nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4))
        'Conv2d 3x3, 8 to 16, stride 2, 4 groups'
    """
    if isinstance(module, nn.Sequential):
        return ", ".join(
            f"{name} 1x1" if name == "proj" else describe(child)
            for name, child in module.named_children()
        )
    words = type(module).__name__
    size = getattr(module, "kernel_size", None)
    if isinstance(size, int):
        words += f" {size}x{size}"
    if not isinstance(module, nn.Conv2d):
        return words
    words += f" {module.kernel_size[0]}x{module.kernel_size[1]}"
    words += f", {module.in_channels} to {module.out_channels}"
    for value, name in ((module.stride, "stride"), (module.dilation, "dilation")):
        if set(value) != {1}:
            words += f", {name} {' by '.join(map(str, sorted(set(value))))}"
    if module.groups == module.in_channels == module.out_channels:
        return words + ", depthwise"
    return words + (f", {module.groups} groups" if module.groups > 1 else "")


def ranges(paths: Sequence[str]) -> list[str]:
    """Return the paths with those in one line that only a running number tells apart.

    Example:
        >>> ranges(["layer3.1.conv2", "layer3.2.conv2", "layer3.3.conv2", "layer4.1.conv2"])
        ['layer3.1-3.conv2', 'layer4.1.conv2']
    """
    lines: list[list[str]] = []
    for path in paths:
        line = next((line for line in lines if _runs_on(line, path)), None)
        if line is None:
            lines.append([path])
        else:
            line.append(path)
    return [_range(line) for line in lines]


def _runs_on(line: Sequence[str], path: str) -> bool:
    first, last, now = (text.split(".") for text in (line[0], line[-1], path))
    if not len(first) == len(last) == len(now):
        return False
    changed = [index for index, word in enumerate(now) if word != last[index]]
    if len(changed) != 1 or not last[changed[0]].isdigit() or not now[changed[0]].isdigit():
        return False
    # The number that runs is the one that ran before.
    running = [index for index, word in enumerate(first) if word != last[index]]
    return running in ([], changed) and int(now[changed[0]]) == int(last[changed[0]]) + 1


def _range(line: Sequence[str]) -> str:
    pairs = zip(line[0].split("."), line[-1].split("."), strict=True)
    return ".".join(a if a == b else f"{a}-{b}" for a, b in pairs)


def _short(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return str(number)
