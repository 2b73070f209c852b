"""Who is told of a run: `notify: [{url: $SLACK_URL, format: slack}]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from posttrain.config.values import Settings, listed, refuse

VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")

NotifyEvent = Literal["end", "failure", "alarm"]


def _variable(value: Any) -> Any:
    if isinstance(value, str) and VARIABLE.fullmatch(value):
        return value
    # Never shown as it is: whoever knows a webhook's address can write to its channel.
    raise refuse(
        "the address of a webhook is a secret, which every copy of the recipe would show",
        found="***",
        expected="the name of an environment variable, such as $SLACK_URL",
        remedy="export SLACK_URL=https://..., and write `url: $SLACK_URL`",
    )


class Notify(Settings):
    """A message to a webhook. What goes wrong there is said in one line and neither ends nor delays the run."""

    url: Annotated[str, BeforeValidator(_variable)]
    """The environment variable that holds the address: `$SLACK_URL`. The address itself stands nowhere."""
    format: Literal["json", "slack"] = "json"
    """`json` posts an object with every figure of `posttrain summary --json`; `slack` a text, as Slack's, Mattermost's
    and Discord's (`.../slack`) webhooks take it."""
    on: Annotated[tuple[NotifyEvent, ...], BeforeValidator(listed)] = Field(
        default=("end", "failure", "alarm"), min_length=1
    )
    """`end`: the run is done; `failure`: it failed or was interrupted; `alarm`: an alarm rang, the first time in a
    stage."""


def _listed(value: Any) -> Any:
    """`notify: $SLACK_URL` and `notify: {url: $SLACK_URL}` are lists of one."""
    items = [value] if isinstance(value, str | Mapping | Notify) else value
    if not isinstance(items, list | tuple):
        return items
    return [{"url": item} if isinstance(item, str) else item for item in items]


Notifications = Annotated[tuple[Notify, ...], BeforeValidator(_listed)]


class _Given(Settings):
    notify: Notifications = ()


def notifications(given: Any) -> tuple[Notify, ...]:
    """What a program passes, as a recipe writes it.

    Raises:
        ConfigError: it is none of these.
    """
    return _Given(notify=given).notify
