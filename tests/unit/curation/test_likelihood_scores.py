"""ifd, perplexity and logprob: by hand on a model of two kinds of token, and against plain forward passes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import posttrain as pt
from posttrain.config.model_scores import IFDScore, LogProbScore, PerplexityScore
from posttrain.curation.rows import Pool, Rows, Tools
from posttrain.curation.scores import likelihood
from posttrain.curation.scores.likelihood import answer_ids, ifd_score, logprob_score, perplexity_score
from posttrain.curation.scores.scored import Scored
from posttrain.data.encode import Encoder
from posttrain.data.read import read
from posttrain.errors import ConfigError, NonFiniteError
from posttrain.types import Comparison, Task
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML", eos="<|im_end|>", pad_is_eos=True)
V = len(TOKENIZER)
NEWLINE, B = TOKENIZER.convert_tokens_to_ids("Ċ"), TOKENIZER.convert_tokens_to_ids("b")


def pool_of(*rows: dict[str, Any], **options: Any) -> Pool:
    return Pool.of(Rows(read(list(rows), scan=False, **options)))


def chat(prompt: str, answer: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer}


def saved(model: Any, folder: Path, tokenizer: Any = TOKENIZER) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After a line break, where CHATML's answers begin, "b" has the probability 1/2 and all other tokens the same;
    after any other token all V tokens have the same."""
    model = tiny_model("llama", vocab=V, rms_norm_eps=1e-12)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1)
            else:
                weight.zero_()
        model.model.embed_tokens.weight[:, 0] = 1
        model.model.embed_tokens.weight[NEWLINE] = torch.eye(32)[1]
        # RMS norm brings a row with a single 1 to sqrt(32); log(V - 1) there is half of the probability.
        model.lm_head.weight[B, 1] = math.log(V - 1) / math.sqrt(32)
    return saved(model, tmp_path_factory.mktemp("two_kinds"))


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_model("llama", vocab=V), tmp_path_factory.mktemp("random"))


def tools(model: Path, **options: Any) -> Tools:
    return Tools(model=model, device="cpu", **options)


def ifd(pool: Pool, given: Tools, **settings: Any) -> Scored:
    return ifd_score(IFDScore(kind="ifd", **settings), pool, given)


# ---------------------------------------------------------------- by hand


def test_ifd_of_two_rows_by_hand(two_kinds: Path) -> None:
    pool, even = pool_of(chat("Q", "bb"), chat("Q", "cb")), math.log(V)
    # "bb" after the prompt: 1/2, then 1/V. Alone, after the beginning token: 1/V twice.
    # "cb" after the prompt: "c" shares the other half with V - 2 tokens, then 1/V.
    first, second = (math.log(2) + even) / 2, (math.log(2 * (V - 1)) + even) / 2
    found = ifd(pool, tools(two_kinds))
    assert found.score_R.tolist() == pytest.approx([first / even, second / even], rel=1e-5)
    assert found.score_R[0] < 1 < found.score_R[1] and not found.missing
    of_perplexities = ifd(pool, tools(two_kinds), ratio="perplexity").score_R
    assert of_perplexities.tolist() == pytest.approx([math.exp(first - even), math.exp(second - even)], rel=1e-5)


def test_an_answer_alone_in_the_template_has_the_prompts_last_token_before_it(two_kinds: Path) -> None:
    # CHATML ends every prompt with a line break: the model tells no prompt from an empty one.
    found = ifd(pool_of(chat("Q", "bb"), chat("Q", "cb")), tools(two_kinds), alone="template")
    assert found.score_R.tolist() == pytest.approx([1, 1], rel=1e-6)


