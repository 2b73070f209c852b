"""Reads a saved folder back in a fresh process, the way any other program would: plain `transformers`, plain `peft`.

    python -m posttrain.models.folders.readback request.json [parent]

With `parent`, its standard input is a pipe whose other end the parent holds: when that closes, this process ends. The
parent runs this file by its path, so that not one line of posttrain's loading code stands between the files and the
answer. `request.json` names the folder and the probe; the answer is `answer.json` (tokenizer's ids, greedy ids) and
`logits.npy` in the request's folder. The parent (`export.PendingSave`) compares, and computes its own side by the same
functions.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any


def main(request_path: str) -> None:
    """Answer one request; an exception ends the process, and its last line is what the parent shows."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    out = Path(request_path).parent
    warnings.simplefilter("ignore")

    import numpy as np
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(request["threads"])  # as the parent computes: sums over threads round by their number

    # What made the model in memory, and nothing else: the parent says it of each save.
    model_code = request["model_code"]
    tokenizer = AutoTokenizer.from_pretrained(request["folder"], trust_remote_code=model_code)
    prompts = [prompt_ids(tokenizer, prompt["messages"], prompt["tools"]) for prompt in request["prompts"]]
    if "score_rows" in request:
        model = load_plain_reward(request["folder"], getattr(torch, request["dtype"]), request["outputs"], model_code)
        np.save(out / "logits.npy", row_scores(model, request["score_rows"], tokenizer.pad_token_id))
        probe = tokenizer_ids(tokenizer, request["text"])
        answer = {"greedy": [], "text": None, "probe_ids": probe, "prompt_ids": prompts}
        answer |= compared(model, request.get("checksums"))
        (out / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
        return

    model = load_plain(request["folder"], getattr(torch, request["dtype"]), model_code)
    np.save(out / "logits.npy", probe_logits(model, request["row"]))
    greedy, _ = greedy_ids(model, request["prompt"], request["stop_ids"], request["new_tokens"])
    answer = {
        "greedy": greedy,
        "text": tokenizer.decode(greedy),
        "probe_ids": tokenizer_ids(tokenizer, request["text"]),
        "prompt_ids": prompts,
        **compared(model, request.get("checksums")),
    }
    (out / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def load_plain(folder: str, dtype: Any, model_code: bool = False) -> Any:
    """A whole model, or an adapter on the base that its own config names."""
    from transformers import AutoModelForCausalLM

    adapter = Path(folder) / "adapter_config.json"
    if not adapter.is_file():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=model_code).eval()
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(named_base(adapter), dtype=dtype, trust_remote_code=model_code)
    return PeftModel.from_pretrained(with_rows(base, folder, model_code), folder).eval()


def with_rows(model: Any, folder: str, model_code: bool) -> Any:
    """The base with a row for each token of the adapter's folder: what `AutoPeftModelForCausalLM` does too."""
    from transformers import AutoTokenizer

    tokens = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=model_code))
    if tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    return model


def named_base(adapter_config: Path) -> str:
    """The base that an adapter names; the one kind that is posttrain's own is made known to `peft` on the way."""
    config = json.loads(adapter_config.read_text(encoding="utf-8"))
    if config["peft_type"] == "BOTTLENECK":
        from posttrain.models.adapters.bottleneck import register

        register()
    return str(config["base_model_name_or_path"])


def load_plain_reward(folder: str, dtype: Any, outputs: int, model_code: bool = False) -> Any:
    """A whole reward model, or an adapter and its head on the base that its own config names."""
    from transformers import AutoModelForSequenceClassification

    adapter = Path(folder) / "adapter_config.json"
    if not adapter.is_file():
        return AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, trust_remote_code=model_code
        ).eval()
    from peft import PeftModel

    base = named_base(adapter)
    plain = AutoModelForSequenceClassification.from_pretrained(
        base, dtype=dtype, num_labels=outputs, trust_remote_code=model_code
    )
    return PeftModel.from_pretrained(with_rows(plain, folder, model_code), folder).eval()


