"""How files name the speakers, and what the user decided about reading rows.

`read` makes one `Rules`; the formats and `messages.py` read every row by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.data.noted import KeyNotes
from posttrain.data.refusals import quoted, refuse
from posttrain.data.repairs import NONE, Repairs
from posttrain.errors import ConfigError, RowError, did_you_mean, nearest
from posttrain.types import Role

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
FUNCTION_CALL = "function_call"
"""A turn of the assistant whose text is the JSON of one or more tool calls."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file names the two halves of a turn and the speakers."""

    role_key: str
    content_key: str
    roles: Mapping[str, str]
    """Name in the file -> one of ROLES or FUNCTION_CALL."""

    def with_roles(self, roles: Mapping[str, str]) -> Dialect:
        """The same dialect with these role names; they replace the default names of the roles they map to."""
        # Replaced, not added to: where a file says `bot`, a stray `gpt` is an error to see and not a synonym.
        replaced = set(roles.values())
        kept = {name: role for name, role in self.roles.items() if role not in replaced}
        return replace(self, roles={**kept, **roles})


OPENAI = Dialect("role", "content", {role: role for role in ROLES})
SHAREGPT = Dialect(
    "from",
    "value",
    {
        "system": "system",
        "human": "user",
        "gpt": "assistant",
        "function_call": FUNCTION_CALL,
        "observation": "tool",
        "tool": "tool",
    },
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user decided about reading rows: Rules.of(roles={"bot": "assistant"})."""

    openai: Dialect = OPENAI
    sharegpt: Dialect = SHAREGPT
    allow_ties: bool = False
    keep_dialogues: bool = False
    """Whether a text that is a whole dialogue is read as it stands instead of refused."""
    repairs: Repairs = NONE
    noted: KeyNotes | None = field(default=None, compare=False, repr=False)
    """Where keys inside a row that nothing reads are noted, during one pass over the rows."""

    @classmethod
    def of(
        cls,
        roles: Mapping[str, str] | None = None,
        allow_ties: bool = False,
        keep_dialogues: bool = False,
        repairs: Repairs = NONE,
    ) -> Rules:
        """Raises ConfigError for a map to a role that does not exist."""
        roles = dict(roles or {})
        targets = (*ROLES, FUNCTION_CALL)
        for name, role in roles.items():
            if role not in targets:
                guess = nearest(str(role), targets) or "assistant"
                raise ConfigError(
                    f"`roles` maps {name!r} to {role!r}, which is not a role",
                    found=f"{{{name}: {role}}}",
                    expected=f"a map from the name in the file to one of {quoted(targets)}",
                    remedy=f"write `roles: {{{name}: {guess}}}`",
                )
        return cls(OPENAI.with_roles(roles), SHAREGPT.with_roles(roles), allow_ties, keep_dialogues, repairs)

    def dialect(self, turn: Mapping[str, Any]) -> Dialect:
        # By the keys of the turn alone: a file may have both dialects, and a user may have mapped roles for either.
        return self.sharegpt if "from" in turn and "role" not in turn else self.openai


DEFAULT_RULES = Rules()


USUAL_ROLES = {
    **{name: "user" for name in ("user", "human", "prompter", "customer", "question")},
    **{name: "assistant" for name in ("assistant", "gpt", "bot", "chatgpt", "model", "ai", "bing", "bard", "answer")},
    **{name: "tool" for name in ("tool", "function", "observation", "tool_response", "function_response", "ipython")},
    **{name: "system" for name in ("system", "developer")},
    **{name: FUNCTION_CALL for name in ("function_call", "tool_call")},
}
"""What a role name that is not in the map most likely means; only ever used to word a remedy."""


def unknown_role(name: Any, dialect: Dialect, place: str) -> RowError:
    # The remedy keeps the names that map to the same role: a map of the user's replaces the default ones.
    known = sorted(dialect.roles)
    usual = nearest(str(name).lower(), [*USUAL_ROLES, *known]) if name is not None else None
    meaning = "user" if usual is None else dialect.roles.get(usual) or USUAL_ROLES[usual]
    same_role = {other: role for other, role in dialect.roles.items() if role == meaning}
    fix = ", ".join(f"{other}: {role}" for other, role in {**same_role, str(name): meaning}.items())
    if usual in known:
        hint = f" ({did_you_mean(usual)})"
    else:
        hint = f" (the {meaning} is called {quoted(same_role)} here)" if usual and same_role else ""
    return refuse(
        "unknown_role",
        f"{place} has the role {name!r}, which is not known{hint}",
        found=f"`{dialect.role_key}`: {name!r}",
        expected=f"one of {quoted(known)}",
        remedy=f"correct the row, or, if the whole file speaks like this, map it with `roles: {{{fix}}}`",
    )
