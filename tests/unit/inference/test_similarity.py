"""BM25 against the formula by hand, the choice of diverse texts, and embeddings by a stand-in for the package."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest

from posttrain.config.strategies.demonstrations import EmbeddingSimilarity
from posttrain.errors import ConfigError, MissingExtraError
from posttrain.inference.similarity import BM25, diverse, likest, similarity_of, words

TEXTS = ["the cat sat on the mat", "a dog", "the cat and the dog ran", ""]


def by_hand(question, at, texts=TEXTS, k1=1.5, b=0.75):
    """Equation by equation, without an index."""
    split = [text.split() for text in texts]
    mean = sum(map(len, split)) / len(split)
    score = 0.0
    for word in question.split():
        holding = sum(word in one for one in split)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        count = split[at].count(word)
        if not count:
            continue
        score += idf * count * (k1 + 1) / (count + k1 * (1 - b + b * len(split[at]) / mean))
    return score


@pytest.mark.parametrize("question", ["cat", "the dog", "the the cat", "zebra", ""])
@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.0, 0.0), (1.2, 1.0)])
def test_scores_are_those_of_the_formula(question, k1, b):
    found = BM25(TEXTS, k1, b).scores(question)
    assert found == pytest.approx([by_hand(question, at, k1=k1, b=b) for at in range(len(TEXTS))], abs=1e-12)


def test_one_number_worked_out():
    # "dog" is in 2 of 4 texts: idf = ln(1 + 2.5 / 2.5) = ln 2; 2 words of a mean of 14 / 4
    expected = math.log(2) * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 2 / 3.5))
    assert BM25(TEXTS).scores("dog")[1] == pytest.approx(expected, abs=1e-12)


def test_a_word_that_most_texts_have_never_counts_against_one():
    assert min(BM25(["a b", "a c", "a d"]).scores("a")) > 0


def test_words_are_runs_of_letters_and_digits_and_single_characters_where_there_are_no_blanks():
    assert words("The 2nd snake_case: 17+25, Straße!") == ["the", "2nd", "snake", "case", "17", "25", "strasse"]
    assert words("東京is大") == ["東", "京", "is", "大"] and words("한국") == ["한", "국"]


def test_equal_scores_keep_their_order():
    assert likest([0.0, 2.0, 2.0, 1.0]) == [1, 2, 3, 0]


def test_diverse_texts_are_like_the_question_and_unlike_each_other():
    texts = ["cat sat", "cat sat", "cat ran", "dog"]
    index = BM25(texts)
    assert diverse(index, "cat sat", 2, range(4), 0.0) == [0, 1]
    # the copy is worth 0.3 - 0.7 = -0.4, "cat ran" 0.3 * 0.4 - 0.7 * 0.4, "dog" nothing and costs nothing
    assert diverse(index, "cat sat", 2, range(4), 0.7) == [0, 3]
    assert diverse(index, "cat sat", 9, [1, 3], 0.5) == [1, 3] and diverse(index, "zebra", 1, range(4), 0.5) == [0]


def test_every_choice_has_the_largest_margin():
    texts = ["a b", "a c", "b c", "a b c", "d"]
    index, question, diversity = BM25(texts), "a b", 0.4
    chosen = diverse(index, question, 4, range(5), diversity)
    relevance = [score / max(index.scores(question)) for score in index.scores(question)]
    for place in range(4):
        before = chosen[:place]

        def margin(at, before=before):
            alike = max((index.between(one)[at] for one in before), default=0.0)
            return (1 - diversity) * relevance[at] - diversity * alike

        assert chosen[place] == max((at for at in range(5) if at not in before), key=lambda at: (margin(at), -at))


# ---------------------------------------------------------------- embeddings


class FakeTransformer:
    """A text's vector is its count of a, b and c, at length 1."""

    def __init__(self, folder, device, local_files_only):
        assert local_files_only and device == "cpu"
        if folder.endswith("broken"):
            raise OSError("no modules.json")

    def encode(self, texts, *, normalize_embeddings, show_progress_bar, convert_to_numpy):
        assert normalize_embeddings and convert_to_numpy and not show_progress_bar
        counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeTransformer
    module.__spec__ = types.SimpleNamespace(name="sentence_transformers")
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def embedded(folder, texts=("aa", "ab", "c")):
    return similarity_of(EmbeddingSimilarity(kind="embeddings", model="m"), texts, folder=str(folder))


def test_embeddings_are_compared_by_their_cosine(package, tmp_path):
    index = embedded(tmp_path)
    assert index.scores("aaa") == pytest.approx([1, 2**-0.5, 0]) and index.between(1) == pytest.approx([2**-0.5, 1, 0])
    assert diverse(index, "ab", 2, range(3), 0.5) == [1, 0]


def test_embeddings_without_the_package_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match="sentence-transformers") as error:
        embedded(tmp_path)
    assert "posttrain[embed]" in error.value.remedy


def test_a_name_is_never_fetched_and_a_folder_without_a_model_is_refused(package, tmp_path):
    with pytest.raises(ConfigError, match="no folder that is there"):
        embedded("all-MiniLM-L6-v2")
    (tmp_path / "broken").mkdir()
    with pytest.raises(ConfigError, match="cannot be loaded") as error:
        embedded(tmp_path / "broken")
    assert "no modules.json" in error.value.found
