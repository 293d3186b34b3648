"""Runs side by side: what was trained, how far it got, how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from volution._support.console import log, out
from volution.report.parts import duration
from volution.report.run_files import RunFiles, find_runs, is_run, read_run
from volution.report.tables import make_table, print_json
from volution.train import TrainConfig

__all__ = ["compare_runs", "list_runs"]


@dataclass(frozen=True)
class _Damaged:
    folder: Path
    problem: str


def list_runs(root: Path, *, as_json: bool = False) -> int:
    """Show the runs below a folder, one in each line.

    Args:
        root: The folder, or that of a single run.
        as_json: Write JSON.

    Returns:
        0, or 1 if a run's files are damaged; such runs are listed as well.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no run in it.
    """
    folders = find_runs(root)
    if not folders:
        raise ValueError(f"root: no run in {root}; train one with: volution train")
    found = [_read(folder) for folder in folders]
    damaged = [run for run in found if isinstance(run, _Damaged)]
    if as_json:
        print_json([_row(run) for run in found])
        return int(bool(damaged))
    table = make_table("run", "model", "data", "epochs", "state", "top-1, %", "time", "date")
    table.padding = (0, 1, 0, 0)  # eight columns in a terminal of eighty
    # Only names may be folded: a number in two lines is two numbers.
    for column in table.columns[3:]:
        column.no_wrap = True
    for run in found:
        name = _name(run.folder, root)
        if isinstance(run, _Damaged):
            table.add_row(name, "", "", "", "[red]damaged[/]", "", "", "")
            continue
        row = _row(run)
        best = "-" if row["best_top1"] is None else f"{100 * row['best_top1']:.2f}"
        table.add_row(
            name,
            run.config.model,
            _data(run.config.data),
            f"{row['epochs_done']}/{row['epochs']}",
            run.state,
            best,
            _brief(run.seconds),
            f"{run.changed:%Y-%m-%d}",
        )
    out.print(table)
    for run in damaged:
        log.print(f"damaged: {run.problem}", markup=False, soft_wrap=True)
    return int(bool(damaged))


def compare_runs(folders: Sequence[Path], *, as_json: bool = False) -> int:
    """Show in which settings runs differ, and what came of each.

    Args:
        folders: The folders of two or more runs.
        as_json: Write JSON.

    Returns:
        0.

    Raises:
        FileNotFoundError: If a folder holds no run.
        ValueError: If a run's files are damaged.
    """
    runs = [read_run(folder) for folder in folders]
    settings = _differences([run.config for run in runs])
    rows = [_row(run) for run in runs]
    if as_json:
        return print_json({"runs": rows, "settings": settings})
    names = [_short(folder, folders) for folder in folders]
    # Cells are folded rather than cut: what is cut cannot be copied.
    table = make_table("setting", *names)
    for name, values in settings.items():
        table.add_row(name, *("-" if value is None else value for value in values))
    if settings:
        out.print(table)
    else:
        out.print("the settings are the same", markup=False)
    out.print()
    results = make_table("result", *names)
    for title, cells in _results(runs).items():
        results.add_row(title, *cells)
    out.print(results)
    return 0


def _results(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    def each(show: Any) -> list[str]:
        return [show(run) for run in runs]

    def last(run: RunFiles, name: str) -> str:
        return f"{run.history[-1][name]:.4f}" if run.history else "-"

    return {
        "state": each(lambda run: run.state),
        "epochs": each(lambda run: f"{len(run.history)}/{run.config.epochs}"),
        "best top-1": each(lambda run: "-" if run.best is None else f"{run.best['val_top1']:.2%}"),
        "in epoch": each(lambda run: "-" if run.best is None else f"{run.best['epoch']:.0f}"),
        "last training loss": each(lambda run: last(run, "train_loss")),
        "last validation loss": each(lambda run: last(run, "val_loss")),
        "time": each(lambda run: duration(run.seconds)),
        "images/s": each(
            lambda run: f"{run.images_per_second:,.0f}" if run.history else "-",
        ),
    }


def _differences(configs: Sequence[TrainConfig]) -> dict[str, list[str | None]]:
    given = [asdict(replace(config, out=None)) for config in configs]
    return {
        name: [None if settings[name] is None else str(settings[name]) for settings in given]
        for name in given[0]
        if any(settings[name] != given[0][name] for settings in given)
    }


def _read(folder: Path) -> RunFiles | _Damaged:
    try:
        return read_run(folder)
    except (ValueError, OSError) as error:
        return _Damaged(folder, " ".join(str(error).split()))


def _row(run: RunFiles | _Damaged) -> dict[str, Any]:
    if isinstance(run, _Damaged):
        return {"folder": str(run.folder), "state": "damaged", "problem": run.problem}
    best = run.best
    return {
        "folder": str(run.folder),
        "model": run.config.model,
        "data": run.config.data,
        "epochs_done": int(run.history[-1]["epoch"]) if run.history else 0,
        "epochs": run.config.epochs,
        "state": run.state,
        # As many digits as its 32 bits are good for.
        "best_top1": None if best is None else round(best["val_top1"], 6),
        "best_epoch": None if best is None else int(best["epoch"]),
        "seconds": round(run.seconds, 3),
        "images_per_second": run.images_per_second if run.history else None,
        "changed": run.changed.isoformat(timespec="seconds"),
    }


def _name(folder: Path, root: Path) -> str:
    return str(folder) if folder == root or is_run(root) else str(folder.relative_to(root))


def _brief(seconds: float) -> str:
    """Return a time in one unit.

    Example:
        >>> _brief(3.21), _brief(75), _brief(7260), _brief(200_000)
        ('3.2 s', '1.2 min', '2.0 h', '2.3 d')
    """
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    unit, size = next((found for found in units if seconds >= found[1]), units[-1])
    return f"{seconds / size:.1f} {unit}"


def _data(name: str) -> str:
    """Return the last part of where data comes from, without the way there.

    Example:
        >>> _data("folder:/home/me/flowers"), _data("digits"), _data("wds:shards/{0..9}.tar")
        ('flowers', 'digits', '{0..9}.tar')
    """
    return name.partition(":")[2].rstrip("/").rpartition("/")[2] or name


def _short(folder: Path, folders: Sequence[Path]) -> str:
    """Return a folder's own name, or its whole path where others have the same name."""
    names = [other.resolve().name for other in folders]
    name = folder.resolve().name
    return name if names.count(name) == 1 else str(folder)
