"""Measurements as tables for people and as JSON for programs, on standard output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from volution._support.console import out
from volution.infer import Evaluation, Robustness, SizeResult, Verification
from volution.report.tables import make_table, print_json

__all__ = ["show_evaluation", "show_verification"]

_WORST = 10


def show_evaluation(
    evaluation: Evaluation,
    classes: tuple[str, ...],
    *,
    corrupted: Robustness | None = None,
    sizes: Sequence[SizeResult] = (),
    as_json: bool,
) -> None:
    """Show how good a classifier is, and where it errs most.

    Args:
        evaluation: What was measured on the images as they are.
        classes: Names of the classes.
        corrupted: What was measured on corrupted images.
        sizes: What was measured at other image sizes.
        as_json: Write JSON.
    """
    if as_json:
        found = _evaluation(evaluation, classes)
        if corrupted is not None:
            found["corruptions"] = {"mean_top1": corrupted.mean, "top1": corrupted.top1}
        if sizes:
            found["sizes"] = [_size(result) for result in sizes]
        print_json(found)
        return
    low, high = evaluation.interval
    out.print(
        f"[bold]top-1 {evaluation.top1:.2%}[/], top-5 {evaluation.top5:.2%} of "
        f"{evaluation.count:,} images, {evaluation.images_per_second:,.0f} images/s"
    )
    out.print(
        f"95 % interval of top-1 {low:.2%} to {high:.2%}; calibration error {evaluation.ece:.2%} "
        f"(15 bins), negative log-likelihood {evaluation.nll:.4f}",
        soft_wrap=True,
    )
    _show_classes(evaluation, classes)
    _show_mistakes(evaluation, classes)
    if corrupted is not None:
        _show_corruptions(corrupted, evaluation)
    if sizes:
        _show_sizes(sizes)


def show_verification(found: Verification, classes: tuple[str, ...], *, as_json: bool) -> None:
    """Show a reported accuracy beside the measured one, and whether they agree."""
    low, high = found.interval
    if as_json:
        print_json(
            {
                "model": found.name,
                "reported_top1": found.reported,
                "reported_rounding": found.rounding,
                "measured_top1": found.evaluation.top1,
                "difference": found.difference,
                "interval": [low, high],
                "passed": found.passed,
                "evaluation": _evaluation(found.evaluation, classes),
            }
        )
        return
    digits = max(1, round(-math.log10(2 * found.rounding)) - 2)
    table = make_table()
    table.add_row("reported top-1", f"{found.reported:.{digits}%}")
    table.add_row("measured top-1", f"{found.evaluation.top1:.2%}")
    table.add_row("difference", f"{100 * found.difference:+.2f} points")
    table.add_row("images", f"{found.evaluation.count:,}")
    table.add_row("95 % interval", f"{low:.2%} to {high:.2%}")
    out.print(table)
    if found.passed:
        out.print(f"[green]✓[/] {found.name} agrees with what its authors report")
    else:
        out.print(
            f"[red]✗[/] {found.name} differs from what its authors report by more than chance "
            f"and rounding explain; look at the data's classes and at the statistics and crop of "
            f"the input (volution info {found.name})",
            soft_wrap=True,
        )


def _evaluation(evaluation: Evaluation, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return everything that was measured, ready for JSON."""
    confusion = evaluation.confusion
    right = [None if math.isnan(share) else share for share in evaluation.per_class.tolist()]
    rows = zip(classes, confusion.sum(1).tolist(), right, strict=True)
    return {
        "count": evaluation.count,
        "top1": evaluation.top1,
        "top1_standard_error": evaluation.standard_error,
        "top1_interval": list(evaluation.interval),
        "top5": evaluation.top5,
        "nll": evaluation.nll,
        "ece": evaluation.ece,
        "images_per_second": evaluation.images_per_second,
        "broken": evaluation.broken,
        "classes": list(classes),
        "per_class": [{"name": n, "count": int(c), "top1": share} for n, c, share in rows],
        # A thousand classes have a million cells, of which few are not zero.
        "confusion": [
            {"is": classes[row], "taken_for": classes[column], "times": int(confusion[row, column])}
            for row, column in confusion.nonzero().tolist()
        ],
    }


def _size(result: SizeResult) -> dict[str, Any]:
    evaluation = result.evaluation
    return {
        "size": result.size,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "ece": evaluation.ece,
        "images_per_second": evaluation.images_per_second,
    }


def _show_classes(evaluation: Evaluation, classes: tuple[str, ...]) -> None:
    """Show the classes that are hit least often; all where there are few."""
    counts, shares = evaluation.confusion.sum(1), evaluation.per_class
    known = [i for i in range(len(classes)) if counts[i] > 0]
    known.sort(key=lambda i: (float(shares[i]), i))
    rest = len(known) - _WORST
    table = make_table("worst classes" if rest > 0 else "class", "images", "right, %")
    for i in known[:_WORST]:
        table.add_row(classes[i], str(int(counts[i])), f"{100 * float(shares[i]):.1f}")
    out.print(table)
    if rest > 0:
        out.print(f"[dim]and {rest} more, which --json lists[/]")


def _show_mistakes(evaluation: Evaluation, classes: tuple[str, ...]) -> None:
    wrong = evaluation.confusion.clone().fill_diagonal_(0)
    count = min(5, int((wrong > 0).sum()))
    if count == 0:
        return
    table = make_table("is", "taken for", "times")
    most = wrong.flatten().topk(count)
    for times, place in zip(most.values.tolist(), most.indices.tolist(), strict=True):
        row, column = divmod(place, len(classes))
        table.add_row(classes[row], classes[column], str(times))
    out.print(table)


def _show_corruptions(found: Robustness, clean: Evaluation) -> None:
    table = make_table("top-1 at severity", "1", "2", "3", "4", "5", "mean, %")
    for name, shares in found.top1.items():
        mean = sum(shares) / len(shares)
        table.add_row(name.replace("_", " "), *(f"{100 * x:.1f}" for x in (*shares, mean)))
    out.print(table)
    out.print(
        f"[bold]corrupted top-1 {found.mean:.2%}[/], {100 * (found.mean - clean.top1):+.2f} points "
        f"from the images as they are"
    )


def _show_sizes(sizes: Sequence[SizeResult]) -> None:
    table = make_table("size", "top-1, %", "top-5, %", "calibration error, %", "images/s")
    for result in sizes:
        found = result.evaluation
        shares = (f"{100 * x:.2f}" for x in (found.top1, found.top5, found.ece))
        table.add_row(str(result.size), *shares, f"{found.images_per_second:,.0f}")
    out.print(table)
