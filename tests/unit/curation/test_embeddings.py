"""Embeddings: TF-IDF against scikit-learn's, hidden states against a plain forward pass, columns, and the cache."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.auditing.tfidf import characters_of, tfidf
from posttrain.config.embeddings import ColumnEmbedding, PolicyEmbedding, SentenceEmbedding, TfidfEmbedding
from posttrain.curation.embeddings.cache import cached_vectors
from posttrain.curation.embeddings.column import column_vectors
from posttrain.curation.embeddings.embed import embed
from posttrain.curation.embeddings.policy import embedded_tree, policy_vectors
from posttrain.curation.embeddings.tfidf import tfidf_vectors
from posttrain.curation.rows import Pool, Rows, Tools
from posttrain.data.encode import Encoder
from posttrain.errors import ConfigError, DataError, MissingExtraError, RowError
from posttrain.models.tree.logprobs import Policy
from posttrain.types import Comparison, Demonstration, Feedback, Message, RowRef, StepwiseFeedback, Task
from tests.fixtures import byte_tokenizer, tiny_model

TEXTS = [
    "the cat sat on the mat",
    "The cat sat on a mat.",
    "a dog ran away from the cat",
    "numbers such as 12 and 7 add up",
    "",
    "猫は 好き",
]


def together(blocks: Any) -> np.ndarray:
    return np.concatenate(list(blocks))


def demonstration(prompt: str, answer: str, row: int = 1) -> Demonstration:
    return Demonstration((Message("user", prompt), Message("assistant", answer)), RowRef("chat.jsonl", row))


# ---------------------------------------------------------------- TF-IDF


def test_tfidf_has_the_cosines_of_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = TEXTS[:5]
    own = tfidf(texts)
    theirs = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+", dtype=np.float32)
    expected = theirs.fit_transform(texts)
    assert (own @ own.T).toarray() == pytest.approx((expected @ expected.T).toarray(), abs=1e-5)


def test_tfidf_of_one_text_by_hand():
    # "b b a" alone: idf is 1 for both, so that the weights are 1 + ln 2 and 1.
    (row,) = tfidf(["b b a"], longest=1).toarray()
    weights = sorted(row[row > 0].tolist())
    norm = ((1 + np.log(2)) ** 2 + 1) ** 0.5
    assert weights == pytest.approx([1 / norm, (1 + np.log(2)) / norm], rel=1e-6)


def test_character_ngrams_find_endings_and_blanks_count_once():
    similar = tfidf(["walking", "walked", "qqq"], unit="characters", shortest=2, longest=3)
    cosines = (similar @ similar.T).toarray()
    assert cosines[0, 1] > 0.2 and cosines[0, 2] == 0
    assert characters_of(["A  b\n"]).hash_W.tolist() == characters_of(["a b"]).hash_W.tolist()


def test_texts_in_blocks_are_those_at_once(monkeypatch):
    from posttrain.auditing import tfidf as module

    whole = tfidf(TEXTS).toarray()
    monkeypatch.setattr(module, "_BLOCK_CHARACTERS", 10)
    assert np.array_equal(tfidf(TEXTS).toarray(), whole)


def test_the_svd_keeps_cosines_where_it_keeps_all_dimensions_and_zeros_stay_zeros():
    texts = [f"{a} {b}" for a in ("red", "blue", "green") for b in ("house", "tree", "car")] + ["", "red house"]
    vectors, exact = together(tfidf_vectors(texts, TfidfEmbedding())), tfidf(texts)
    assert vectors.dtype == np.float32
    assert vectors @ vectors.T == pytest.approx((exact @ exact.T).toarray(), abs=1e-3)
    assert not vectors[9].any() and np.array_equal(vectors[0], vectors[10])
    assert together(tfidf_vectors(texts, TfidfEmbedding(dimensions=3))).shape == (11, 3)


def test_rows_in_another_order_have_the_same_vectors_also_from_a_sample():
    texts = [f"text {index % 7} about {index % 11} and {index}" for index in range(60)]
    settings = TfidfEmbedding(dimensions=5, fit_rows=20)
    vectors, backwards = together(tfidf_vectors(texts, settings)), together(tfidf_vectors(texts[::-1], settings))
    assert backwards[::-1] == pytest.approx(vectors, abs=1e-5)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="scikit-learn") as error:
        together(tfidf_vectors(TEXTS, TfidfEmbedding()))
    assert "posttrain[audit]" in error.value.remedy


# ---------------------------------------------------------------- hidden states


@pytest.fixture(scope="module")
def spoken() -> tuple[Any, Encoder]:
    tokenizer = byte_tokenizer(template="CHATML")
    return tiny_model("llama", vocab=len(tokenizer)), Encoder(tokenizer)


ROWS = [
    demonstration("Hi?", "Hello there."),
    demonstration("2 + 2?", "4", 2),
    demonstration("Name a colour.", "Blue", 3),
]


@torch.no_grad()
def by_hand(model: Any, encoder: Encoder, row: Demonstration, of: str, weighted: bool) -> np.ndarray:
    (tree,) = encoder.demonstration(row)
    asked = len(encoder.prompt(row.messages[:1]))
    ids = [*tree.prompt_ids.tolist(), *tree.branches[0].ids.tolist()]
    ids = ids[:asked] if of == "prompt" else ids
    states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].numpy()
    weights = np.arange(1, len(ids) + 1, dtype=np.float64) if weighted else np.ones(len(ids))
    if of == "answer":
        weights[:asked] = 0
    vector = (weights[:, None] * states).sum(axis=0)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("path", ["tree", "padded", "rows"])
@pytest.mark.parametrize("of", ["both", "prompt", "answer"])
@pytest.mark.parametrize("pooling", ["weighted", "mean"])
def test_policy_vectors_are_those_of_a_plain_forward_pass(spoken, path, of, pooling):
    model, encoder = spoken
    settings = PolicyEmbedding(kind="policy", of=of, pooling=pooling)
    vectors = together(policy_vectors(ROWS, settings, Policy(model, path), encoder))
    expected = [by_hand(model, encoder, row, of, pooling == "weighted") for row in ROWS]
    assert vectors == pytest.approx(np.array(expected), abs=2e-5)


def test_how_rows_are_batched_changes_nothing(spoken):
    model, encoder = spoken
    alone, beside = (
        together(
            policy_vectors(
                ROWS, PolicyEmbedding(kind="policy", tokens_at_once=tokens), Policy(model, "padded"), encoder
            )
        )
        for tokens in (1, 10_000)
    )
    assert alone == pytest.approx(beside, abs=1e-5)


def test_every_kind_of_row_is_its_prompt_and_its_best_answer(spoken):
    _, encoder = spoken
    user, ref = (Message("user", "Hi?"),), RowRef("rows.jsonl", 1)
    good, bad = (Message("assistant", "Hello there."),), (Message("assistant", "What."),)
    settings = PolicyEmbedding(kind="policy")
    expected = embedded_tree(demonstration("Hi?", "Hello there."), settings, encoder)
    for row in (
        Comparison(user, (bad, good), 1, ref),
        Comparison(user, (bad, good), 1, ref, (1, 0)),
        Feedback(user, good, True, ref),
        StepwiseFeedback(user, ("Hello there.",), (1.0,), ref),
        Task(user, "Hello there.", ref),
    ):
        assert embedded_tree(row, settings, encoder).key == expected.key
    without = embedded_tree(Task(user, None, ref), settings, encoder)
    assert without.num_trained == len(encoder.prompt(user))


def test_long_rows_are_cut_and_counted(spoken):
    _, encoder = spoken
    long = demonstration("question " * 30, "answer " * 3)
    cut: list[str] = []
    whole = embedded_tree(long, PolicyEmbedding(kind="policy", of="answer"), encoder)
    tree = embedded_tree(long, PolicyEmbedding(kind="policy", of="answer", max_length=40), encoder, cut)
    # The answer stays, and of the prompt what fits before it.
    assert tree.num_trained == whole.num_trained and tree.num_tokens == 41 and cut == ["chat.jsonl, row 1"]
    both = embedded_tree(long, PolicyEmbedding(kind="policy", max_length=40), encoder)
    assert both.num_trained == 40 and both.prompt_ids.tolist() == whole.prompt_ids.tolist()


# ---------------------------------------------------------------- columns and sentences


def rows_with(vectors: list[Any]) -> list[tuple[RowRef, Any]]:
    return [(RowRef("rows.jsonl", number), vector) for number, vector in enumerate(vectors, 1)]


def test_columns_are_brought_to_length_one():
    vectors = together(column_vectors(rows_with([[3, 4], [0, 0], [1e300, 0]]), "embedding"))
    assert vectors.tolist() == [pytest.approx([0.6, 0.8]), [0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("vector", "match"),
    [
        (None, "no embedding in `embeding`"),
        ("x", "is a string"),
        ([], "is a list"),
        ([1.0, float("nan")], "no finite number"),
        ([1.0, True], "no finite number"),
        ([1.0, 2.0, 3.0], "another length"),
    ],
)
def test_a_column_that_is_no_vector_names_its_row(vector, match):
    with pytest.raises(RowError, match=match) as error:
        together(column_vectors(rows_with([[1.0, 0.0], vector]), "embeding", ["messages", "embedding"]))
    assert str(error.value.where) == "rows.jsonl, row 2"
    if vector is None:
        assert error.value.remedy == "did you mean `embedding`?"


class FakeTransformer:
    """A text's vector is its count of a, b and c."""

    def __init__(self, folder: str, device: str, local_files_only: bool):
        assert local_files_only

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)


