"""Data: rows to examples (sources, formats, read), examples to token trees (encode, trees).

Importing this loads neither torch nor a file reader; those come with the modules and sources that need them.
"""

from posttrain.data.formats import FORMATS, Format
from posttrain.data.read import Examples, RowCounts, read
from posttrain.data.refusals import REASONS
from posttrain.data.write import write_jsonl

__all__ = ["FORMATS", "REASONS", "Examples", "Format", "RowCounts", "read", "write_jsonl"]
