"""What the logs say: one reader a log format, one table out."""

from hwnas.parse.base import ColumnMapping, Reader, Reading, Record, parsers
from hwnas.parse.report import ParseReport, parse

__all__ = ["ColumnMapping", "ParseReport", "Reader", "Reading", "Record", "parse", "parsers"]
