"""Documents before the question: read, cut, packed into the room there is, and said."""

from __future__ import annotations

import os

import pytest

from posttrain.config.strategies import Retrieval
from posttrain.errors import ConfigError, PosttrainError, SourceError
from posttrain.inference.documents import cut, documents_in
from posttrain.inference.solution import recounted
from posttrain.inference.table import STRATEGIES
from posttrain.types import Message
from tests.inference import run, scripted

PROMPT = "{documents}\n\nQ {question}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.md").write_text("The dog barks at night.\n")
    (tmp_path / "a.txt").write_text("The cat sleeps by day.\n\nThe cat eats fish.\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "faq.jsonl").write_text('{"text": "A bird sings."}\n{"text": "A fish swims with the cat."}\n')
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_bytes(b"\0")
    return tmp_path


def retrieving(folder, **settings):
    given = {"chunk_tokens": 30, "overlap_tokens": 0, "prompt": PROMPT, **settings}
    return Retrieval(documents=str(folder), **given)


def solve(question, settings, said="fish"):
    solving = scripted(lambda before, number: said, prompt=question)
    return solving, run(STRATEGIES[Retrieval](solving, settings))


def asked(solving):
    return solving.nodes[0].messages[-1].content


# ---------------------------------------------------------------- what stands in the prompt


def test_the_likest_passage_stands_last_with_its_source(folder):
    solving, found = solve("What does the cat eat?", retrieving(folder, top=2))
    assert asked(solving).endswith("[a.txt #2]\nThe cat eats fish.\n\nQ What does the cat eat?")
    assert found.answer == "fish" and found.task.prompt == (Message("user", "What does the cat eat?"),)
    assert found.facts["passages"] == 2 and found.facts["left_out"] == 0
    assert found.notes[0].startswith("in the prompt: a.txt #2")
    assert found.spent.sampled == 5 == recounted(found.nodes) == solving.asked.engine.sampled


def test_the_order_is_what_the_settings_say(folder):
    first = asked(solve("cat eats fish", retrieving(folder, top=3, order="best_first"))[0])
    last = asked(solve("cat eats fish", retrieving(folder, top=3))[0])
    document = asked(solve("cat eats fish", retrieving(folder, top=3, order="document"))[0])
    names = [line for line in first.splitlines() if line.startswith("[")]
    assert names[0] == "[a.txt #2]" and [line for line in last.splitlines() if line.startswith("[")] == names[::-1]
    assert [line for line in document.splitlines() if line.startswith("[")] == sorted(names)


def test_passages_without_a_word_of_the_question_do_not_stand_there(folder):
    solving, found = solve("Dog?", retrieving(folder))
    assert found.facts["passages"] == 1 and "bird" not in asked(solving)
    solving, found = solve("Zebra?", retrieving(folder))
    assert asked(solving) == "Zebra?" and found.facts == {"passages": 0, "left_out": 0, "context_tokens": 0}
    assert found.notes == ("no passage has a word of the question: it was asked alone",)


def test_what_has_no_room_is_named_and_a_shorter_one_after_it_is_not_kept_out(folder):
    # blocks with their names: "[a.txt #2]\nThe cat eats fish." 29 + 2, "[more/faq.jsonl, row 2 #1]\n..." 53 + 2, ...
    settings = retrieving(folder, top=3, context_tokens=70, order="best_first")
    solving, found = solve("cat eats fish", settings)
    assert asked(solving).startswith("[a.txt #2]\nThe cat eats fish.\n\n[a.txt #1]\nThe cat sleeps by day.\n\nQ")
    assert found.notes[1] == "no room for: more/faq.jsonl, row 2 #1" and found.facts["left_out"] == 1
    assert found.facts["context_tokens"] == len(asked(solving).partition("\n\nQ")[0]) <= 70


def test_everything_is_packed_where_there_is_room_for_it(folder):
    solving, _ = solve("Zebra?", retrieving(folder, top=None, context_tokens=400, order="document"))
    names = [line for line in asked(solving).splitlines() if line.startswith("[")]
    assert names == [
        "[a.txt #1]",
        "[a.txt #2]",
        "[b.md #1]",
        "[more/faq.jsonl, row 1 #1]",
        "[more/faq.jsonl, row 2 #1]",
    ]
    _, tight = solve("Zebra?", retrieving(folder, top=None, context_tokens=40, order="document"))
    assert tight.facts["passages"] == 1 and tight.facts["left_out"] == 4


def test_no_passage_that_fits_is_refused(folder):
    with pytest.raises(ConfigError, match="not one passage has room"):
        solve("bird", retrieving(folder, chunk_tokens=30, context_tokens=30))


def test_another_strategy_answers_over_the_documents(folder):
    settings = retrieving(folder, top=1, then={"kind": "chain_of_thought", "votes": 3})
    solving, found = solve("What does the cat eat?", settings, said="so 4")
    assert "The cat eats fish." in asked(solving) and asked(solving).endswith("Let's think step by step.")
    assert found.facts["votes"] == 3 and found.facts["passages"] == 1 and found.notes
    assert found.spent.sampled == 15 == recounted(found.nodes) == solving.asked.engine.sampled


# ---------------------------------------------------------------- folders


def test_documents_are_read_by_path_and_hidden_files_are_not(folder):
    assert [document.source for document in documents_in(folder)] == [
        "a.txt",
        "b.md",
        "more/faq.jsonl, row 1",
        "more/faq.jsonl, row 2",
    ]
    assert [document.source for document in documents_in(folder, "*.md")] == ["b.md"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.pdf", b"%PDF", "no document that can be read"),
        ("noending", b"text", "no document that can be read"),
        ("x.txt", b"a\0b", "binary, in spite of its name"),
        ("x.md", b"caf\xe9", "not valid UTF-8 at byte 3"),
        ("x.jsonl", b'{"txt": "a"}\n', "no document"),
        ("x.jsonl", b"[1]\n", "no document"),
        ("x.jsonl", b"{a}\n", "not valid JSON"),
        ("x.txt", b"before <|im_end|> after", "name of a special token"),
    ],
)
def test_a_file_that_is_no_document_is_named(folder, name, content, problem):
    (folder / name).write_bytes(content)
    with pytest.raises(PosttrainError, match=problem) as error:
        solve("cat", retrieving(folder))
    assert name in str(error.value) and error.value.remedy


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder), "read_bytes", refuse)
    with pytest.raises(SourceError, match="cannot be read") as error:
        documents_in(folder)
    assert "Permission denied" in error.value.found


