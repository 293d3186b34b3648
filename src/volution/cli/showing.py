"""Commands that look and measure: list, info, bench, quickstart."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["bench", "info", "list_", "quickstart"]


def list_(pattern: str = "*", *, json: bool = False) -> int:
    """List the networks: size, family, and the accuracy their authors report.

    Args:
        pattern: Wildcards that the names match.
        json: Write JSON.
    """
    from volution.report.terminal import show_models

    return show_models(pattern, as_json=json)


def info(name: str | None = None, *, image_size: int | None = None, json: bool = False) -> int:
    """Show versions, machine, and which kernel every operator gets here; or what a network costs.

    Args:
        name: A network, to show its parameters, multiplications, stages and input instead.
        image_size: Side of the image to count for; the network's own if not given.
        json: Write JSON.
    """
    from volution.report.terminal import show_environment, show_network

    if name is not None:
        return show_network(name, image_size, as_json=json)
    if image_size is not None:
        raise ValueError("image_size goes with a network: volution info NAME --image_size 384")
    return show_environment(as_json=json)


def bench(
    what: Literal["ops", "models"] = "ops",
    *,
    out: Path | None = None,
    quick: bool = False,
    only: str = "",
    json: bool = False,
) -> int:
    """Measure speed against the plain formulations, behind a correctness gate.

    Args:
        what: Operators or whole networks.
        out: JSON file to write.
        quick: A rough look, with small images and without compiled forms.
        only: Run the cases whose name contains this, such as 'van_b2' or 'dw7x7 d3*56'.
        json: Write JSON instead of a table.
    """
    from volution import bench as benchmark

    return benchmark.run(what, out=out, quick=quick, only=only, as_json=json)


def quickstart(out: Path = Path("runs/quickstart"), epochs: int = 15) -> int:
    """Train, evaluate, export and picture a small RedNet, in under three minutes.

    Args:
        out: Folder for the results; those of an earlier quickstart are replaced.
        epochs: Passes over the training images.
    """
    from volution.report import quickstart as run

    return run(out, epochs)
