"""Reports for the browser: one HTML file with everything in it."""

from volution.report.page import Page
from volution.report.quickstart import quickstart

__all__ = ["Page", "quickstart"]
