"""The models of one recipe, each counted and traced once, however many settings are tried on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedConfig

from posttrain.config.adapters import AdapterSettings
from posttrain.planning.architectures import config_of
from posttrain.planning.skeleton import Facts, Role, facts_of
from posttrain.planning.trace import Tracer


@dataclass(slots=True)
class Models:
    """Models("qwen3-8b"): the recipe's start, and the others that its stages name."""

    name: str
    config: PreTrainedConfig = field(init=False)
    said: str = field(init=False)
    tracer: Tracer = field(init=False)
    _facts: dict[tuple[str, Role], Facts] = field(default_factory=dict, init=False)
    _others: dict[str, Facts] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        found = config_of(self.name)
        self.config, self.said = found.config, found.said
        self.tracer = Tracer(found.config)

    def facts(self, adapter: AdapterSettings | None, role: Role = "policy") -> Facts:
        """Raises as `skeleton.build` does."""
        key = (repr(adapter), role)
        if key not in self._facts:
            self._facts[key] = facts_of(self.config, adapter, role)
        return self._facts[key]

    def other(self, name: str) -> Facts:
        """A teacher or a judge, as it is.

        Raises:
            ModelError: nothing here has this name.
        """
        if name not in self._others:
            self._others[name] = facts_of(config_of(name).config, None, "policy")
        return self._others[name]
