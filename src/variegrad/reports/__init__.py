"""The report of a measured run: one self-contained page and its pictures, drawn from a plain JSON document alone."""

from variegrad.reports.figures import bound_along_run, efficiency, layers, mechanisms
from variegrad.reports.page import write_report
from variegrad.reports.single import report

__all__ = ["bound_along_run", "efficiency", "layers", "mechanisms", "report", "write_report"]
