"""T84: text that a tokenizer cannot write.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from posttrain.config import SFT
from posttrain.data.encode import CountedPrompts, Encoder, EncoderSettings
from posttrain.data.round_trip import LossyTokenizerError, RoundTrips
from posttrain.data.tokens import Tokens
from posttrain.embedded import MODEL
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.reading import RowInputs
from posttrain.training.stages.rows import row_inputs
from posttrain.training.stages.starts import resolve_start
from posttrain.types import Comparison, Demonstration, Message, RowRef
from tests.fixtures import byte_tokenizer, tiny_model

TEMPLATE = (
    "{%- for m in messages -%}{{ '<|' + m.role + '|>' + m.content + '<|eos|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
SPECIALS = ["<|eos|>", "<|user|>", "<|assistant|>"]
WORDS = ["what is the answer hello world plain words only and so on"] * 4


def _fast(tokenizer: Tokenizer, unknown: str | None) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eos|>", unk_token=unknown)
    fast.chat_template = TEMPLATE
    return fast


def metaspace_bpe(unknown: str | None) -> PreTrainedTokenizerFast:
    """No bytes to fall back on: drops what it does not know, or writes the unknown token."""
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    specials = [*SPECIALS, *([unknown] if unknown else [])]
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=120, special_tokens=specials))
    return _fast(tokenizer, unknown)


def word_piece(decoder: bool = True) -> PreTrainedTokenizerFast:
    """Uncased: lower case, accents off, blanks around punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if decoder:
        tokenizer.decoder = decoders.WordPiece()
    alphabet = sorted("abcdefghijklmnopqrstuvwxyz0123456789.,?!'")
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=[*SPECIALS, "[UNK]"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(WORDS, trainer)
    return _fast(tokenizer, "[UNK]")


def example(answer: str, question: str = "what is it") -> Demonstration:
    return Demonstration((Message("user", question), Message("assistant", answer)), RowRef("rows.jsonl", 1))


@pytest.mark.parametrize("unknown", [None, "<unk>"])
@pytest.mark.parametrize(
    ("answer", "lost"), [("the answer is 42.", 3), ("hello wörld", 1), ("hello kuku", 4), ("hello world", 0)]
)
def test_characters_that_are_lost_are_counted(unknown: str | None, answer: str, lost: int) -> None:
    encoded = Encoder(metaspace_bpe(unknown)).example(example(answer))
    assert encoded.round_trip.lost == lost
    assert encoded.findings == (("lost_text",) if lost else ())


def test_prompts_and_every_side_are_read_back() -> None:
    encoder = Encoder(metaspace_bpe(None))
    sides = ((Message("assistant", "42"),), (Message("assistant", "the answer is 7"),))
    pair = Comparison((Message("user", "what is 6?"),), sides, 0, RowRef("pairs.jsonl", 1))
    assert encoder.example(pair).round_trip.lost == 2 + 2 + 1
    assert encoder.checked_prompt(pair.prompt).round_trip.lost == 2


@pytest.mark.parametrize("text", ["Grüße 你好 🙂", "a  b\n\tc", " x ", "é vs e\u0301", "don't"])
def test_byte_level_tokenizers_lose_nothing(text: str) -> None:
    for tokenizer in (byte_tokenizer("CHATML"), byte_tokenizer("CHATML", merges=[("h", "e")])):
        encoded = Encoder(tokenizer).example(example(text + "."))
        assert encoded.findings == () and encoded.round_trip.lost == 0


@pytest.mark.parametrize(
    ("answer", "findings"),
    [
        ("hello, don't worry.", ()),  # blanks around punctuation alone
        ("Hello", ("altered_by_tokenizer",)),
        ("é", ("altered_by_tokenizer",)),
        ("hello\nworld", ("altered_by_tokenizer",)),
        ("hello 你好", ("lost_text",)),
    ],
)
@pytest.mark.parametrize("decoder", [True, False])
def test_a_tokenizer_that_alters_loses_nothing(answer: str, findings: tuple[str, ...], decoder: bool) -> None:
    found = Encoder(word_piece(decoder)).example(example(answer)).findings
    assert ("lost_text" in found) == ("lost_text" in findings)
    assert found == findings or not decoder  # without a decoder little can be said of what is altered


def test_nfkc_and_folded_blanks_are_alterations() -> None:
    tokenizer = byte_tokenizer("CHATML")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("  ", " "), normalizers.Lowercase()]
    )
    for text in ("ｆｕｌｌ ½", "a  b", "ABC"):
        encoded = Encoder(tokenizer).example(example(text))
        assert encoded.findings == ("altered_by_tokenizer",) and encoded.round_trip.lost == 0


def test_the_embedded_tokenizer_writes_everything() -> None:
    encoded = Encoder(AutoTokenizer.from_pretrained(MODEL)).example(example("Grüße 42 你好 🙂"))
    assert encoded.findings == () and encoded.round_trip.lost == 0


def test_a_text_that_names_the_unknown_token_loses_nothing() -> None:
    tokens = Tokens(metaspace_bpe("<unk>"))
    assert RoundTrips(tokens).of("hello <unk>", tokens.ids("hello <unk>")).lost == 0


# ---------------------------------------------------------------- before training


GOOD, HOLES = '{"prompt": "what is it", "completion": "the answer"}', '{"prompt": "what is 6?", "completion": "42"}'


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lossy")
    tokenizer = metaspace_bpe(None)
    tiny_model(vocab=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def loaded(start: Path, folder: Path, rows: list[str], **encoding: Any) -> RowInputs:
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows) + "\n")
    stage = SFT(data=str(path), steps=1, held_out=0, encoding=encoding)
    ctx = StageContext(stage, start, StageFolder(folder / "stage"), 0, Progress())
    return row_inputs(ctx, resolve_start(stage, start, torch.device("cpu")))


def test_rows_with_holes_are_refused_before_training(start: Path, tmp_path: Path) -> None:
    with pytest.raises(LossyTokenizerError, match="2 of 8 rows") as caught:
        loaded(start, tmp_path, [GOOD] * 6 + [HOLES] * 2)
    assert "8 of" in caught.value.found and "rows.jsonl, row 7" in caught.value.found
    assert "`encoding: {lossy: allow}`" in caught.value.remedy


def test_they_train_where_that_is_asked_for_and_are_counted(start: Path, tmp_path: Path) -> None:
    inputs = loaded(start, tmp_path, [GOOD] * 6 + [HOLES] * 2, lossy="allow")
    (check,) = inputs.proofs
    assert check.status == "warn" and "8 of" in check.detail and "rows.jsonl, row 7" in check.detail
    assert inputs.counts.lost_characters == 8 and inputs.counts.findings == {"lost_text": 2}


def test_a_row_in_a_hundred_is_a_finding(start: Path, tmp_path: Path) -> None:
    inputs = loaded(start, tmp_path, [GOOD] * 99 + [HOLES])
    (check,) = inputs.proofs
    assert check.status == "warn" and "4 of" in check.detail
    clean = loaded(start, tmp_path / "clean", [GOOD] * 8)
    assert clean.proofs[0].status == "pass"


def test_prompts_of_tasks_are_counted_too() -> None:
    prompts = CountedPrompts(Encoder(metaspace_bpe(None)))
    for text in ["what is it"] * 50 + ["what is 6?"]:
        prompts.prompt((Message("user", text),))
    with pytest.raises(LossyTokenizerError, match="1 of 51 rows"):
        prompts.require_written()
    allowed = CountedPrompts(Encoder(metaspace_bpe(None), EncoderSettings(lossy="allow")))
    allowed.prompt((Message("user", "what is 6?"),))
    allowed.require_written()
