"""The colours of the report, light and dark, as CSS custom properties.

Chosen is blue and rejected orange: the pair stays apart under all common colour vision deficiencies, and the two also
differ in their labels everywhere. Text colours keep a contrast of 4.5 to 1 with what they stand on (WCAG AA).
"""

from __future__ import annotations

LIGHT = {
    "page": "#f6f6f5",
    "surface": "#ffffff",
    "sunken": "#f3f3f1",
    "line": "#e4e4de",
    "line-strong": "#c6c6be",
    "ink": "#1a1c20",
    "ink-2": "#4a4f58",
    "ink-3": "#676c75",
    "accent": "#0a736e",
    "accent-tint": "#e3f2f0",
    "second": "#7443a8",
    "chosen": "#1d5fb8",
    "chosen-tint": "#e6effa",
    "rejected": "#ad4b08",
    "rejected-tint": "#fcefe3",
    "good": "#17754a",
    "good-tint": "#e5f4eb",
    "warn": "#8a5800",
    "warn-tint": "#fcf2da",
    "bad": "#b3261e",
    "bad-tint": "#fcebe9",
}

DARK = {
    "page": "#0e1013",
    "surface": "#16191e",
    "sunken": "#1d2127",
    "line": "#2a2f37",
    "line-strong": "#454c58",
    "ink": "#e7e9ed",
    "ink-2": "#b3b9c3",
    "ink-3": "#8f96a2",
    "accent": "#45c4ba",
    "accent-tint": "#12302e",
    "second": "#c39bf0",
    "chosen": "#76abff",
    "chosen-tint": "#182a45",
    "rejected": "#f29a55",
    "rejected-tint": "#3a2413",
    "good": "#52c48d",
    "good-tint": "#132d20",
    "warn": "#e0b04a",
    "warn-tint": "#312710",
    "bad": "#ff8078",
    "bad-tint": "#3a1a19",
}


def custom_properties() -> str:
    """The palette as CSS: the reader's choice (`data-theme` on the root) goes before what the system prefers."""
    light, dark = _declarations("light", LIGHT), _declarations("dark", DARK)
    # On paper, which is no screen, the page is light whatever was chosen: dark pages waste ink and fade.
    return (
        f":root{{{light}}}\n"
        f"@media screen and (prefers-color-scheme: dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{{dark}}}}}\n"
    )


def _declarations(scheme: str, colours: dict[str, str]) -> str:
    return f"color-scheme:{scheme};" + "".join(f"--{name}:{colour};" for name, colour in colours.items())
