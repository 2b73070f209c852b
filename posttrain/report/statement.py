"""One line of a verdict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statement:
    """Statement("bad", "dpo, alarm gradient spike (step 12): ...", ""); kind is good, bad, warn or plain."""

    kind: str
    text: str
    detail: str = ""
