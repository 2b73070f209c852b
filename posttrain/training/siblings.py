"""A recipe's run as one of a sweep: stages that another run has finished are linked, and training may pause at a rung.

    within = Within(Siblings(Path("runs/mine-sweep")), Pause("dpo", share=1 / 9, suite="sums"))
    run_within(recipe, within, progress=progress)       # raises Paused where a rung was reached

Both are about where and when something is computed, never about what: a linked stage has the identity that this run
would have given it, and a paused one goes on from its checkpoint as after Ctrl-C.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from posttrain.config import Recipe
from posttrain.runs.folder import RunFolder, remove_results
from posttrain.runs.progress import Progress
from posttrain.runs.shared import Siblings, link_stage, link_start
from posttrain.training.pausing import Pause
from posttrain.training.stages.kind import StageContext


@dataclass(frozen=True, slots=True)
class Within:
    """What a run shares with the others of its sweep; Within() is a run that stands alone."""

    siblings: Siblings | None = None
    pause: Pause | None = None

    @contextmanager
    def turn(self, ctx: StageContext[Any]) -> Iterator[None]:
        """Around everything that a stage does; before it, a sibling's finished stage is linked in."""
        identity = ctx.identity
        held = (
            nullcontext() if self.siblings is None or identity is None else self.siblings.turn(identity.quick, ctx.say)
        )
        with held:
            if self.siblings is not None and identity is not None:
                self._link(self.siblings, ctx, identity.quick)
            yield

    def _link(self, siblings: Siblings, ctx: StageContext[Any], identity: str) -> None:
        folder = ctx.folder
        if folder.exists:
            record = folder.stage()
            # Its own result stays, whether it is current or is still to be set aside; so does a checkpoint of its own.
            if record.status == "done" or record.output is not None or folder.checkpoints.exists():
                return
        source = siblings.finished(folder.name, identity)
        if source is None or source.path.resolve() == folder.path.resolve():
            return
        if folder.path.exists():  # an attempt that failed before its first checkpoint
            folder.close()
            remove_results([folder.path])
        link_stage(source, folder)
        ctx.say(f"the same stage as in {source.path.parent.name}, which has finished it: shared, not trained again")

    def link_start(self, run: RunFolder, recipe: Recipe, progress: Progress) -> None:
        """The start's answers, where a run with the same model, seed and suites has them."""
        if self.siblings is None or run.start.path.exists() or not recipe.evaluate.suites:
            return
        source = self.siblings.start(_start_key(recipe))
        if source is not None and source.path.resolve() != run.start.path.resolve():
            link_start(source, run.start)
            progress.say(f"start: the same questions as in {source.path.parent.name}: its answers are shared")

    def note_start(self, run: RunFolder, recipe: Recipe) -> None:
        if self.siblings is not None and recipe.evaluate.suites:
            self.siblings.note_start(_start_key(recipe), run.path.name)


ALONE = Within()


def _start_key(recipe: Recipe) -> str:
    """Who is asked what with which seed. Loose on purpose: that the answers fit is checked by their own identity when
    they are used, this only finds them."""
    content = [recipe.model, recipe.seed, recipe.evaluate.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()
