"""How several adapters become one, by name; `combine` carries it out. Loads no torch, so a misspelt name is cheap."""

from __future__ import annotations

from posttrain.errors import ConfigError, did_you_mean, nearest

EXACT = "cat"
SAME_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
ANY_RANK = (EXACT, "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
METHODS = (*ANY_RANK[:2], *SAME_RANK, *ANY_RANK[2:])
PRUNING = tuple(name for name in METHODS if name.startswith(("ties", "dare", "magnitude")))


def require_method(name: str) -> None:
    """
    Raises:
        ConfigError: there is no such method; names the nearest.
    """
    if name not in METHODS:
        raise ConfigError(
            f"there is no method {name!r}",
            where="--method",
            expected=", ".join(METHODS),
            remedy=did_you_mean(nearest(name, METHODS), "choose one of them"),
        )
