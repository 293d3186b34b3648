"""Commands that look at runs: report and runs."""

from __future__ import annotations

from pathlib import Path

from volution.cli._common import Device, find_device

__all__ = ["after_training", "report", "runs"]


def report(run: Path, *, samples: int = 12, device: Device = "auto") -> int:
    """Write a page on a run, finished or not: curves, mistakes, kernels, settings.

    Args:
        run: The run's folder, such as runs/NAME; the page is report.html in it.
        samples: How many of the worst images, and of the best, are shown.
        device: Where to look at the validation images; auto takes a GPU if there is one.
    """
    from volution._support.console import out
    from volution.report import write_run_report

    page = write_run_report(run, samples=samples, device=find_device(device))
    out.print(f"open {page} in a browser", markup=False, soft_wrap=True)
    return 0


def runs(folders: list[str] | None = None, *, json: bool = False) -> int:
    """List the runs in a folder; or compare runs, their settings and results.

    Args:
        folders: A folder with runs in it, runs/ if none is given; or the folders of several runs.
        json: Write JSON.
    """
    from volution.report.runs import compare_runs, list_runs

    paths = [Path(folder).expanduser() for folder in folders or ["runs"]]
    if len(paths) == 1:
        return list_runs(paths[0], as_json=json)
    return compare_runs(paths, as_json=json)


def after_training(folder: Path) -> None:
    """Write a run's page, where it is not there yet; what fails here is no failure of the run."""
    from volution._support.console import log, out
    from volution._support.extras import MissingExtra
    from volution.report import run_report
    from volution.report.run_files import read_run

    try:
        if run_report.is_current(folder):
            return
        device = find_device(read_run(folder).config.device)
        page = run_report.write_run_report(folder, device=device)
    except (MissingExtra, ValueError, OSError) as error:
        log.print(f"no report: {error}", markup=False, soft_wrap=True)
        log.print(f"try again with: volution report {folder}", markup=False, soft_wrap=True)
        return
    out.print(f"report in {page}", markup=False, soft_wrap=True)
