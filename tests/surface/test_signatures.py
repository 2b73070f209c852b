"""The command line's arguments and options are a promise: a change shows here, in `cli_options.txt`.

After a change that is meant: `python -m tests.surface.test_signatures`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.models import OptionInfo

from posttrain.cli.app import app

SNAPSHOT = Path(__file__).parent / "cli_options.txt"


def surface() -> str:
    """Every verb, one argument or option a line, with its kind and its default."""
    return "\n".join(_lines(app, "posttrain")) + "\n"


def _lines(group: typer.Typer, path: str) -> Iterator[str]:
    yield path
    if group.registered_callback is not None:
        yield from _parameters(group.registered_callback.callback)
    for command in sorted(group.registered_commands, key=lambda command: str(command.name)):
        yield f"{path} {command.name}"
        yield from _parameters(command.callback)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _lines(inner.typer_instance, f"{path} {inner.name}")


def _parameters(verb: Callable[..., Any] | None) -> Iterator[str]:
    assert verb is not None
    function = inspect.unwrap(verb)
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if hints[name] is typer.Context:  # no option: how a verb asks which ones were written
            continue
        kind, info = typing.get_args(hints[name])[:2]
        shown = " ".join(_names(info)) if isinstance(info, OptionInfo) else info.metavar
        required = parameter.default is inspect.Parameter.empty
        yield f"    {shown}  {_kind(kind)}  {'required' if required else f'default {_plain(parameter.default)}'}"


def _names(option: OptionInfo) -> list[str]:
    """typer keeps the first name of an annotated option where the default would stand."""
    return [name for name in (option.default, *(option.param_decls or ())) if str(name).startswith("-")]


def _kind(annotation: Any) -> str:
    """`Path | None` -> path, `list[str] | None` -> list of str."""
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(annotation)))}"
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    if typing.get_origin(annotation) is list:
        return f"list of {members[0].__name__}"
    return _kind(members[0]) if members else annotation.__name__.lower()


def _plain(value: object) -> str:
    return "none" if value is None else str(value).lower()


def test_the_command_line_is_as_it_was() -> None:
    assert surface() == SNAPSHOT.read_text(encoding="utf-8")


def test_every_option_is_in_its_verbs_section_of_the_docs() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    opening, *rest = text.split("\n## ")
    sections = {section.split("\n")[0]: section for section in rest} | {"posttrain": opening}
    verb = ""
    for line in surface().splitlines():
        if not line.startswith("    "):
            verb = line if line in sections else line.rpartition(" ")[0]
            assert line in sections[verb], f"docs/cli.md does not mention `{line}`"
        else:
            name = line.split()[0]
            assert name in sections[verb], f"docs/cli.md does not mention {name} of `{verb}`"


if __name__ == "__main__":
    SNAPSHOT.write_text(surface(), encoding="utf-8")
