"""A run folder becomes one self-contained page: `write_report(Path("runs/quickstart"))` writes report.html there.

    runs.read -> records of the folder, whole or torn  evaluation -> the final table      verdict -> plain words
    panels -> which curves share a picture             charts, distributions -> geometry  page    -> the HTML file

It reads files only; nothing of training or models is imported, and the page opens from disk without any network.
"""

from posttrain.report.page import write_report
from posttrain.report.verdict import verdict_of

__all__ = ["verdict_of", "write_report"]
