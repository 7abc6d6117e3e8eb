"""What to show: one self-contained page on whatever a folder holds."""

from hwnas.report.build import write_report
from hwnas.report.page import read_figures

__all__ = ["read_figures", "write_report"]
