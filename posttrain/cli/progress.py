"""The progress of the verbs: a bar on a terminal, plain lines in a log; see `posttrain.runs.terminal`."""

from posttrain.runs.terminal import TerminalProgress, progress_on

__all__ = ["TerminalProgress", "progress_on"]