# ---------------------------------------------------------------- the cache, and the step's door


def pool_of(rows: list[Demonstration] | None = None) -> Pool:
    return Pool.of(Rows(rows or ROWS))


def test_vectors_are_computed_once_for_the_same_content(tmp_path, monkeypatch):
    pool, tools = pool_of(), Tools(cache=tmp_path)
    first = embed(TfidfEmbedding(), pool, tools).vectors
    assert isinstance(first, np.memmap) and len(list(tmp_path.glob("*.npy"))) == 1
    calls = []
    monkeypatch.setattr("posttrain.curation.embeddings.embed.tfidf_vectors", lambda *_: calls.append(1) or iter(()))
    assert np.array_equal(embed(TfidfEmbedding(), pool, tools).vectors, first) and not calls
    # Other settings, other rows in play, other rows: each is another content.
    fewer = Pool(pool.rows, pool.kept[:2])
    others = pool_of([*ROWS[:2], demonstration("Name a colour.", "Red", 3)])
    for settings, other in ((TfidfEmbedding(longest=1), pool), (TfidfEmbedding(), fewer), (TfidfEmbedding(), others)):
        with pytest.raises(AssertionError, match="0 vectors for"):  # asked anew, and the stand-in gives none
            embed(settings, other, tools)
    assert len(calls) == 3 and not list(tmp_path.glob(".*.npy"))


