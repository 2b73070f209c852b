"""`tokens` of a stage: rows that write them, what the checks say, the model that comes out, and online stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import posttrain as pt
from posttrain.config.online import Online
from posttrain.config.stages import DPO, SFT, Reward
from posttrain.errors import ConfigError, PosttrainError
from posttrain.models.folders.loading import load
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.session import train
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.prepare import prepare
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, tiny_model
from tests.online import loop_of, run, save_start

TOKENS = ["<tool>", {"text": "<|call|>", "special": True}]
LORA = {"kind": "lora", "rank": 2}
FEW: dict[str, Any] = {"steps": 2, "rows_per_step": 2, "held_out": 0, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"), tie_word_embeddings=True)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": f"<tool>{i}<tool>"}) + "\n" for i in range(6)))
    return path


def prepared(stage: Any, start: Any, data: Path, folder: Path) -> Any:
    ctx = StageContext(stage, start, StageFolder(folder), 0, Progress(), examples=pt.read(data))
    return prepare(ctx)


def finding(made: Any) -> Any:
    return next(check for check in made.preflight.checks if check.name == "tokens")


@pytest.mark.parametrize("adapter", [None, LORA])
def test_rows_are_cut_by_the_new_tokens(start: Path, rows: Path, tmp_path: Path, adapter: Any) -> None:
    made = prepared(SFT(tokens=TOKENS, adapter=adapter, **FEW), start, rows, tmp_path / "run")
    (new, call) = made.loaded.new_rows
    assert all(int((tree.branches[0].ids == new).sum()) == 2 for tree in made.inputs.rows)
    assert made.work.policy.causal_lm.get_input_embeddings().weight.shape[0] == call + 1
    check = finding(made)
    assert check.status == "warn" and "1 of 2 new tokens stand in no row: <|call|>" in check.detail


def test_nothing_is_said_of_tokens_that_are_all_used(start: Path, rows: Path, tmp_path: Path) -> None:
    made = prepared(SFT(tokens=["<tool>"], **FEW), start, rows, tmp_path / "run")
    assert finding(made).status == "pass"


def test_a_stage_without_tokens_says_nothing_of_them(start: Path, rows: Path, tmp_path: Path) -> None:
    made = prepared(SFT(**FEW), start, rows, tmp_path / "run")
    assert all(check.name != "tokens" for check in made.preflight.checks)


def test_a_template_that_writes_them(start: Path, rows: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(CHATML.replace("<|im_start|>", "<|call|>"))
    stage = SFT(tokens=TOKENS, encoding={"template": str(template)}, **FEW)
    made = prepared(stage, start, rows, tmp_path / "run")
    (_, call) = made.loaded.new_rows
    assert all(call in tree.prompt_ids.tolist() for tree in made.inputs.rows)


def test_a_special_one_in_a_text_is_found(start: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{i} <|call|>", "completion": "<tool>"}) + "\n" for i in range(3)]
    path.write_text("".join([*lines, json.dumps({"prompt": "a <tool>", "completion": "b"}) + "\n"]))
    stage = SFT(tokens=TOKENS, encoding={"special_tokens_in_text": "refuse"}, data={"path": str(path)}, **FEW)
    with pytest.raises(PosttrainError, match=r"<\|call\|>"):
        prepared(stage, start, path, tmp_path / "run")
    plain = SFT(tokens=["<tool>", "<|call|>"], encoding={"special_tokens_in_text": "refuse"}, **FEW)
    assert len(prepared(plain, start, path, tmp_path / "plain").inputs.rows) == 4


@pytest.mark.parametrize("adapter", [None, LORA])
def test_a_model_comes_out_that_has_them_and_the_next_stage_keeps_them(
    start: Path, rows: Path, tmp_path: Path, adapter: Any
) -> None:
    out = train(SFT(tokens=TOKENS, adapter=adapter, **FEW), start, rows, out=tmp_path / "run")
    model = out.load()
    before = load(start, tokens=pt.config.new_tokens.new_tokens(TOKENS))
    new = before.new_rows[0]
    assert model.tokenizer.encode("<tool>") == [new] and model.model.config.vocab_size == new + 2
    rows_then, rows_now = (one.model.get_input_embeddings().weight for one in (before, model))
    assert not torch.equal(rows_then[new], rows_now[new])
    assert torch.equal(rows_then[:new], rows_now[:new]) is (adapter is not None)
    # The next stage finds them there.
    made = prepared(SFT(tokens=TOKENS, **FEW), out.model, rows, tmp_path / "next")
    assert made.loaded.new_rows == () and "already" in made.loaded.notices[-1]


def test_a_loaded_model_brings_its_own(start: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gets no tokens more(.|\n)*pt\.load"):
        train(SFT(tokens=TOKENS, **FEW), pt.load(start), rows, out=tmp_path / "refused")
    loaded = pt.load(start, tokens=TOKENS, adapter=pt.LoRA(rank=2))
    made = prepared(SFT(tokens=TOKENS, **FEW), loaded, rows, tmp_path / "run")
    assert "1 of 2" in finding(made).detail


def test_the_reference_of_dpo_is_the_start_with_its_rows(start: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pair = [{"prompt": f"{i}?", "chosen": f"<tool>{i}", "rejected": "No."} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in pair))
    settings = {**FEW, "reference": {"kind": "adapter_off"}, "adapter": LORA}
    out = train(DPO(tokens=["<tool>"], **settings), start, path, out=tmp_path / "run")
    # The log-ratio to the start is 0 at step 1, so the loss is that of a coin.
    first = next(iter(StageFolder(out.folder / "dpo").metrics("train")))
    assert first.values["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_a_reward_model_reads_them(start: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pair = [{"prompt": f"{i}?", "chosen": f"<tool>{i}", "rejected": "No."} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in pair))
    settings = {**FEW, "adapter": LORA, "export": {"merge": False}}
    out = train(Reward(tokens=["<tool>"], **settings), start, path, out=tmp_path / "run")
    reward = pt.load_reward(out.folder / "reward" / "model")
    assert reward.score("1?", "<tool>1") != reward.score("1?", "<tool><tool>")


@pytest.mark.parametrize("adapter", [None, LORA])
def test_an_online_stage_samples_and_trains_them(start: Path, tmp_path: Path, adapter: Any) -> None:
    loop = loop_of(start, tmp_path / "run", "grpo", tokens=TOKENS, adapter=adapter, steps=2)
    before = {name: p.detach().clone() for name, p in loop.work.policy.model.named_parameters() if p.requires_grad}
    run(loop)  # each step syncs the weights, and a probe has to score alike on both sides
    moved = [n for n, p in loop.work.policy.model.named_parameters() if n in before and not torch.equal(before[n], p)]
    assert any("trainable_tokens_delta" in name or "embed_tokens" in name for name in moved)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adapter": "ia3"}, r"tokens(.|\n)*kind ia3(.|\n)*lora"),
        ({"adapter": "qlora"}, r"tokens(.|\n)*kind qlora"),
        ({"adapter": "prompt"}, r"tokens(.|\n)*kind prompt"),
        ({"adapter": "continue"}, r"goes on training has the rows(.|\n)*kind: lora"),
        ({"tokens": ["a", "a"]}, r"tokens\.1`(.|\n)*listed twice"),
        ({"tokens": [{"text": "a b"}]}, r"tokens\.0\.text`(.|\n)*white space"),
        ({"tokens": "<tool>"}, "tokens"),
    ],
)
def test_what_cannot_be_is_refused_with_the_recipe(settings: dict[str, Any], words: str) -> None:
    for kind in (SFT, lambda **given: Online("grpo", **given)):
        with pytest.raises(PosttrainError, match=words):
            kind(**{"tokens": TOKENS, **settings})


def test_a_tokenizer_that_has_a_word_as_text_does_not_make_it_special(rows: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    with pytest.raises(ConfigError, match="sft: tokens"):
        prepared(SFT(tokens=[{"text": "a", "special": True}], **FEW), tmp_path / "start", rows, tmp_path / "run")
