"""Rows to examples: the table of formats (`table.py`), how one is recognised (`detect.py`), and how each is read."""

from posttrain.data.formats.detect import detect, nearest_format
from posttrain.data.formats.table import COLUMNS, FORMATS, KIND_NAMES, ExampleKind, Format

__all__ = ["COLUMNS", "FORMATS", "KIND_NAMES", "ExampleKind", "Format", "detect", "nearest_format"]