def test_a_cache_that_was_altered_is_refused(tmp_path):
    make = lambda: iter([np.eye(3, dtype=np.float32)])  # noqa: E731
    cached_vectors(tmp_path, "key", 3, make, [])
    path = next(tmp_path.glob("*.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="altered after they were written"):
        cached_vectors(tmp_path, "key", 3, make, [])


def test_a_writer_that_dies_leaves_no_vectors(tmp_path):
    def dying() -> Any:
        yield np.eye(3, dtype=np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_vectors(tmp_path, "key", 6, dying, [])
    assert not list(tmp_path.glob("embeddings-*"))
    assert cached_vectors(tmp_path, "key", 3, lambda: iter([np.eye(3, dtype=np.float32)]), []).shape == (3, 3)


def test_rows_without_words_are_counted():
    rows = [*ROWS, demonstration("???", "...", 4)]
    (note,) = embed(TfidfEmbedding(), pool_of(rows), Tools()).notes
    assert note.startswith("1 rows have nothing to compare")


def test_the_policy_is_the_one_that_is_trained_or_the_named_one(tmp_path):
    with pytest.raises(ConfigError, match="no policy is known here"):
        embed(PolicyEmbedding(kind="policy"), pool_of(), Tools())
    settings = PolicyEmbedding(kind="policy", max_length=8)
    tools = Tools(cache=tmp_path, model="embedded", device="cpu")
    embedded = embed(settings, pool_of(), tools)
    assert embedded.vectors.shape[0] == 3 and np.linalg.norm(embedded.vectors, axis=1) == pytest.approx([1] * 3)
    assert "embedded in part" in embedded.notes[0]
    assert embed(settings, pool_of(), tools).notes == embedded.notes  # out of the cache it is said again


def test_a_folder_of_sentence_transformers_is_part_of_the_key(tmp_path, monkeypatch):
    module: Any = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeTransformer
    module.__spec__ = types.SimpleNamespace(name="sentence_transformers")
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("1")
    settings, tools = SentenceEmbedding(kind="sentence_transformers", model=str(folder)), Tools(cache=tmp_path / "c")
    rows = [demonstration("aa", "b"), demonstration("c", "", 2)]
    vectors = embed(settings, pool_of(rows), tools).vectors
    assert vectors == pytest.approx(np.array([[2, 1, 0], [0, 0, 1]]) / np.sqrt([[5], [1]]))
    (folder / "weights").write_text("2")
    embed(settings, pool_of(rows), tools)
    assert len(list((tmp_path / "c").glob("*.npy"))) == 2


def test_columns_come_from_the_rows_as_their_file_has_them(tmp_path: Path):
    from posttrain.data.read import read
    from posttrain.data.write import write_jsonl

    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    write_jsonl(path, [{"messages": turns, "meta": {"vector": [0, n]}} for n in (1, -2)])
    pool = Pool.of(Rows(read(path)))
    assert embed(ColumnEmbedding(kind="column", column="meta.vector"), pool, Tools()).vectors.tolist() == [
        [0, 1],
        [0, -1],
    ]
    with pytest.raises(RowError, match="no embedding in `vector`"):
        embed(ColumnEmbedding(kind="column", column="vector"), pool, Tools())
