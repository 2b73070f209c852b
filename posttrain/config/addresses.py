"""Addresses of servers: a recipe's are copied into run folders and reports, so that none may hold a credential.

masked("http://me:pw@host/v1?api_key=k")     # "http://***@host/v1?api_key=***"
"""

from __future__ import annotations

import re

_SECRET = (
    r"[\w.~-]*(?:api_?key|(?<![A-Za-z])(?:key|token|secret|passwd|password|pass|pwd|auth|authorization|signature|sig|"
    r"credentials?|bearer)(?![A-Za-z])|token|secret|password)[\w.~-]*"
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
    shown = masked(address if "://" in address else _BARE.sub("***@", address))
    return shown if shown != address else None
