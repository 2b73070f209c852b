"""One conversion under way: the keys that are there, what was written for each, and what could not be said.

The promise is that no key vanishes: every key of the other tool's file ends as said, as idle or as missed, and
`Draft.finish` fails if one does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.config.stages import STAGES
from posttrain.converting.entry import Cannot, Entry, Goes, Idle, Joint, empty, number, truth
from posttrain.errors import did_you_mean, nearest


@dataclass(frozen=True, slots=True)
class Missed:
    """Missed("neftune_noise_alpha", 5, "no noise is added to embeddings", "leave it out")"""

    key: str
    value: Any
    why: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Line:
    """One value of the recipe and the comment beside it: Line(16, "lora_r")"""

    value: Any
    comment: str = ""


@dataclass
class Draft:
    """Draft("Axolotl", "sft", {"lora_r": 16}, table={"lora_r": Goes("adapter.rank")})"""

    tool: str
    method: str
    found: Mapping[str, Any]
    """Keys of the file, dotted where groups are nested, and their values."""
    table: Mapping[str, Entry]
    processes: int = 1
    """How many processes the other tool was started with; batch sizes of one process are multiplied by it."""
    lines: dict[str, Line] = field(default_factory=dict)
    """By key of the stage, dotted; "/seed" is a key of the recipe."""
    said: dict[str, str] = field(default_factory=dict)
    """Keys of the file -> the keys here that say the same."""
    idle: dict[str, str] = field(default_factory=dict)
    """Keys of the file for which nothing has to be written -> why."""
    missed: list[Missed] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    """What has to be true for the recipe to do the same, one sentence each."""

    # ------------------------------------------------------------ what the file says

    def has(self, key: str) -> bool:
        return not empty(self.found.get(key))

    def get(self, key: str, default: Any = None) -> Any:
        return self.found[key] if self.has(key) else default

    def number(self, key: str, default: float = 0.0) -> float:
        """The key's number, or the default; what is none is listed, and the default stands in."""
        try:
            return number(self.get(key, default))
        except ValueError as error:
            self.miss(key, f"{error}; {default:g} stands in", "write the value by hand")
            return default

    def truth(self, key: str) -> bool:
        """Whether the key is switched on; what is neither on nor off is listed, and counts as off."""
        try:
            return truth(self.get(key, False))
        except ValueError as error:
            self.miss(key, f"{error}; off stands in", "write the value by hand")
            return False

    def takes(self, key: str) -> bool:
        """Whether the method has this key here: takes("beta"), of dpo."""
        return key.startswith("/") or key.partition(".")[0] in STAGES[self.method].model_fields

    # ------------------------------------------------------------ what is written

    def put(self, key: str, value: Any, *sources: str, comment: str | None = None) -> None:
        """Writes a value; `sources` are the keys of the file that it says. What the method has no key for is listed."""
        if not self.takes(key):
            for source in sources:
                if self.has(source):
                    self._not_of_the_method(source, key)
            return
        # A key of the same name needs no comment.
        names = dict.fromkeys(source for source in sources if source in self.found and source != key.rpartition(".")[2])
        words = ", ".join(names)
        self.lines[key] = Line(value, words if comment is None else f"{words}: {comment}" if words else comment)
        for source in sources:
            if source in self.found and all(source != entry.key for entry in self.missed):
                self.said[source] = key
                self.idle.pop(source, None)

    def default(self, key: str, value: Any, why: str = "") -> None:
        """What the other tool does where its file is silent, if nothing is written there yet and it differs here."""
        if key not in self.lines and self.takes(key):
            self.lines[key] = Line(value, f"{self.tool}'s default" + (f": {why}" if why else ""))

    def leave(self, key: str, because: str) -> None:
        """Nothing has to be written for this key."""
        if key in self.found and key not in self.said and all(key != entry.key for entry in self.missed):
            self.idle[key] = because

    def miss(self, key: str, why: str, remedy: str) -> None:
        """This key, or what the tool does without being asked, is not said by the recipe."""
        self.idle.pop(key, None)
        self.said.pop(key, None)
        entry = Missed(key, self.found.get(key), why, remedy)
        if entry not in self.missed:
            self.missed.append(entry)

    def assume(self, sentence: str) -> None:
        if sentence not in self.assumed:
            self.assumed.append(sentence)

    # ------------------------------------------------------------ all keys

    def translate(self) -> None:
        """All keys but the joint ones, by their rows. Keys that were read already stay as they are."""
        for key, value in self.found.items():
            if key in self.said or key in self.idle or any(key == entry.key for entry in self.missed):
                continue
            entry = self.table.get(key)
            if entry is None and empty(value) and any(name.startswith(f"{key}.") for name in self.table):
                self.idle[key] = "not set"  # a group that holds nothing
            elif entry is None:
                self._unknown(key)
            elif isinstance(entry, Idle):
                self.idle[key] = entry.because
            elif isinstance(entry, Cannot):
                if empty(value) or value == 0 or value in entry.off:
                    self.idle[key] = "not set, as here"
                else:
                    self.miss(key, entry.why, entry.remedy)
            elif empty(value) and not (isinstance(entry, Goes) and value is False):
                self.idle[key] = "not set"
            elif isinstance(entry, Goes):
                self._goes(key, value, entry)

    def _goes(self, key: str, value: Any, entry: Goes) -> None:
        if not self.takes(entry.key):
            self._not_of_the_method(key, entry.key)
            return
        try:
            here = value if entry.read is None else entry.read(value)
        except ValueError as error:
            self.miss(key, f"as `{entry.key}` it has no meaning: {error}", f"write `{entry.key}` by hand")
            return
        self.put(entry.key, here, key, comment=entry.remark or None)

    def _not_of_the_method(self, key: str, place: str) -> None:
        self.miss(
            key,
            f"`method: {self.method}` has no `{place}`",
            f"leave it out; docs/recipes.md lists the keys of `{self.method}`",
        )

    def _unknown(self, key: str) -> None:
        near = nearest(key, [name for name in self.table if name != key])
        self.miss(
            key,
            f"no key of {self.tool} that this version of posttrain knows",
            did_you_mean(near, "look for what it does in docs/recipes.md"),
        )

    def finish(self) -> None:
        """Lists the joint keys that no function read: those of another method, and those whose company does not ask
        for them. Afterwards every key of the file is said, idle or missed."""
        ended = {*self.said, *self.idle, *(entry.key for entry in self.missed)}
        for key, value in self.found.items():
            entry = self.table.get(key)
            if key in ended or not isinstance(entry, Joint):
                continue
            if empty(value):
                self.idle[key] = "not set"
            elif not self.takes(entry.key):
                self.idle[key] = f"`method: {self.method}` has no `{entry.key}`"
            else:
                place = entry.key.lstrip("/")
                self.miss(
                    key, "the other keys of the file do not ask for it", f"write `{place}` by hand if it should hold"
                )
        left = [key for key in self.found if key not in {*ended, *self.idle, *(entry.key for entry in self.missed)}]
        assert not left, f"{self.tool}: nobody read {', '.join(left)}"


def flatten(document: Mapping[str, Any], table: Mapping[str, Entry], above: str = "") -> dict[str, Any]:
    """Groups as dotted keys, where the table has no row for the group itself.

    {"trl": {"beta": 0.1}} -> {"trl.beta": 0.1}
    """
    flat: dict[str, Any] = {}
    for name, value in document.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and value and key not in table:
            flat.update(flatten(value, table, f"{key}."))
        else:
            flat[key] = value
    return flat
