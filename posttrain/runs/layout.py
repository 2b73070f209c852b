"""Names inside a run folder, for who needs to know them and not what lies under them."""

TRACKING = "tracking"
"""The folder in a run's in which trackers without a server keep their files."""
RESERVED_NAMES = ("start", "evaluations", TRACKING)
"""Names that no stage may have; `start` holds what the first model scored before any training."""
ASKED = "asked.jsonl"
"""A stage's journal of what a teacher has answered: an attempt that begins anew keeps it, and asks nothing twice."""


def model_label(path: str) -> str:
    """A model by a short name: "/data/runs/mine/maths/model" is "maths", "/data/llama" is "llama"."""
    parts = path.rstrip("/").split("/")
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]
