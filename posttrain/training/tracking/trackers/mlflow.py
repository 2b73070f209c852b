"""MLflow: a data base in `tracking/mlflow`, or a server by its address.

mlflow ui --backend-store-uri sqlite:///runs/mine/tracking/mlflow/mlflow.db
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from posttrain.training.tracking.trackers.tracker import TrackedStage, Tracker, described, unit_of

STATUSES = {"done": "FINISHED", "interrupted": "KILLED"}
LONGEST_VALUE = 5000
"""Characters of a parameter or tag that every store takes."""
AT_ONCE = 100
"""Parameters of one request."""


class MlflowTracker:
    def __init__(self, stage: TrackedStage, settings: Mapping[str, Any]):
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        stage.folder.mkdir(parents=True, exist_ok=True)
        uri = settings["uri"] or f"sqlite:///{(stage.folder / 'mlflow.db').resolve()}"
        # A client and no `mlflow.start_run`: the active run of a user's own program stays what it was.
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(name := settings["experiment"] or stage.run)
        place = None if settings["uri"] else (stage.folder / "artifacts").resolve().as_uri()
        number = experiment.experiment_id if experiment else self._client.create_experiment(name, place)
        found = self._client.search_runs([number], f"tags.posttrain_id = '{stage.id}'") if stage.resumed else []
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {"posttrain_id": stage.id, "stage": stage.stage}
            self._run = self._client.create_run(number, run_name=stage.name, tags=tags).info.run_id
            config = [Param(key, value[:LONGEST_VALUE]) for key, value in stage.config.items()]
            for start in range(0, len(config), AT_ONCE):
                self._client.log_batch(self._run, params=config[start : start + AT_ONCE])
        self._described: set[str] = set()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(1000 * time.time())
        new = [name for name in values if name not in self._described and unit_of(name)]
        self._described.update(values)
        self._client.log_batch(
            self._run,
            metrics=[Metric(name, value, now, step) for name, value in values.items()],
            tags=[RunTag(f"unit/{name}", described(name)[0]) for name in new],
        )

    def text(self, step: int, name: str, text: str) -> None:
        self._client.set_tag(self._run, name, f"step {step}: {text}"[:LONGEST_VALUE])

    def flush(self) -> None:
        """It writes as it is told."""

    def close(self, status: str) -> None:
        self._client.set_terminated(self._run, STATUSES.get(status, "FAILED"))


def open_mlflow(stage: TrackedStage, settings: Mapping[str, Any]) -> Tracker:
    return MlflowTracker(stage, settings)
