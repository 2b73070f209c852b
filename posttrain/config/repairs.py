"""What to mend in conversations that chat templates refuse: `data: {repairs: {system_into_user: true}}`."""

from __future__ import annotations

from typing import Literal

from posttrain.config.values import Settings


class RepairSettings(Settings):
    """Repairs of conversations that chat templates refuse; each is counted, and told with the rows that were read."""

    system_into_user: bool = False
    """Put the text of a system turn before that of the user's turn that follows, with an empty line between."""
    join_same_role: bool | str = False
    """Make one turn of several in a row with the same role; a text is what stands between, an empty line else."""
    first_greeting: Literal["refuse", "drop", "keep"] = "refuse"
    """What becomes of an answer that stands before any question: `drop` it, or `keep` it as context that does not
    train."""
