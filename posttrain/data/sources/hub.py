"""A data set on the hub as a stream of rows, through `datasets`; needs a network, and imports it only then."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from posttrain.data.padding import without_nulls
from posttrain.data.sources.columnar import Cleaner, column_cleaners
from posttrain.data.sources.source import Numbered
from posttrain.errors import SourceError

HUB_ID = re.compile(
    r"(?:hub:)?(?P<id>(?:[\w][\w.-]*/)?[\w][\w.-]*)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
"""owner/name, owner/name:config, owner/name@revision; `hub:name` for the few ids without an owner."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """HubSource("openai/gsm8k", config="main", revision=None, split="train")."""

    id: str
    config: str | None
    revision: str | None
    split: str

    @property
    def name(self) -> str:
        config = f":{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.id}{config}{revision} ({self.split})"

    def rows(self) -> Iterator[Numbered]:
        dataset = self._open()
        features = getattr(dataset, "features", None)
        cleaners: dict[str, Cleaner] = {} if features is None else column_cleaners(features.arrow_schema)
        # Without types every null inside a value is taken for padding; with them the cleaners know which ones are.
        clean: Cleaner = without_nulls if features is None else lambda item: item
        stream = iter(dataset)
        row = 0
        while True:
            try:
                value = next(stream)
            except StopIteration:
                return
            except Exception as error:  # whatever the network, the server or a loader does ends in one named error
                raise self._failed(error, f"the stream broke after row {row}") from error
            row += 1
            yield row, {key: cleaners.get(key, clean)(item) for key, item in value.items()}, ""

    def _open(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(self.id, self.config, split=self.split, revision=self.revision, streaming=True)
        except Exception as error:  # as above
            raise self._failed(error, "the data set cannot be opened") from error

    def fingerprint(self) -> str:
        """Hash of the id, config, split and the commit that the hub names: the content is fixed by the commit."""
        import huggingface_hub

        try:
            commit = huggingface_hub.HfApi().dataset_info(self.id, revision=self.revision).sha
        except Exception as error:  # as above
            raise self._failed(error, "the hub does not say which commit this is") from error
        return hashlib.sha256(f"{self.id}\n{self.config}\n{self.split}\n{commit}".encode()).hexdigest()

    def _failed(self, error: Exception, problem: str) -> SourceError:
        text = str(error).strip().splitlines()
        message = text[0][:300] if text else ""
        if "config" in message.lower() and "pick one" in str(error).lower():
            remedy = f"name one of the configurations above: '{self.id}:CONFIG'"
            message = " ".join(str(error).split())[:400]
        elif "split" in message.lower():
            remedy = "choose another `split`"
        elif type(error).__name__ == "DatasetNotFoundError":
            remedy = "no such data set, or it needs a login (`hf auth login`); if a file was meant, check its path"
        else:
            remedy = (
                "check the network; behind a firewall, fetch the files elsewhere and give their paths "
                "(if a file was meant, check its path)"
            )
        return SourceError(
            problem,
            where=self.name,
            found=f"{type(error).__name__}: {message}",
            expected="a data set on the hub that can be read",
            remedy=remedy,
        )
