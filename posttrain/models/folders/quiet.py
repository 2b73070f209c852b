"""Calls into `transformers` and `peft` without their progress bars and remarks.

What matters in those remarks (weights that were not found, weights that were not used, adapters that do not fit) is
checked after the call and said in posttrain's own errors and notices, so nothing is lost by the silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    # Restored, not reset: a user who asked `transformers` for its remarks gets them in their own calls.
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
