"""Which columns of the online table go together.

A recipe chooses columns freely (`choices`), and some choices have no gradient, or need rewards that are not there. All
of that is known when the row is made, so it is refused there, and not in the first step or never.
"""

from __future__ import annotations

from typing import Protocol

from posttrain.errors import ConfigError
from posttrain.losses.surrogates import RATIOS, SURROGATES

_MOVING = tuple(name for name, ratio in RATIOS.items() if ratio.moves)
_BY_LOGPROB = tuple(name for name, surrogate in SURROGATES.items() if not surrogate.by_ratio)


class Columns(Protocol):
    """What is asked of a row of the online table: the columns that can contradict each other."""

    @property
    def advantage(self) -> str: ...

    @property
    def ratio(self) -> str: ...

    @property
    def surrogate(self) -> str: ...

    @property
    def kl(self) -> str: ...

    @property
    def kl_place(self) -> str: ...

    @property
    def correction(self) -> str: ...

    @property
    def proximal(self) -> str: ...

    @property
    def groups(self) -> str: ...

    @property
    def shaping(self) -> str: ...


def require_fit(row: Columns) -> None:
    """Refuse columns that do not go together, whoever put them there: such a row would fail in its first step, or train
    nothing without a word. Raises ConfigError."""
    surrogate = SURROGATES.get(row.surrogate)
    if surrogate is not None and surrogate.by_ratio and row.ratio in RATIOS and not RATIOS[row.ratio].moves:
        raise ConfigError(
            f"`ratio: {row.ratio}` with `surrogate: {row.surrogate}` trains nothing: this surrogate is a function of "
            "the ratio alone, and a ratio that is always 1 has no gradient",
            where="ratio and surrogate",
            found=f"ratio {row.ratio}, surrogate {row.surrogate}",
            expected=f"ratio {', '.join(_MOVING)}; or surrogate {', '.join(_BY_LOGPROB)}",
            remedy=f"write `choices: {{ratio: token, surrogate: {row.surrogate}}}`, or "
            f"`choices: {{ratio: {row.ratio}, surrogate: reinforce}}`",
        )
    if (row.kl == "none") != (row.kl_place == "none"):
        raise ConfigError(
            "a KL needs a kind and a place",
            where="kl",
            found=f"kl {row.kl}, kl_place {row.kl_place}",
            example="kl: k3_corrected, kl_place: loss",
            remedy="set both, or `kl: none`",
        )
    if row.kl_place == "reward" and row.kl not in ("k1", "k2", "k3"):
        raise ConfigError(
            f"{row.kl} is a loss term; in a reward only an estimate's value counts",
            where="kl",
            found=f"kl {row.kl}, kl_place reward",
            expected="k1, k2 or k3",
            remedy="k1 is the usual one",
        )
    _require_proximal_fits(row)
    _require_rewards_fit(row)


def _require_proximal_fits(row: Columns) -> None:
    """Ratios that start from the engine's policy need a ratio, and weigh already what a correction would weigh."""
    if row.proximal != "sampler":
        return
    if row.ratio in RATIOS and not RATIOS[row.ratio].moves:
        raise ConfigError(
            f"`proximal: sampler` says what ratios start from, and with `ratio: {row.ratio}` there are none",
            where="proximal and ratio",
            found=f"proximal sampler, ratio {row.ratio}",
            expected=f"ratio {', '.join(_MOVING)}; or proximal trainer",
            remedy="write `choices: {ratio: token, proximal: sampler}`, or `choices: {correction: truncated}` for a "
            "weight without a ratio",
        )
    if row.correction != "none":
        raise ConfigError(
            f"`proximal: sampler` with `correction: {row.correction}` asks twice for the same weight: a ratio that "
            "starts from the engine's policy has the engine's share in it already",
            where="proximal and correction",
            found=f"proximal sampler, correction {row.correction}",
            expected="proximal trainer with a correction, or proximal sampler without one",
            remedy=f"write `choices: {{correction: {row.correction}}}` (three policies), or "
            "`choices: {proximal: sampler}` (two)",
        )


def _require_rewards_fit(row: Columns) -> None:
    """What changes rewards, or asks whether they are equal, needs an advantage that takes any reward."""
    asked = {"kl_place": row.kl_place == "reward", "shaping": row.shaping != "none", "groups": row.groups != "keep"}
    wrong = {"maxrl": ("kl_place", "shaping"), "teacher": ("kl_place", "shaping", "groups")}.get(row.advantage, ())
    why = {
        "maxrl": "maxrl is defined for rewards of 0 and 1, and `{}` makes others of them",
        "teacher": "this method learns from a teacher and has no rewards, so that `{}` has nothing to look at",
    }
    remedies = {
        "kl_place": "write `choices: {kl: k3_corrected, kl_place: loss}`: that KL is in the loss",
        "shaping": "write `choices: {shaping: none}`",
        "groups": "write `choices: {groups: keep}`",
    }
    for column in wrong:
        if asked[column]:
            found = f"{column}: {getattr(row, column)}"
            problem = why[row.advantage].format(found)
            raise ConfigError(problem, where=column, found=found, remedy=remedies[column])
