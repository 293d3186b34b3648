"""Show results in a terminal."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from volution._support.console import out


def print_json(record: dict[str, Any]) -> None:
    """Write a record to standard output for other programs."""
    out.print_json(json.dumps(record))


def show(record: dict[str, Any]) -> None:
    """Print one line for each case, and the machine's peaks they are held against."""
    peaks = record["peaks"]
    table = Table(
        caption=f"copy {peaks['copy_gbps']:.1f} GB/s, matrix product "
        f"{peaks['gemm_gflops_float32']:.0f} GFLOP/s. Medians; times faster with its 10th and "
        "90th percentile over pairs.",
        caption_justify="left",
    )
    for title in ("case", "dtype", "", "ours ms", "peer ms", "times faster", "of copy", "GFLOP/s"):
        table.add_column(title, justify="left" if title in ("case", "dtype", "") else "right")
    for result in record["results"]:
        ratio = result["ratio"]
        share = f"{100 * result['gbps'] / peaks['copy_gbps']:.0f} %" if "gbps" in result else ""
        table.add_row(
            result["case"],
            result["dtype"],
            result["direction"],
            f"{result['ours_ms']['median']:.3g}",
            f"{result['peer_ms']['median']:.3g}",
            f"{ratio['median']:.1f} ({ratio['p10']:.1f}-{ratio['p90']:.1f})",
            share,
            f"{result['gflops']:.0f}" if "gflops" in result else "",
        )
    out.print(table)
    for result in record["results"]:
        if "memory_share" in result:
            out.print(
                f"{result['case']}: peak memory {result['ours_peak_mib']:.0f} MiB against "
                f"{result['peer_peak_mib']:.0f} MiB, {100 * result['memory_share']:.0f} %"
            )
