"""Addresses of servers: a recipe's are copied into run folders and reports, so that none may hold a credential.

masked("http://me:pw@host/v1?api_key=k")     # "http://***@host/v1?api_key=***"
"""

from __future__ import annotations

import re

_SECRET = (
    r"[\w.~-]*(?:api_?key|(?<![A-Za-z])(?:key|token|secret|passwd|password|pass|pwd|auth|authorization|signature|sig|"
    r"credentials?|bearer)(?![A-Za-z])|token(?!s)|secret|password)[\w.~-]*"
)
_NAME = re.compile(
    r"(?:\w+_)?(?:api_?key|secret|password|passwd)|(?:hf|access|auth|api|bearer)_token|key|token", re.IGNORECASE
)
_IN_QUERY = re.compile(rf"(?P<name>[?&;#]{_SECRET}=)(?P<value>[^&;#\s]+)", re.IGNORECASE)
# Greedy up to the last @: a password may hold any sign, also / and @, and what is left of it would be shown.
_BEFORE_HOST = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)\S*@")
_BARE = re.compile(r"\A\S*@")


def masked(text: str) -> str:
    """The text with *** for what stands before an address' host, and for values of its query that are secret."""
    return _IN_QUERY.sub(r"\g<name>***", _BEFORE_HOST.sub(r"\g<scheme>***@", text))


def credential_in(address: str) -> str | None:
    """The address with its credential masked; None where it has none.

    An @ anywhere counts as one, since a password may hold a slash; in a path it is written %40.
    """
    whole = address if "://" in address else _BARE.sub("x://***@", address)
    if _BEFORE_HOST.search(whole) is None and _IN_QUERY.search(whole) is None:
        return None
    return masked(whole).removeprefix("x://")


def is_secret_name(key: str) -> bool:
    """Whether a key's value is a secret by its name: `api_key`, `token`; not `key_env` or `pad_token`."""
    return _NAME.fullmatch(key) is not None
