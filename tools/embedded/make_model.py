"""Make the embedded model: text, tokenizer, training, card. Everything follows from the seed.

    python -m tools.embedded.make_model               # rows, model and card; ~6 minutes on 2 idle cores
    python -m tools.embedded.make_model --data-only   # the row files alone, seconds

The order of floating-point sums differs between machines, so another machine makes a model of the same
quality with other weights; text, tokenizer and row files come out the same everywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.embedded import MODEL
from tools.embedded import chat, leaks, long_sums
from tools.embedded.text import ASSISTANT, BOS, END, EOS, PAD, SYSTEM, USER, WRONG_SHARE, documents

HERE = MODEL.parent
"""The package's own folder: what ships is made in place."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the embedded model knows the roles system, user and assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the shipped model was made with."""

    seed: int = 0
    documents: int = 100_000
    tokenizer_documents: int = 10_000
    """The tokenizer is trained on the first of the documents."""
    vocabulary: int = 1536
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 512
    context: int = 512
    row: int = 256
    """Tokens in one training row; documents are laid end to end and cut."""
    rows_per_step: int = 8
    steps: int = 1263
    """Updates; the text has more, and what is left of it is not read."""
    learning_rate: float = 3e-3
    matrix_learning_rate: float = 0.02
    warmup_steps: int = 50
    final_ratio: float = 0.02
    weight_decay: float = 0.01
    precision: str = "bf16"
    """bf16 autocast halves the time where the processor has it; fp32 works everywhere."""


# ---------------------------------------------------------------- tokenizer


def make_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose digits stand alone: 17 + 25 is 1 7 ␣+ ␣ 2 5, which makes sums learnable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    marks = [PAD, BOS, EOS, SYSTEM, USER, ASSISTANT, END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=marks,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_without_marks(text, marks) for text in texts), trainer)
    begin = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, END],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _without_marks(text: str, marks: list[str]) -> str:
    for mark in marks:
        text = text.replace(mark, "\n")
    return text


def encode_corpus(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All documents as one flat array of ids, each between <|bos|> and <|eos|>."""
    encodings = tokenizer.backend_tokenizer.encode_batch([text + EOS for text in texts])
    return np.concatenate([np.asarray(encoding.ids, dtype=np.uint16) for encoding in encodings])


# ---------------------------------------------------------------- model


def new_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def new_optimizers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms: twice the progress per token of AdamW alone."""
    embedding = model.get_input_embeddings().weight
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2 and parameter is not embedding]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": [embedding], "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    muon = torch.optim.Muon(
        matrices,
        lr=settings.matrix_learning_rate,
        weight_decay=settings.weight_decay,
        momentum=0.95,
        adjust_lr_fn="original",
    )
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return [muon, adamw]


