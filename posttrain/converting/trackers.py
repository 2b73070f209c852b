"""Trackers of the other tools as `log: {to: [...]}`.

Weights & Biases goes online there where nothing is said, and offline here; so its mode is always written. Who asks it
is never said by a recipe: a key that stands in a file or on a command line is left out: it belongs in WANDB_API_KEY.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.config.trackers import TRACKER_KINDS
from posttrain.converting.draft import Draft

ONLINE = "online"
UNTOLD = "no tracker is asked for: figures are in `metrics.jsonl` of the stage's folder and in `report.html`"
DEFAULT_PROJECT = "huggingface"
"""What transformers writes into every saved configuration, whoever tracks."""
Tracker = tuple[dict[str, Any], tuple[str, ...]]
"""({"kind": "wandb", "project": "mine"}, keys of the file that say it)"""


def read_report_to(draft: Draft, *, wandb_project: str | None = None) -> None:
    """`report_to` of transformers: a name, a list of names, `all` or `none`.

    Args:
        wandb_project: the tool's key for the project of Weights & Biases, where it has one.
    """
    named = draft.get("report_to", [])
    found: list[Tracker] = []
    for name in dict.fromkeys(str(one) for one in (named if isinstance(named, list) else [named])):
        if name == "all":
            draft.miss("report_to", "`all` means the trackers that happen to be installed", _named())
        elif name not in TRACKER_KINDS:
            if name != "none":
                draft.miss("report_to", f"`{name}` is no tracker here", _named())
        elif name == "wandb":
            project = draft.get(wandb_project) if wandb_project else None
            keys = ("report_to", *([wandb_project] if wandb_project and project else []))
            found.append((_filled("wandb", project=project, mode=ONLINE), keys))
        elif name == "trackio" and str(draft.get("project", DEFAULT_PROJECT)) != DEFAULT_PROJECT:
            found.append((_filled("trackio", project=draft.get("project")), ("report_to", "project")))
        else:
            found.append((_filled(name), ("report_to",)))
    _put(draft, found, ("report_to", "project", *([wandb_project] if wandb_project else [])))


def read_axolotl_trackers(draft: Draft) -> None:
    """Axolotl's: a project of wandb, an experiment of mlflow or a project of trackio switches it on."""
    found: list[Tracker] = []
    mode = str(draft.get("wandb_mode", ONLINE))
    if mode != "disabled" and (draft.has("wandb_project") or draft.has("use_wandb")):
        keys: tuple[str, ...] = ("wandb_project", "wandb_entity", "wandb_mode", "use_wandb")
        settings = {"project": draft.get("wandb_project"), "entity": draft.get("wandb_entity")}
        found.append((_filled("wandb", **settings, mode="offline" if mode == "offline" else ONLINE), keys))
    if draft.has("mlflow_experiment_name") or draft.has("use_mlflow"):
        keys = ("mlflow_experiment_name", "mlflow_tracking_uri", "use_mlflow")
        settings = {"experiment": draft.get("mlflow_experiment_name"), "uri": draft.get("mlflow_tracking_uri")}
        found.append((_filled("mlflow", **settings), keys))
    if draft.has("trackio_project_name") or draft.has("use_trackio"):
        keys = ("trackio_project_name", "use_trackio")
        found.append((_filled("trackio", project=draft.get("trackio_project_name")), keys))
    if draft.has("use_tensorboard"):
        found.append((_filled("tensorboard"), ("use_tensorboard",)))
    _put(draft, found, AXOLOTL_TRACKERS.split())


AXOLOTL_TRACKERS = (
    "wandb_project wandb_entity wandb_mode use_wandb mlflow_experiment_name mlflow_tracking_uri use_mlflow "
    "trackio_project_name use_trackio use_tensorboard"
)


def read_openrlhf_trackers(draft: Draft) -> None:
    """OpenRLHF's: a key of wandb, or a folder of TensorBoard, switches it on."""
    found: list[Tracker] = []
    if draft.has("logger.wandb.key"):
        settings = {"project": draft.get("logger.wandb.project"), "entity": draft.get("logger.wandb.org")}
        keys = ("logger.wandb.key", "logger.wandb.project", "logger.wandb.org")
        found.append((_filled("wandb", **settings, mode=ONLINE), keys))
        if str(draft.get("logger.wandb.key")).lower() != "true":
            draft.assume("WANDB_API_KEY in the environment holds the key that the script passes: recipes hold none.")
    if draft.has("logger.tensorboard_dir"):
        found.append((_filled("tensorboard"), ("logger.tensorboard_dir",)))
    _put(draft, found, OPENRLHF_TRACKERS.split())


OPENRLHF_TRACKERS = "logger.wandb.key logger.wandb.project logger.wandb.org logger.tensorboard_dir"


def _filled(kind: str, **settings: Any) -> dict[str, Any]:
    return {"kind": kind, **{key: value for key, value in settings.items() if value is not None}}


def _put(draft: Draft, found: Sequence[Tracker], keys: Sequence[str]) -> None:
    if found:
        trackers = [tracker["kind"] if len(tracker) == 1 else tracker for tracker, _ in found]
        draft.put("log.to", trackers, *(key for _, own in found for key in own if draft.has(key)))
    for key in keys:
        draft.leave(key, UNTOLD)


def _named() -> str:
    return f"name them: `log: {{to: [...]}}` takes {', '.join(TRACKER_KINDS)}"
