"""What prompts are asked for with: our own wording, so that a recipe needs none. In the manner of the papers that
`config/prompts.py` names, and none of their texts."""

from __future__ import annotations

from collections.abc import Mapping

EVOLUTIONS: Mapping[str, str] = {
    "constraint": "Add one more condition that an answer has to meet: a form, a limit, a material, a reader.",
    "deepen": "Ask for more depth: where it asks what something is, let it ask why, how far, or with what consequence.",
    "concretise": "Replace what is general in it by something particular: a name, a place, a number, an occasion.",
    "steps": "Change it so that an answer takes several steps of thought that build on one another.",
    "input": "Put material into it that an answer has to work on: a short table, a list, a piece of code, a passage.",
    "breadth": "Leave it, and write another request of its field that is asked less often, about as hard and long.",
}
"""How a prompt evolves, by name: five in depth and one in breadth, after Xu et al. 2023, arXiv:2304.12244, section
3.2."""

IN_BREADTH = "breadth"
"""The one that leaves its prompt behind: a new prompt, which need not hold what the old one asked."""

TASK_KINDS: Mapping[str, str] = {
    "request": "a request for help with something that this person does at work or at home",
    "question": "a question about the subject that this person knows best, which a beginner could not ask",
    "problem": "a problem with numbers or logic, with all that is needed to solve it, as it comes up for this person",
    "text": "a request for a text that this person needs, with who will read it and how long it should be",
}
"""What a persona asks for, by name: a description of the prompt."""

KEYWORDS: tuple[str, ...] = (
    *("image", "images", "picture", "pictures", "photo", "photos", "photograph", "drawing", "screenshot"),
    *("graph", "graphs", "chart", "plot", "diagram", "map", "video", "videos", "audio", "music", "song file"),
    *("attached", "attachment", "file", "files", "link below", "website", "url"),
)
"""Words of prompts that a model of texts cannot answer; the idea is Self-Instruct's (arXiv:2212.10560, section 2.2)."""
