"""The runner: what it writes, what it keeps from the start, and that nobody notices that it was there."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Lfm2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from posttrain.config.suites import MatchSuite, PerplexitySuite, Sampling
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ConfigError, ResumeError
from posttrain.evaluate.asking import EvaluatedModel
from posttrain.evaluate.runner import evaluate_model, evaluate_suites
from posttrain.evaluate.suites import AnswerSuite, Question
from posttrain.evaluate.suites.match import matches
from posttrain.evaluate.suites.perplexity import FixedAnswer, FixedAnswerScorer, Perplexity, questions_key
from posttrain.rollout.native import NativeEngine
from posttrain.runs.files import read_json, read_jsonl
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.evaluation import Figure, SuiteMeanings, SuiteScores
from posttrain.sampling import SamplingDistribution
from posttrain.types import RowRef
from tests.fixtures import byte_tokenizer, chat, tiny_model

TOKENIZER = byte_tokenizer("CHATML")
SHORT = SamplingDistribution(temperature=0.0, max_new_tokens=6)
QUESTIONS = [Question(chat(text), "a", RowRef("q.jsonl", i + 1)) for i, text in enumerate(["Hi", "Who?", "1 + 1?"])]
SUITES = [
    AnswerSuite("names", QUESTIONS, "match", matches("[a-z]"), SHORT),
    Perplexity("drift", QUESTIONS, SHORT),
]


def model(seed: int = 0) -> torch.nn.Module:
    return tiny_model(vocab=len(TOKENIZER), seed=seed)


def nats_of(scored: torch.nn.Module, prompt: list[int], ids: list[int]) -> float:
    with torch.no_grad():
        logits = scored(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return -float(torch.log_softmax(logits.double(), dim=-1).gather(1, torch.tensor(ids)[:, None]).sum())


def test_what_is_written(tmp_path: Path) -> None:
    found = evaluate_suites(EvaluatedModel.of(model(), TOKENIZER), SUITES, tmp_path)
    assert list(found) == ["names", "drift"]
    assert list(found["names"]) == ["match", "length", "cut_share", "empty_share", "distinct_1", "distinct_2"]
    assert all(
        set(score.to_json()) == {"value", "low", "high", "n"} for suite in found.values() for score in suite.values()
    )
    records = read_jsonl(tmp_path / "evaluations" / "names.jsonl")
    assert [record["prompt"] for record in records] == ["Hi", "Who?", "1 + 1?"]
    assert all(set(r) == {"prompt", "completion", "answer", "score", "tokens", "finish"} for r in records)
    hits = [record["score"] for record in records]
    assert found["names"]["match"].value == sum(hits) / 3
    assert hits == [float(any(c.isascii() and c.islower() for c in record["completion"])) for record in records]
    assert found["names"]["cut_share"].value == sum(record["finish"] == "length" for record in records) / 3
    assert found["names"]["length"].value == pytest.approx(sum(record["tokens"] for record in records) / 3)
    json.dumps(SuiteScores(found).to_json(), allow_nan=False)


def test_what_the_start_answered_before_there_were_stop_strings_is_kept() -> None:
    encoder = Encoder(TOKENIZER)
    before = questions_key(Perplexity("drift", [], SamplingDistribution(max_new_tokens=6)), encoder)
    assert before.startswith("9c16ef2828bf299b")
    assert before != questions_key(
        Perplexity("drift", [], SamplingDistribution(max_new_tokens=6, stop=("x",))), encoder
    )


def test_answers_are_judged_and_written_without_their_stop_string(tmp_path: Path) -> None:
    lower = tuple("abcdefghijklmnopqrstuvwxyz")
    judged: list[str] = []

    def judge(text: str, _: Question) -> float:
        judged.append(text)
        return 1.0

    sampling = replace(SHORT, max_new_tokens=40, temperature=1.0, stop=lower)
    evaluate_suites(
        EvaluatedModel.of(model(), TOKENIZER), [AnswerSuite("names", QUESTIONS, "match", judge, sampling)], tmp_path
    )
    records = read_jsonl(tmp_path / "evaluations" / "names.jsonl")
    assert {record["finish"] for record in records} == {"stop_string"}
    assert [record["completion"] for record in records] == judged
    assert not any(letter in text for text in judged for letter in lower)


def test_the_starts_own_answers_are_kept_and_scored_again_id_by_id(tmp_path: Path) -> None:
    start, later = tmp_path / "start", tmp_path / "sft"
    before = evaluate_suites(EvaluatedModel.of(model(), TOKENIZER), SUITES[1:], start)["drift"]
    assert before["perplexity_change"] == Figure(0.0, 0.0, 0.0, 3)
    kept = read_jsonl(start / "baseline" / "drift.jsonl")[1:]
    tokens = sum(len(line["ids"]) for line in kept)
    for line in kept:
        assert line["nats"] == pytest.approx(nats_of(model(), line["prompt_ids"], line["ids"]), abs=1e-4)
    assert before["perplexity"].value == pytest.approx(math.exp(sum(line["nats"] for line in kept) / tokens))

    other = model(seed=1)
    after = evaluate_suites(EvaluatedModel.of(other, TOKENIZER), SUITES[1:], later, baseline=start)["drift"]
    nats = sum(nats_of(other, line["prompt_ids"], line["ids"]) for line in kept)
    assert after["perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    change = after["perplexity"].value / before["perplexity"].value - 1
    assert after["perplexity_change"].value == pytest.approx(change, rel=1e-5)
    texts = [[line["completion"] for line in read_jsonl(f / "evaluations" / "drift.jsonl")] for f in (start, later)]
    assert texts[0] == texts[1]
    assert not (later / "baseline").exists()


def test_given_answers_are_scored_as_training_encodes_them(tmp_path: Path) -> None:
    asked = EvaluatedModel.of(model(), TOKENIZER)
    found = evaluate_suites(asked, [Perplexity("given", QUESTIONS, SHORT, answers="given")], tmp_path)["given"]
    line = read_jsonl(tmp_path / "baseline" / "given.jsonl")[1]
    assert line["prompt_ids"] == asked.encoder.prompt(QUESTIONS[0].prompt)
    assert asked.encoder.tokens.decode(line["ids"]) == "a<|im_end|>"
    assert found["perplexity"].n == 3


def test_a_start_that_is_missing_or_was_asked_otherwise_is_refused(tmp_path: Path) -> None:
    asked = EvaluatedModel.of(model(), TOKENIZER)
    with pytest.raises(ResumeError, match="answers are missing"):
        evaluate_suites(asked, SUITES[1:], tmp_path / "sft", baseline=tmp_path / "start")
    evaluate_suites(asked, SUITES[1:], tmp_path / "start")
    changed = [Perplexity("drift", QUESTIONS[:2], SHORT)]
    with pytest.raises(ResumeError, match="asked other questions"):
        evaluate_suites(asked, changed, tmp_path / "sft", baseline=tmp_path / "start")


def test_several_answers_per_prompt(tmp_path: Path) -> None:
    sampling = SamplingDistribution(temperature=1.0, max_new_tokens=4)
    suite = AnswerSuite("several", QUESTIONS, "match", matches("[a-z]"), sampling, samples_per_prompt=5)
    found = evaluate_suites(EvaluatedModel.of(model(), TOKENIZER), [suite], tmp_path)["several"]
    records = read_jsonl(tmp_path / "evaluations" / "several.jsonl")
    assert len(records) == 15
    assert found["match"].n == 3
    assert found["match"].value == pytest.approx(sum(record["score"] for record in records) / 15)


# ---------------------------------------------------------------- as if nobody had asked


def careless_judge(answer: str, asked: Question) -> float:
    random.random(), np.random.rand(), torch.rand(3)
    return 1.0


def train(evaluate: bool, out: Path) -> torch.Tensor:
    """Three steps with dropout, so that a moved random stream or a left-over eval mode changes the weights."""
    torch.manual_seed(0)
    trained = tiny_model(vocab=len(TOKENIZER), attention_dropout=0.3).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    ids = torch.arange(24).view(2, 12)
    for step in range(3):
        trained(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if evaluate:
            suites = [AnswerSuite("careless", QUESTIONS, "match", careless_judge, SHORT), SUITES[1]]
            evaluate_suites(EvaluatedModel.of(trained, TOKENIZER), suites, out / str(step))
    return torch.cat([parameter.detach().flatten() for parameter in trained.parameters()])


def test_training_goes_on_bit_for_bit_as_without_evaluation(tmp_path: Path) -> None:
    assert torch.equal(train(evaluate=True, out=tmp_path), train(evaluate=False, out=tmp_path))


# ---------------------------------------------------------------- recipes


def recipe_suites(folder: Path) -> list[MatchSuite | PerplexitySuite]:
    path = folder / "prompts.jsonl"
    path.write_text('{"prompt": "Hi"}\n{"prompt": "Who?"}\n')
    sampling = Sampling(max_new_tokens=5)
    return [
        MatchSuite(name="names", kind="match", prompts=str(path), pattern="a", sampling=sampling),
        PerplexitySuite(name="drift", kind="perplexity", prompts=str(path), sampling=sampling),
    ]


def test_a_suite_is_not_asked_again_while_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites, folder = recipe_suites(tmp_path), StageFolder(tmp_path / "start")
    scored = model()
    first = evaluate_model(scored, suites, folder, baseline=folder.path, tokenizer=TOKENIZER)
    assert folder.document(SuiteScores).suites == first
    asked: list[int] = []
    generate = NativeEngine.generate

    def counted(engine: NativeEngine, prompts: list, *args: object, **options: object) -> object:
        asked.append(len(prompts))
        return generate(engine, prompts, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(NativeEngine, "generate", counted)
    assert evaluate_model(scored, suites, folder, baseline=folder.path, tokenizer=TOKENIZER) == first
    assert asked == []
    more = [suites[0].model_copy(update={"name": "more"}), *suites]
    assert list(evaluate_model(scored, more, folder, baseline=folder.path, tokenizer=TOKENIZER)) == [
        "more",
        "names",
        "drift",
    ]
    assert asked == [2]
    later = StageFolder(tmp_path / "sft")
    with torch.no_grad():
        scored.lm_head.weight.mul_(0.5)
    evaluate_model(scored, suites, later, baseline=folder.path, tokenizer=TOKENIZER)
    assert asked == [2, 2]  # the match suite; the perplexity suite scores what the start said
    evaluate_model(scored, suites, later, baseline=folder.path, tokenizer=TOKENIZER)
    assert asked == [2, 2]
    kept = folder.path / "baseline" / "drift.jsonl"
    kept.write_text(kept.read_text().replace('"nats": ', '"nats": 1'))
    changed = evaluate_model(scored, suites, later, baseline=folder.path, tokenizer=TOKENIZER)
    assert changed["drift"]["perplexity_change"].value < -0.5  # the start's answers changed, so it is asked again
    assert set(read_json(later.path / "evaluations" / "identity.json")) == {"names", "drift"}


def test_a_goal_is_recorded_and_asks_nothing_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites, folder, scored = recipe_suites(tmp_path), StageFolder(tmp_path / "start"), model()
    meanings = folder.path / "evaluations" / "metrics.json"
    first = evaluate_model(scored, suites, folder, baseline=folder.path, tokenizer=TOKENIZER)
    assert not meanings.exists()

    def refused(*_: object, **__: object) -> object:
        raise AssertionError("asked again")

    monkeypatch.setattr(NativeEngine, "generate", refused)
    aimed = [suites[0].model_copy(update={"goal": 0.8}), suites[1]]
    assert evaluate_model(scored, aimed, folder, baseline=folder.path, tokenizer=TOKENIZER) == first
    recorded = SuiteMeanings.from_json(read_json(meanings)).suites
    # The figure that the suite is asked for has the goal; its length and its cut answers have none.
    assert {name: said.goal for name, said in recorded["names"].items()} == {"match": 0.8}
    evaluate_model(scored, suites, folder, baseline=folder.path, tokenizer=TOKENIZER)
    assert not meanings.exists()


def test_a_folder_is_evaluated_as_the_model_in_it(tmp_path: Path) -> None:
    suites = recipe_suites(tmp_path)
    model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    start, again = StageFolder(tmp_path / "start"), StageFolder(tmp_path / "again")
    from_folder = evaluate_model(tmp_path / "model", suites, start, baseline=start.path)
    assert evaluate_model(model(), suites, again, baseline=again.path, tokenizer=TOKENIZER) == from_folder


def test_another_template_asks_again_and_later_models_are_scored_on_the_same_ids(tmp_path: Path) -> None:
    suites = recipe_suites(tmp_path)
    start, later = StageFolder(tmp_path / "start"), StageFolder(tmp_path / "sft")
    raw, chatml = EncoderSettings(template="raw"), EncoderSettings(template="chatml")
    ask = {"folder": start, "baseline": start.path, "tokenizer": TOKENIZER}
    before = evaluate_model(model(), suites, **ask, encoding=chatml)
    kept = read_jsonl(start.path / "baseline" / "drift.jsonl")
    assert evaluate_model(model(), suites, **ask, encoding=raw) != before
    asked_raw = read_jsonl(start.path / "baseline" / "drift.jsonl")
    assert asked_raw[1]["prompt_ids"] == Encoder(TOKENIZER, raw).prompt(chat("Hi")) != kept[1]["prompt_ids"]
    after = evaluate_model(model(), suites, later, baseline=start.path, tokenizer=TOKENIZER, encoding=chatml)
    assert after["drift"]["perplexity_change"].value == pytest.approx(0.0, abs=1e-6)


def test_the_device_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = recipe_suites(tmp_path)
    model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    start = StageFolder(tmp_path / "start")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # auto would take it; the recipe says cpu
    evaluate_model(tmp_path / "model", suites, start, baseline=start.path, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    again = StageFolder(tmp_path / "again")
    with pytest.raises(ConfigError, match="there is none here"):
        evaluate_model(tmp_path / "model", suites, again, baseline=again.path, device="cuda")


# ---------------------------------------------------------------- scoring


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_scores_are_those_of_full_forwards_in_the_answers_order(arch: str) -> None:
    scored = tiny_model(arch)
    rng = random.Random(0)
    answers = [
        FixedAnswer(tuple(rng.choices(range(97), k=rng.randrange(1, 20))), tuple(rng.choices(range(97), k=n)), "length")
        for n in (9, 1, 30, 4, 2, 17)
    ]
    found = FixedAnswerScorer(scored).nats(answers)
    expected = [nats_of(scored, list(answer.prompt_ids), list(answer.ids)) for answer in answers]
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_model_that_trees_cannot_serve_is_scored_in_rows() -> None:
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    scored = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in scored.parameters():
            parameter.normal_(0, 0.3)
    answers = [FixedAnswer((1, 2, 3), (4, 5, 6), "length"), FixedAnswer((7,), (8, 9), "length")]
    expected = [nats_of(scored, list(answer.prompt_ids), list(answer.ids)) for answer in answers]
    assert FixedAnswerScorer(scored).nats(answers) == pytest.approx(expected, abs=1e-4)
