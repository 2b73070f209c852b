"""What a key means, from the text under its field.

pydantic could collect these texts itself (`use_attribute_docstrings`), but it reads the source of every record while it
is imported: a fifth of what a refused typo costs, for sentences that only an error about a value and the docs show.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache

from pydantic import BaseModel


def meaning_of(record: type[BaseModel], key: str) -> str | None:
    """The field's `description`, or the text that stands under it: meaning_of(SFT, "epochs"). None without either.

    Args:
        key: as a recipe writes it.
    """
    name, field = next((name, field) for name, field in record.model_fields.items() if (field.alias or name) == key)
    if field.description:
        return field.description
    # The record that declares it last, as a subclass may change a default and its meaning.
    declares = (kind for kind in record.__mro__ if name in inspect.get_annotations(kind))
    return next((text for kind in declares if (text := _texts(kind).get(name))), None)


@cache
def _texts(kind: type) -> Mapping[str, str]:
    """{"epochs": "Passes over the rows."}; empty for a record that was made without source."""
    try:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(parsed, ast.ClassDef)
    texts = {}
    for field, text in zip(parsed.body, parsed.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            texts[field.target.id] = inspect.cleandoc(str(text.value.value))
    return texts
