"""The step `decontaminate`: rows that hold questions or answers of evaluation sets, by the rule of the audit."""

from __future__ import annotations

from posttrain.auditing.contamination import evaluation_set, rows_with_items
from posttrain.auditing.finding import excerpt
from posttrain.config.select import Decontaminate
from posttrain.curation.rows import Pool, Removed, Taken, Tools, everything


def decontaminate(settings: Decontaminate, pool: Pool, tools: Tools) -> Taken:
    """Removes each row in which a field of an evaluation set is found, and says which field, and how.

    Raises:
        SourceError: an evaluation set is not there, or holds no texts.
        MissingExtraError: it needs a package that is not installed.
    """
    corpus = pool.rows.corpus
    sets = [evaluation_set(name) for name in settings.against]  # all of them before the first is looked for
    found: dict[int, Removed] = {}
    texts = len(corpus.prompts) + len(corpus.responses)
    with tools.progress.phase("decontaminate", total=texts * len(sets), unit="texts") as phase:
        for against in sets:
            for row, way, field in rows_with_items(corpus, against, phase.advance):
                message = f"holds `{excerpt(against.fields[field])}` of {against.name} ({way})"
                # One line a row, of the first set that it holds; the others would say the same.
                found.setdefault(row, Removed(row, "contaminated", message))
    removed = [found[row] for row in pool.kept.tolist() if row in found]
    return everything(pool, removed)
