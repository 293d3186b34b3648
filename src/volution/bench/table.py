"""Show results in a terminal."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from volution._support.console import out


def print_json(record: dict[str, Any]) -> None:
    """Write a record to standard output for other programs."""
    out.print_json(json.dumps(record))


def progress(result: dict[str, Any]) -> str:
    """Return one line on a result that has just been measured."""
    words = f"{result['case']} {result['dtype']} {result['direction']}"
    if "slope" in result:
        return f"{words}: slope {result['slope']:.2f}"
    if "ratio" not in result:
        return f"{words}: {_memory(result)}"
    return f"{words}: {_time(result['ours_ms']['median'])} ms, {result['ratio']['median']:.1f}x"


def show(record: dict[str, Any]) -> None:
    """Print one line for each case, and the machine's peaks they are held against."""
    peaks = record["peaks"]
    table = Table(box=None, pad_edge=False)
    titles = ("case", "", "pass", "ours", "peer", "faster", "spread", "eager", "copy", "GF/s")
    for title in titles:
        left = title in ("case", "", "pass")
        table.add_column(title, justify="left" if left else "right", no_wrap=title != "case")
    for result in record["results"]:
        if "ratio" not in result:
            continue
        ratio = result["ratio"]
        share = f"{100 * result['gbps'] / peaks['copy_gbps']:.0f}%" if "gbps" in result else ""
        table.add_row(
            result["case"],
            _SHORT.get(result["dtype"], result["dtype"]),
            _SHORT.get(result["direction"], result["direction"]),
            _time(result["ours_ms"]["median"]),
            _time(result["peer_ms"]["median"]),
            f"{ratio['median']:.1f}x",
            f"{ratio['p10']:.0f}-{ratio['p90']:.0f}",
            _eager(result),
            share,
            f"{result['gflops']:.0f}" if "gflops" in result else "",
        )
    if table.row_count:
        out.print(table)
    for result in record["results"]:
        if "slope" in result:
            first, last = result["sides"][0], result["sides"][-1]
            out.print(
                f"{result['case']}: time grows with pixels to the power {result['slope']:.2f}, "
                f"{first}² to {last}²"
            )
        if "memory_share" in result:
            out.print(f"{result['case']}: peak memory {_memory(result)}")
    out.print(
        "Milliseconds are medians. faster: median of paired runs against the fastest\n"
        "plain form; spread: its 10th to 90th percentile; eager: against the fastest\n"
        "eager form; copy: share of this machine's copy bandwidth, "
        f"{peaks['copy_gbps']:.1f} GB/s.\n"
        f"Matrix products reach {peaks['gemm_gflops_float32']:.0f} GFLOP/s here."
    )
    if record["what"] == "models":
        out.print("eager/compiled: ours eager, peer compiled; ours is compiled when fused.")


_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "forward": "fwd"} | {
    "backward": "bwd"
}


def _eager(result: dict[str, Any]) -> str:
    """How many times faster than the peer's fastest eager form."""
    ratios = [p["ratio"]["median"] for p in result.get("peers", []) if p["peer"].endswith("eager")]
    return f"{ratios[0]:.0f}x" if ratios else ""


def _memory(result: dict[str, Any]) -> str:
    ours, peer = result["ours_peak_mib"], result["peer_peak_mib"]
    return f"{ours:.0f} MiB against {peer:.0f} MiB, {100 * result['memory_share']:.0f} %"


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
