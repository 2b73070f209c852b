"""`/tokenize`, `/detokenize` and `/tokenizer_info`, in vLLM's shapes: a client needs no tokenizer of its own."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from posttrain.serve.body import read_object
from posttrain.serve.chat import template_kwargs
from posttrain.serve.chat_prompts import prompt_of
from posttrain.serve.fields import Fields
from posttrain.serve.messages import messages_of, tools_in
from posttrain.serve.prompts import check_ids, encoded
from posttrain.serve.state import State, in_thread


async def tokenize(request: Request) -> Response:
    """The ids of a text (`prompt`), or of a conversation (`messages`) as a chat completion would ask it."""
    state: State = request.app.state.server
    fields = Fields(await read_object(request, state.settings.largest_body))
    policy = state.served.policy(fields.text("model"))
    strings = fields.flag("return_token_strs")
    if "messages" in fields:
        messages, tools = messages_of(fields.any("messages")), tools_in(fields.any("tools"))
        continues = fields.flag("continue_final_message")
        asks = fields.flag("add_generation_prompt", not continues)
        fields.must_be("add_special_tokens", [False], "the template writes what a conversation begins with")
        values = template_kwargs(fields)
        fields.finish()
        prompt = await prompt_of(
            policy, messages, tools, values, add_generation_prompt=asks, continue_final_message=continues
        )
        ids = prompt.ids
    else:
        text = fields.text("prompt")
        if text is None:
            raise fields.wrong("prompt", "a text, or `messages` in its place", "write the text under `prompt`")
        added = fields.flag("add_special_tokens", True)
        fields.finish()
        prompts = await in_thread(policy, lambda: encoded(policy, [text], add_special_tokens=added))
        ids = prompts[0].ids
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": policy.longest, "tokens": ids, "token_strs": None}
    if strings:
        answer["token_strs"] = [policy.detokenizer.texts.of(number).text for number in ids]
    return JSONResponse(answer)


async def detokenize(request: Request) -> Response:
    """The text of `tokens`, special tokens as they are written."""
    state: State = request.app.state.server
    fields = Fields(await read_object(request, state.settings.largest_body))
    policy = state.served.policy(fields.text("model"))
    ids = fields.any("tokens")
    if not isinstance(ids, list) or any(type(number) is not int for number in ids):
        raise fields.wrong("tokens", "a list of token ids", "write the ids under `tokens`")
    fields.finish()
    check_ids(policy, ids, "tokens")
    return JSONResponse({"prompt": policy.detokenizer.whole(ids)})


async def tokenizer_info(request: Request) -> Response:
    """The special tokens and the chat template: what `lm-eval` asks a server for in place of a local tokenizer."""
    state: State = request.app.state.server
    policy = state.served.policy(request.query_params.get("model"))
    tokenizer, source = policy.encoder.tokenizer, policy.encoder.chat_template
    return JSONResponse(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "unk_token": tokenizer.unk_token,
            "chat_template": source if isinstance(source, str) else dict(source).get("default"),
            "model_max_length": policy.longest,
            "vocab_size": policy.vocabulary,
        }
    )