def test_perplexity_and_logprob_by_hand(two_kinds: Path) -> None:
    pool = pool_of(chat("Q", "bb"))
    given = tools(two_kinds)
    perplexity = perplexity_score(PerplexityScore(kind="perplexity"), pool, given).score_R
    assert perplexity.tolist() == pytest.approx([math.sqrt(2 * V)], rel=1e-5)
    mean = logprob_score(LogProbScore(kind="logprob"), pool, given).score_R
    total = logprob_score(LogProbScore(kind="logprob", per_token=False), pool, given).score_R
    assert [*mean, *total] == pytest.approx([-math.log(2 * V) / 2, -math.log(2 * V)], rel=1e-5)
    # The whole row is <|im_start|>user \n Q <|im_end|> \n <|im_start|>assistant \n b b <|im_end|>, 22 tokens with the
    # first; "b" stands behind one line break of three, and the other two are followed by "Q" and <|im_start|>.
    whole = perplexity_score(PerplexityScore(kind="perplexity", of="both"), pool, given).score_R
    assert whole.tolist() == pytest.approx(
        [math.exp((math.log(2) + 2 * math.log(2 * (V - 1)) + 19 * even()) / 22)], rel=1e-5
    )


def even() -> float:
    return math.log(V)


# ---------------------------------------------------------------- against plain forward passes


