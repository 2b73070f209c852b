"""Chat templates in miniature, each with one property that has broken a training tool.

They are plain Jinja, as a tokenizer's `chat_template` holds it. The special tokens that each one writes are
listed in TEMPLATE_TOKENS, so that a test tokenizer can be given exactly those.
"""

from __future__ import annotations

CHATML = """\
{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Turns end with <|im_end|> and a newline, whatever the tokenizer calls eos."""

CHATML_DEFAULT_SYSTEM = """\
{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system
You are a tiny helper.<|im_end|>
{% endif %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Writes a system turn where the conversation has none, as SmolLM2 and Qwen2.5 do."""

BOS_IN_TEMPLATE = """\
{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>
{{ m['content'] }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
"""Writes BOS itself; a tokenizer that adds one too would make two."""

NO_BOS = """\
{% for m in messages %}<|{{ m['role'] }}|>
{{ m['content'] }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
"""Zephyr's layout: the turn ends with the eos token, and no BOS is written."""

NO_GENERATION_PROMPT = """\
{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"""
"""Pays no attention to add_generation_prompt."""

NO_TERMINATOR = """\
{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
"""Plain text; nothing ends a turn but a newline."""

TURN_END = """\
{% for m in messages %}<turn>{{ m['role'] }}
{{ m['content'] }}<turn_end>
{% endfor %}{% if add_generation_prompt %}<turn>assistant
{% endif %}"""
"""The terminator <turn_end> is not the eos token."""

THINK_DROPPED = """\
{% for m in messages %}{% set c = m['content'] %}\
{% if m['role'] == 'assistant' and not loop.last and '</think>' in c %}\
{% set c = c.split('</think>')[-1].lstrip() %}{% endif %}\
<|im_start|>{{ m['role'] }}
{{ c }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Rewrites history: an assistant turn keeps its <think> block only while it is the last."""

THINK_PREFILL = """\
{% for m in messages %}{% set c = m['content'] %}\
{% if m['role'] == 'assistant' and '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip() %}{% endif %}\
<|im_start|>{{ m['role'] }}
{{ c }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
"""The generation prompt opens <think>; every finished turn is shown without its thoughts (DeepSeek-R1, QwQ)."""

THINK_PREFILL_VERBATIM = """\
{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
"""The generation prompt opens <think>; finished turns are shown as they are."""

NO_SYSTEM = """\
{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}
{{ m['content'] | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
"""Refuses system turns, as Gemma 2 does."""

GEMMA_LIKE = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}\
{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}\
{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}
{{ first if loop.first else '' }}{{ m['content'] | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
"""Folds the system text into the first user turn, trims contents, insists on alternation."""

LLAMA3_LIKE = """\
{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
<|start_header_id|>{{ m['role'] }}<|end_header_id|>

{{ m['content'] | trim }}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
"""No text between a terminator and the next header; the header ends with two newlines."""

MISTRAL_LIKE = """\
{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]\
{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"""
"""Has no generation prompt and needs none; the answer begins with a space."""

PHI3_LIKE = """\
{% for m in messages %}<|{{ m['role'] }}|>
{{ m['content'] }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}"""
"""Closes a finished conversation with eos after the last terminator."""

TOOLS = """\
{% if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['content'] %}{{ m['content'] }}{% endif %}\
{% for call in m['tool_calls'] or [] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Renders tool schemas, tool calls and tool results."""

TEMPLATES: dict[str, str] = {
    "CHATML": CHATML,
    "CHATML_DEFAULT_SYSTEM": CHATML_DEFAULT_SYSTEM,
    "BOS_IN_TEMPLATE": BOS_IN_TEMPLATE,
    "NO_BOS": NO_BOS,
    "NO_GENERATION_PROMPT": NO_GENERATION_PROMPT,
    "NO_TERMINATOR": NO_TERMINATOR,
    "TURN_END": TURN_END,
    "THINK_DROPPED": THINK_DROPPED,
    "THINK_PREFILL": THINK_PREFILL,
    "THINK_PREFILL_VERBATIM": THINK_PREFILL_VERBATIM,
    "NO_SYSTEM": NO_SYSTEM,
    "GEMMA_LIKE": GEMMA_LIKE,
    "LLAMA3_LIKE": LLAMA3_LIKE,
    "MISTRAL_LIKE": MISTRAL_LIKE,
    "PHI3_LIKE": PHI3_LIKE,
    "TOOLS": TOOLS,
}

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

TEMPLATE_TOKENS: dict[str, tuple[str, ...]] = {
    "CHATML": CHATML_TOKENS,
    "CHATML_DEFAULT_SYSTEM": CHATML_TOKENS,
    "BOS_IN_TEMPLATE": ROLE_TOKENS,
    "NO_BOS": ROLE_TOKENS,
    "NO_GENERATION_PROMPT": ROLE_TOKENS,
    "NO_TERMINATOR": (),
    "TURN_END": ("<turn>", "<turn_end>"),
    "THINK_DROPPED": CHATML_TOKENS,
    "THINK_PREFILL": CHATML_TOKENS,
    "THINK_PREFILL_VERBATIM": CHATML_TOKENS,
    "NO_SYSTEM": ("<start_of_turn>", "<end_of_turn>"),
    "GEMMA_LIKE": ("<start_of_turn>", "<end_of_turn>"),
    "LLAMA3_LIKE": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "MISTRAL_LIKE": ("[INST]", "[/INST]"),
    "PHI3_LIKE": (*ROLE_TOKENS, "<|end|>"),
    "TOOLS": CHATML_TOKENS,
}
