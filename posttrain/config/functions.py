"""Functions of a user's own in a recipe: how they are addressed, which file holds them, and what they say.

    my_losses.py:hinge_squared      # a file, relative to the recipe
    my_losses:hinge_squared         # a module beside the recipe, else one that is installed

From Python a function stands there itself. Nothing is imported here: a recipe is read without running any of its code.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainSerializer, WrapValidator

ADDRESS = r"^(?:[^\s:]+\.py|[A-Za-z_][\w.]*):[A-Za-z_][\w.]*$"


def address_of(function: str | Callable[..., Any]) -> str:
    """What names the function in config.yaml and in errors: address_of(hinge) == "my_losses:hinge"."""
    if isinstance(function, str):
        return function
    plain = unwrapped(function)
    return f"{plain.__module__}:{plain.__qualname__}" if inspect.isroutine(plain) else f"{type(plain).__qualname__}()"


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside partials and decorators that say what they wrap."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif (inner := getattr(function, "__wrapped__", None)) is not None:
            function = inner
        else:
            return function


if TYPE_CHECKING:
    Function = str | Callable[..., Any]
else:
    # The form only: whether there is such a function is known where its module's folder is.
    Function = Annotated[
        Annotated[str, Field(pattern=ADDRESS)],
        WrapValidator(lambda value, check: value if callable(value) else check(value)),
        PlainSerializer(address_of, return_type=str),
    ]


def file_of(address: str, folder: Path | None) -> Path | None:
    """The file that an address means: the one that it names, or that of a module in `folder`; None where the module is
    looked for among what is installed."""
    module = address.partition(":")[0]
    if module.endswith(".py"):
        return (folder or Path()) / Path(module).expanduser()
    if folder is None:
        return None
    beside = folder.joinpath(*module.split(".")).with_suffix(".py")
    return beside if beside.is_file() else None


def source_fingerprint(function: str | Callable[..., Any], folder: Path | None) -> str:
    """A sha256 of what the function says, so that a result is not taken for that of the function as it is now.

    Of an address: the content of its file, since a function calls the others beside it. Of a function from Python: its
    own source and the values that it is bound to; not its file's, where a line that prints would begin a run anew.
    """
    if isinstance(function, str):
        return hashlib.sha256(_module_content(function, folder)).hexdigest()
    bound: list[Any] = []
    while isinstance(function, functools.partial):
        bound += [function.args, sorted(function.keywords.items())]
        function = function.func
    plain = unwrapped(function)
    try:
        said = inspect.getsource(plain if inspect.isroutine(plain) else type(plain))
    except (OSError, TypeError):  # typed at a prompt, or compiled
        code = plain.__code__ if inspect.isfunction(plain) else None
        said = repr((code.co_code, code.co_consts, code.co_names)) if code else address_of(plain)
    if inspect.isfunction(plain):
        closed = inspect.getclosurevars(plain).nonlocals
        bound += [plain.__defaults__, plain.__kwdefaults__, sorted(closed.items())]
    # An object without a value of its own is shown with its place in memory, which is another one in every process.
    values = [_value(value) for value in bound]
    return hashlib.sha256(repr((said, values)).encode()).hexdigest()


def _value(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_value(item) for item in value]
    if isinstance(value, dict):
        return [(key, _value(item)) for key, item in value.items()]
    return value if isinstance(value, (str, int, float, bool, bytes, type(None))) else type(value).__qualname__


def _module_content(address: str, folder: Path | None) -> bytes:
    path = file_of(address, folder)
    if path is None:
        try:
            spec = importlib.util.find_spec(address.partition(":")[0])
        except (ImportError, ValueError):
            spec = None
        path = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    # A file that is not there is the importer's to refuse, with the names that are near.
    return path.read_bytes() if path is not None and path.is_file() else address.encode()