def plain_loss(model: Any, context: list[int], ids: list[int]) -> float:
    """Mean loss of `ids` after `context`, one text through the whole model in fp64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*context, *ids]])).logits[0].double()
    losses = torch.nn.functional.cross_entropy(logits[len(context) - 1 : -1], torch.tensor(ids), reduction="mean")
    return float(losses)


def test_a_batch_of_rows_is_as_each_row_by_itself(random: Path) -> None:
    rows = [chat(f"Say {n} things about {n * n}", "word " * n + f"{n}.") for n in range(1, 9)]
    rows += [{"messages": [*turns("Hi", "Hello."), *turns("And now?", "Now this.")]}]
    pool = pool_of(*[{"messages": turns(row["prompt"], row["completion"])} if "prompt" in row else row for row in rows])
    model, encoder = tiny_model("llama", vocab=V).double(), Encoder(TOKENIZER)
    found = ifd(pool, tools(random), tokens_at_once=150).score_R
    for row in range(len(rows)):
        prompt, answer = answer_ids(pool.rows.example(row), encoder)
        assert TOKENIZER.decode(answer) == pool.rows.corpus.responses[int(pool.rows.best_R[row])]
        expected = plain_loss(model, prompt, answer) / plain_loss(model, [encoder.bos_id], answer)
        assert found[row] == pytest.approx(expected, rel=1e-5)
    # Of several turns the last one counts, and all before it are its prompt.
    assert "And now?" in TOKENIZER.decode(prompt) and "Hello." in TOKENIZER.decode(prompt)
    logprob = logprob_score(LogProbScore(kind="logprob"), pool, tools(random)).score_R
    assert logprob[-1] == pytest.approx(-plain_loss(model, prompt, answer), rel=1e-5)


def turns(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_without_a_beginning_token_the_first_token_is_in_neither_loss(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("CHATML", bos=None, eos="<|im_end|>", pad_is_eos=True)
    model = tiny_model("llama", vocab=len(tokenizer))
    folder = saved(model, tmp_path, tokenizer)
    pool = pool_of(chat("Q", "abc"), chat("Q", "a"))
    found = ifd(pool, tools(folder))
    prompt, answer = answer_ids(pool.rows.example(0), Encoder(tokenizer))
    wide = model.double()
    expected = plain_loss(wide, [*prompt, answer[0]], answer[1:]) / plain_loss(wide, answer[:1], answer[1:])
    assert found.score_R[0] == pytest.approx(expected, rel=1e-5)
    assert found.missing == {1: likelihood.TOO_SHORT}


def test_of_a_comparison_the_best_answer_and_of_a_task_its_own(random: Path) -> None:
    pair = {"prompt": "Q", "chosen": "good", "rejected": "bad one"}
    task = {"prompt": "Q", "answer": "good"}
    rows = [(chat("Q", "good"), {}), (pair, {"kind": Comparison}), (task, {"kind": Task})]
    found = [ifd(pool_of(row, **options), tools(random)).score_R[0] for row, options in rows]
    assert found[0] == found[1] == found[2]


# ---------------------------------------------------------------- rows without a score


def test_rows_without_a_score_are_counted_by_reason(random: Path) -> None:
    pool = pool_of(chat("Q", "fine"), chat("Q" * 100, "too long"), chat("R", "fine"))
    given = tools(random)
    picked = pt.select(
        pool.rows.examples_read,
        steps=[{"kind": "score", "score": {"kind": "perplexity", "max_length": 60, "model": str(random)}}],
        progress=False,
    )
    found = perplexity_score(PerplexityScore(kind="perplexity", max_length=60), pool, given)
    assert np.isnan(found.score_R).tolist() == [False, True, False]
    assert found.missing == {1: "the row is longer than 60 tokens"}
    assert "no score `perplexity`: 1 rows: the row is longer than 60 tokens" in picked.steps[0].taken.notes


def test_rows_above_1_go_and_are_kept_where_that_is_asked_for(two_kinds: Path) -> None:
    rows = [chat("Q", "bb"), chat("Q", "cb")]

    def kept(**score: Any) -> list[str]:
        step = {"kind": "score", "score": {"kind": "ifd", "model": str(two_kinds), **score}, "keep": {"top": 1.0}}
        return [row["completion"] for row in pt.select(rows, steps=[step], progress=False).kept]

    assert kept() == ["bb"]
    assert kept(above_1="keep") == ["bb", "cb"]


def test_a_model_without_finite_numbers_is_an_error_and_no_score(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab=V)
    folder = saved(model, tmp_path)
    broken = likelihood.asked_model(str(folder), "ifd", Tools(device="cpu"))
    with torch.no_grad():
        broken.model.lm_head.weight[5] = math.nan
    policy = likelihood.Policy(broken.model, path="rows")
    trees = likelihood.conditional(pool_of(chat("Q", "b")).rows.example(0), broken)
    assert isinstance(trees, list)
    with likelihood.Said(None, "") as said, pytest.raises(NonFiniteError):
        likelihood.compute(policy, trees, said, 512)


def test_no_model_is_an_error_that_says_what_to_write() -> None:
    with pytest.raises(ConfigError) as caught:
        ifd(pool_of(chat("Q", "b")), Tools())
    assert "model:" in str(caught.value)


# ---------------------------------------------------------------- computed once


def test_a_kill_costs_one_batch_and_other_rows_cost_only_themselves(random: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("posttrain.curation.scores.asked.WINDOW", 2)
    rows = [chat(f"Q{n}", f"answer {n}") for n in range(6)]
    given = tools(random, cache=tmp_path)
    computed: list[int] = []
    real = likelihood.compute

    def counted(policy: Any, trees: Any, said: Any, tokens: int) -> int:
        if len(computed) == 2:
            raise KeyboardInterrupt
        done = real(policy, trees, said, tokens)
        computed.append(done)
        return done

    monkeypatch.setattr(likelihood, "compute", counted)
    with pytest.raises(KeyboardInterrupt):
        ifd(pool_of(*rows), given)
    monkeypatch.setattr(likelihood, "compute", lambda *args: computed.append(real(*args)) or computed[-1])
    computed.clear()
    score = ifd(pool_of(*rows), given).score_R
    assert computed[:2] == [0, 0] and computed[2] > 0, "four of six rows were computed before"
    computed.clear()
    # Other rows in another order, and another score of the same losses: nothing is computed.
    again = ifd(pool_of(*rows[::-1][:3], rows[0]), given).score_R
    assert again.tolist() == [score[5], score[4], score[3], score[0]]
    perplexity_score(PerplexityScore(kind="perplexity"), pool_of(*rows), given)
    assert not any(computed)
