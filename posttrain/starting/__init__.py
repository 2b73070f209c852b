"""A recipe for somebody's own rows: what they are, how many there are, and the settings that so many rows need.

    start = plan("identity", "mine.jsonl", name="Pia")     # reads and counts the rows
    write(start)                                           # identity.yaml, commented; overwrites nothing

`choices` is the literal table of settings by number of rows, each with the measurement or paper that it comes from.
"""

from __future__ import annotations

from posttrain.starting.plan import Start, plan
from posttrain.starting.write import write

__all__ = ["Start", "plan", "write"]