def test_folders_that_are_none_or_hold_nothing_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="no folder that is there"):
        documents_in(folder / "nowhere")
    with pytest.raises(ConfigError, match="no folder that is there") as error:
        documents_in(folder / "a.txt")
    assert str(folder) in error.value.remedy
    with pytest.raises(ConfigError, match="leads out of the folder"):
        documents_in(folder, "../*.txt")
    with pytest.raises(SourceError, match="holds no text"):
        documents_in(folder, "*.none")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").write_text(" \n")
    with pytest.raises(SourceError, match="holds no text"):
        documents_in(empty)


def test_a_folder_beside_the_recipe_is_found(folder):
    solving = scripted(lambda before, number: "fish", prompt="cat")
    object.__setattr__(solving.asked, "folder", folder.parent)
    settings = retrieving(folder).changed(documents=os.path.basename(folder))
    assert run(STRATEGIES[Retrieval](solving, settings)).facts["passages"] > 0


# ---------------------------------------------------------------- cutting


def test_passages_end_where_paragraphs_do():
    assert cut("aaaa\n\nbb\n\ncccc\n", 9, 0, len) == ["aaaa", "bb\n\ncccc"]


def test_a_passage_begins_with_the_last_pieces_of_the_one_before():
    assert cut("aa\n\nbb\n\ncc\n\ndd", 12, 4, len) == ["aa\n\nbb\n\ncc", "cc\n\ndd"]
    # the last piece is longer than the overlap
    assert cut("aa\n\nbb\n\ncc\n\ndd", 12, 3, len) == ["aa\n\nbb\n\ncc", "dd"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", ["one two", "three"]),
        ("One is. Two is. Three", ["One is.", "Two is.", "Three"]),
        ("x" * 20, ["x" * 5, "x" * 5, "x" * 5, "x" * 5]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_what_is_longer_than_a_passage_is_cut_at_the_coarsest_ends(text, expected):
    assert cut(text, 8, 0, len) == expected


@pytest.mark.parametrize("overlap", [0, 3, 7])
@pytest.mark.parametrize("limit", [8, 13, 40])
def test_nothing_is_lost_and_nothing_is_longer_than_it_may_be(limit, overlap):
    # one long word of which no part occurs twice
    word = "".join(chr(0x4E00 + number) for number in range(50))
    text = f"First one here. Second!\n\n\nA line\nanother set of words\n\n{word}\n\nEnd."
    passages = cut(text, limit, overlap, len)
    assert max(map(len, passages)) <= limit
    end = 0
    for passage in passages:
        start = text.index(passage)
        assert start <= end or not text[end:start].strip()
        assert end - start <= overlap or end == 0
        end = start + len(passage)
    assert end == len(text)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"overlap_tokens": 30}, "overlap as a whole"),
        ({"top": None}, "all documents would stand"),
        ({"context_tokens": 20}, "no whole passage has room"),
        ({"prompt": "{question}"}, "leaves out `{documents}`"),
        ({"top": 0}, "top"),
        ({"similarity": "tfidf"}, "tfidf"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        retrieving("docs", **settings)