def compared(model: Any, checksums: dict[str, int] | None) -> dict[str, Any]:
    """Which weights of the loaded model are, byte for byte, those of whom the parent has checksums (zlib.crc32); for a
    model that was written tensor by tensor, and of which no other answer can be foretold."""
    if checksums is None:
        return {}
    import zlib

    import torch

    state = model.state_dict()
    # Experts that lie in one file each are stacked when they are read, and have no name to be found by.
    there = [name for name in checksums if name in state]
    raw = {name: state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8) for name in there}
    differing = [name for name in there if zlib.crc32(raw[name].numpy().data) != checksums[name]]
    return {"compared": len(there), "differing": differing}


def row_scores(model: Any, rows: list[list[int]], pad_id: int | None) -> Any:
    """Scores of rows as `transformers` pools them, in one padded batch: numpy [rows, outputs], fp32.

    Without a pad token, as everybody who uses the folder must: one row at a time.
    """
    import torch

    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad_id
    # Padded on the right in one batch, as a serving loop does: a score read at the wrong token shows only with padding.
    longest = max(len(row) for row in rows)
    batches = [[row + [pad_id] * (longest - len(row)) for row in rows]] if pad_id is not None else [[r] for r in rows]
    lengths = [[len(row) for row in rows]] if pad_id is not None else [[len(row)] for row in rows]
    parts = []
    for batch, sizes in zip(batches, lengths, strict=True):
        ids = torch.tensor(batch, device=model.device)
        mask = torch.arange(ids.shape[1], device=model.device)[None] < torch.tensor(sizes, device=model.device)[:, None]
        with torch.no_grad():
            parts.append(model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits)
    return torch.cat(parts).float().cpu().numpy()


def probe_logits(model: Any, row: list[int]) -> Any:
    """Logits at every token of one row, virtual tokens before it included: numpy [P + len(row), V], fp32."""
    return rows_logits(model, [row])[0]


def rows_logits(model: Any, rows: list[list[int]]) -> list[Any]:
    """The same of several rows in one pass: for each, numpy [P + len(row), V], fp32."""
    import torch

    # On the right, and no mask says so: a causal model reads nothing there.
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    virtual = logits.shape[1] - longest
    return [own[: virtual + len(row)].float().cpu().numpy() for own, row in zip(logits, rows, strict=True)]


def greedy_ids(model: Any, prompt: list[int], stop_ids: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
    """What the model says next, each time its most likely token, and by how much that token led at each position.

    Nothing of the folder's sampling takes part.
    """
    import torch

    # Every field is passed, for `generate` fills what is missing from the folder's generation_config.json.
    input_ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=stop_ids or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best_two = [scores[0].float().topk(2).values for scores in out.scores]
    return out.sequences[0, len(prompt) :].tolist(), [float(pair[0] - pair[1]) for pair in best_two]


def followed(logits: Any, said: list[int], stop_ids: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
    """`greedy_ids` of a model by one pass over the prompt and what another one says after it.

    As long as the most likely token is the one that was said, the next position is read as generating would read it:
    by induction the two greedy texts are equal, or part at the first difference, and only so far do they say anything.

    Args:
        logits: [P + len(prompt + said), V], of the prompt and all of `said`.
    """
    import numpy as np

    ids: list[int] = []
    margins: list[float] = []
    for at in logits[-1 - len(said) :][:new_tokens]:
        second, first = np.partition(at, -2)[-2:]
        ids.append(int(at.argmax()))
        margins.append(float(first - second))
        if ids[-1] in stop_ids:
            break
    return ids, margins


def tokenizer_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a user's message through the chat template, or of the bare text where there is no template."""
    if tokenizer.chat_template is None:
        return tokenizer(text, add_special_tokens=False).input_ids
    message = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    # The template has written its own BOS; the tokenizer would add a second.
    return tokenizer(rendered, add_special_tokens=False).input_ids


def prompt_ids(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int] | str:
    """A prompt as anybody builds it who knows nothing of its training; the refusal's words where that fails."""
    try:
        return tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # a template raises whatever it likes, and the parent says what of
        return f"{type(error).__name__}: {error}"


def end_with_parent() -> None:
    """A parent that is killed ends nothing itself: without this, a process with a whole model in memory lives on by
    itself. A pipe closes however the other end dies, on every system."""

    def watch() -> None:
        # Not through `sys.stdin`: its lock, held by this thread, would abort the interpreter at its orderly end.
        os.read(0, 1)
        os._exit(1)  # at once, whatever torch is doing in other threads

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    if sys.argv[2:] == ["parent"]:
        end_with_parent()
    main(sys.argv[1])
