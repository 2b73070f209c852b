"""Models made for embeddings of texts, by sentence-transformers (the extra `embed`), out of folders alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from posttrain.errors import FOREIGN, ConfigError, MissingExtraError


def load_sentence_model(folder: str | Path, *, device: str = "cpu", otherwise: str) -> Any:
    """A `SentenceTransformer` on its device.

    Args:
        otherwise: what else the user may write, for errors: "write `similarity: bm25`".

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ConfigError: there is no such folder, or no such model in it.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtraError(
            "embeddings need the package sentence-transformers",
            where=folder,
            remedy=f"install it: `pip install 'posttrain[embed]'`, or {otherwise}",
        )
    path = Path(folder).expanduser()
    if not path.is_dir():
        # A name would be fetched from the hub, and the result would depend on the network.
        raise ConfigError(
            "the model of embeddings is no folder that is there",
            found=str(folder),
            expected="a folder that `SentenceTransformer.save` wrote",
            remedy="save the model into a folder first, and name that",
        )
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(path), device=device, local_files_only=True)
    except FOREIGN as error:  # the boundary: other people's code and folders
        raise ConfigError(
            "the folder's model of embeddings cannot be loaded",
            where=folder,
            found=f"{type(error).__name__}: {error}",
            expected="a folder that `SentenceTransformer.save` wrote",
            remedy=f"save the model anew, or {otherwise}",
        ) from error
