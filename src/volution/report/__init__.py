"""Reports for the browser: one HTML file with everything in it."""

from volution.report.page import Page
from volution.report.quickstart import quickstart
from volution.report.run_report import write_run_report

__all__ = ["Page", "quickstart", "write_run_report"]
