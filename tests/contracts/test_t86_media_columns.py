"""T86: images, audio and video of a row are refused by name, and `<image>` never trains as text.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from typing import Any

import pytest

import posttrain as pt
from posttrain.errors import RowError

U, A = {"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A cat."}
ROWS: list[dict[str, Any]] = [
    {"messages": [U, A]},
    {"conversations": [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "A cat."}]},
    {"prompt": "What?", "completion": "A cat."},
    {"prompt": "What?", "chosen": "A cat.", "rejected": "A dog."},
    {"instruction": "What?", "output": "A cat."},
    {"prompt": "What?", "answer": "cat"},
    {"prompt": "What?"},
    {"prompt": "What?", "completion": "A cat.", "label": True},
]
USED = [["1.jpg"], "1.jpg", {"bytes": b"\x89PNG", "path": None}, [{"bytes": None, "path": "1.jpg"}], 3]
EMPTY = [None, [], "", [None], {}, {"bytes": None, "path": None}, float("nan"), [[]]]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("column", ["image", "images", "audio", "audios", "video", "videos", "Images"])
def test_a_media_column_in_use_is_refused(row: dict[str, Any], column: str) -> None:
    for value in USED:
        with pytest.raises(RowError, match=f"the row carries '{column}'") as caught:
            pt.read([{**row, column: value}])
        assert caught.value.reason == "content_not_text"
    for value in EMPTY:
        assert len(pt.read([{**row, column: value}])) == 1
    mixed = pt.read([row, {**row, column: "1.jpg"}], bad_rows="skip")
    assert mixed.counts.skipped == {"content_not_text": 1}


@pytest.mark.parametrize("mark", ["<image>", "<video>", "<audio>", "<|image|>", "<|vision_start|>x", "<|image_pad|>"])
def test_a_placeholder_is_refused(mark: str) -> None:
    text = f"{mark}What is this?"
    for row in (
        {"messages": [{**U, "content": text}, A]},
        {"messages": [{**U, "content": [{"type": "text", "text": text}]}, A]},
        {"messages": [{**U, "content": f"Look here:\n{mark}"}, A]},
        {"prompt": text, "completion": "A cat."},
        {"question": text, "answer": "cat"},
        {"instruction": text, "output": "A cat."},
        {"prompt": [{**U, "content": text}], "chosen": "A cat.", "rejected": "A dog."},
    ):
        with pytest.raises(RowError, match="where an image, audio or video was") as caught:
            pt.read([row])
        assert caught.value.reason == "content_not_text"


@pytest.mark.parametrize(
    "text",
    [
        "Close <video> with </video>.",
        "<image><url>a.png</url></image>",
        "Which tag is older, <image> or <img>?",
        "Start it with: docker run <image>",
        "a < image > b",
        "<images>",
    ],
)
def test_html_and_words_are_text(text: str) -> None:
    assert len(pt.read([{"messages": [{**U, "content": text}, {**A, "content": text}]}])) == 1


def test_beside_an_empty_column_a_placeholder_is_refused_wherever_it_stands() -> None:
    row = {"messages": [{**U, "content": "Compare <image> with a dog."}, A]}
    assert len(pt.read([row])) == 1
    with pytest.raises(RowError, match="'images' is empty"):
        pt.read([{**row, "images": []}])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("image_path", "a/1.jpg"),
        ("img", ["1.png", "2.png"]),
        ("image_url", "https://host/pictures?id=3"),
        ("pixel_values", [[0.1, 0.2], [0.3, 0.4]]),
        ("Audio_File", "x.WAV"),
        ("screenshot", "data:image/png;base64," + "A" * 9000),
        ("page", {"bytes": b"\x89PNG", "path": None}),
    ],
)
def test_a_media_column_of_another_name_is_refused(column: str, value: Any) -> None:
    with pytest.raises(RowError, match=f"the row carries '{column}'"):
        pt.read([{**ROWS[0], column: value}])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("image_caption", "A cat on a mat."),
        ("num_images", 2),
        ("has_image", False),
        ("image_path", None),
        ("imagery", "1.jpg"),
        ("source", "page-1.png"),
        ("sizes", [[1, 2], [3, 4]]),
    ],
)
def test_a_column_that_only_speaks_of_media_is_no_media(column: str, value: Any) -> None:
    assert len(pt.read([{**ROWS[0], column: value}])) == 1