def rate_at(step: int, steps: int, settings: Settings) -> float:
    """Factor on both learning rates: warm-up, then a cosine."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (settings.final_ratio + (1 - settings.final_ratio) * cosine)


def train(model: LlamaForCausalLM, ids: np.ndarray, settings: Settings) -> list[float]:
    """Reads shuffled rows, each once; every process takes its share of a step. Returns the loss of every step.

    Processes with one thread each wait for one another once a step, threads of one process at every product of
    matrices: on a machine that others use too, processes are the faster by far.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    rows = torch.from_numpy(ids[: len(ids) // settings.row * settings.row].astype(np.int64)).view(-1, settings.row)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed))]
    optimizers = new_optimizers(model, settings)
    steps = min(settings.steps, len(rows) // settings.rows_per_step)
    start, losses = time.monotonic(), []
    model.train()
    for step in range(steps):
        batch = rows[step * settings.rows_per_step : (step + 1) * settings.rows_per_step]
        mine = batch[rank::world]
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = model(input_ids=mine, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), mine[:, 1:].flatten())
        loss.backward()
        losses.append(average_gradients(model, loss.detach()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = rate_at(step, steps, settings)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 and rank == 0:
            seconds = time.monotonic() - start
            speed = (step + 1) * batch.numel() / seconds
            mean = sum(losses[-50:]) / len(losses[-50:])
            print(f"step {step}/{steps} loss {mean:.3f} {speed:.0f} tokens/s {seconds:.0f} s", flush=True)
    return losses


def average_gradients(model: LlamaForCausalLM, loss: torch.Tensor) -> float:
    """Replaces the gradients by their means over the processes; returns the mean of the losses."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([loss.view(1), *(gradient.flatten() for gradient in gradients)])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, flat[1:].split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))
    return flat[0].item()


def train_process(rank: int, world: int, folder: Path, settings: Settings) -> None:
    """One of the processes: reads tokenizer and ids from the folder; the first one writes the model there."""
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    model = new_model(settings, tokenizer)
    losses = train(model, np.load(folder / "ids.npy"), settings)
    if rank == 0:
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "losses.json").write_text(json.dumps(losses))
    distributed.destroy_process_group()


# ---------------------------------------------------------------- what is written

CARD = """---
license: apache-2.0
language: en
library_name: transformers
tags: [base-model, tiny, synthetic-text]
---

# The embedded model of posttrain

A base language model of {parameters:.1f} million parameters, small enough to ship inside a Python package and to
post-train in seconds on a laptop. It is there to show and to test post-training; it is of no use for anything else.

## What it is

Llama architecture with tied embeddings, in the sizes of the table below. Byte-level BPE, digits always alone. Weights
are stored in bfloat16; load them in float32 to train.

It is a *base* model: asked a question, it continues with more questions. The tokenizer has a chat template with one
mark per role (`<|system|>`, `<|user|>`, `<|assistant|>`) and one that ends a turn (`<|end|>`). The base text has these
marks around lists of questions in a few documents, so that their embeddings are trained, but the model has seen no
answer between them. The text it was trained on gives it no name.

## How it was made

In a checkout of the repository of posttrain (the package itself has the model, not what made it),

    python -m tools.embedded.make_model

writes the text from a seed, trains the tokenizer, and trains the model (Muon for matrices, AdamW for the rest,
warm-up and cosine). It ended after {steps:,} steps of {per_step:,} tokens, {read:.0%} of the text, with a loss of
{loss:.3f} nats per token (mean of the last 50 steps). {remark}

| setting | value |
|---|---|
{table}

## Data

{documents} documents, {tokens} tokens, all of it written by templates of this project: statements of everyday facts,
lists of questions, quizzes, stories, talk, counting, comparing, and arithmetic with and without its working. No other
text was used. {wrong:.0%} of the direct sums and half that share of the worked ones are wrong on purpose: a base model
is imperfect.

No held-out prompt of `data/heldout_*.jsonl` occurs in the text, in the demonstrations, preferences or tasks, neither
exactly nor in other case, punctuation or signs (`tools/embedded/leaks.py` proved it before the training started).

| what | sha256 |
|---|---|
| text (UTF-8 documents, each followed by a zero byte) | `{text_sha}` |
| model.safetensors | `{weights_sha}` |

Text and tokenizer are the same on every machine; the weights are of the same quality but not the same bits, because the
order of floating-point sums differs between machines.

## Limits

It knows a few hundred everyday facts, often wrongly, and sums of small numbers. It does not understand language, knows
nothing of the world beyond its templates, and must not be relied on for anything.

## Licence

Apache-2.0, weights and text alike.
"""


def write_jsonl(path: Path, rows: Iterable[chat.Row]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_data(folder: Path) -> None:
    """The row files of the quickstart: a few hundred kilobytes, the same on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "demonstrations.jsonl", chat.demonstrations())
    write_jsonl(folder / "preferences.jsonl", chat.preferences())
    write_jsonl(folder / "tasks.jsonl", chat.tasks())
    write_jsonl(folder / "worked_sums.jsonl", long_sums.demonstrations())
    write_jsonl(folder / "long_tasks.jsonl", long_sums.tasks())
    write_jsonl(folder / "heldout_long.jsonl", long_sums.held_out())
    for suite, rows in chat.held_out().items():
        write_jsonl(folder / f"heldout_{suite}.jsonl", rows)


def training_texts() -> list[str]:
    """Every text of the row files that a stage may train on."""
    texts = [message["content"] for row in chat.demonstrations() for message in row["messages"]]
    texts += [row[key] for row in chat.preferences() for key in ("prompt", "chosen", "rejected")]
    return texts + [row["prompt"] for row in chat.tasks()]


def text_sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def write_model(folder: Path, settings: Settings, processes: int) -> None:
    texts = list(documents(settings.seed, settings.documents))
    prompts = [row["prompt"] for rows in chat.held_out().values() for row in rows]
    leaked = leaks.find_leaks(prompts, [*texts, *training_texts()])
    if leaked:
        raise SystemExit(f"held-out prompts occur in the training text: {leaked[:5]}")
    tokenizer = make_tokenizer(texts[: settings.tokenizer_documents], settings.vocabulary)
    ids = encode_corpus(tokenizer, texts)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        np.save(Path(scratch, "ids.npy"), ids)
        multiprocessing.spawn(train_process, (processes, Path(scratch), settings), nprocs=processes)
        losses = json.loads(Path(scratch, "losses.json").read_text())
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copyfile(Path(scratch, name), folder / name)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card(folder, settings, texts, len(ids), losses), encoding="utf-8")


def card(folder: Path, settings: Settings, texts: list[str], tokens: int, losses: list[float], remark: str = "") -> str:
    """The model card; `remark` says what else is to be known about the run that made the weights."""
    per_step = settings.row * settings.rows_per_step
    weights = (folder / "model.safetensors").read_bytes()
    last = losses[-50:]
    return CARD.format(
        settings=asdict(settings),
        parameters=len(weights) / 2e6,
        table="\n".join(f"| {name} | {value} |" for name, value in asdict(settings).items()),
        documents=f"{len(texts):,}",
        tokens=f"{tokens:,}",
        loss=sum(last) / len(last),
        steps=len(losses),
        per_step=per_step,
        read=len(losses) * per_step / tokens,
        remark=remark,
        wrong=WRONG_SHARE,
        text_sha=text_sha256(texts),
        weights_sha=hashlib.sha256(weights).hexdigest(),
    )


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="gets the folders model/ and data/")
    parser.add_argument("--data-only", action="store_true", help="write the row files and train nothing")
    parser.add_argument("--documents", type=int, default=defaults.documents)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=defaults.precision)
    parser.add_argument("--processes", type=int, default=2, help="each trains with one thread")
    arguments = parser.parse_args()
    write_data(arguments.out / "data")
    if not arguments.data_only:
        settings = replace(
            defaults, documents=arguments.documents, steps=arguments.steps, precision=arguments.precision
        )
        write_model(arguments.out / "model", settings, arguments.processes)


if __name__ == "__main__":
    main()
