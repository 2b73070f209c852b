"""Chat templates that posttrain brings along, by name; any other name is the path of a Jinja file.

`chat` is not here: it is the tokenizer's own template. `ChatTemplate` renders what `template_source` gives it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.data.tokens import Tokens
from posttrain.errors import ConfigError, TemplateError, unknown

CHATML = """\
{%- macro tools_text() -%}
# Tools

You may call these functions. Each call is a JSON object between <tool_call> and </tool_call>.
<tools>
{%- for tool in tools -%}{{ '\\n' }}{{ tool | tojson }}{%- endfor -%}
{{ '\\n</tools>' }}
{%- endmacro -%}
{%- if tools and messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\n' + tools_text() + END + '\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['reasoning_content'] -%}
{{ '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}
{%- endif -%}
{{ message['content'] or '' }}
{%- if tools and loop.first and message['role'] == 'system' -%}
{{ '\\n\\n' + tools_text() }}
{%- endif -%}
{%- for call in message['tool_calls'] or [] -%}
{{ ('' if loop.first and not message['content'] else '\\n') + '<tool_call>\\n' }}
{{- {'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson }}
{{- '\\n</tool_call>' }}
{%- endfor -%}
{{ END + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""ChatML, with tools in the Hermes layout. END is <|im_end|> where that is one token, else the eos token:
a mark of six plain tokens is one that no sampler can stop at."""

RAW = """\
{%- if BOS and not (messages and (messages[0]['content'] or '').startswith(BOS)) -%}{{ BOS }}{%- endif -%}
{%- for message in messages -%}
{{ message['content'] or '' }}
{%- if message['role'] == 'assistant' -%}{{ EOS }}{%- endif -%}
{%- endfor -%}
"""
"""The texts themselves, one after the other, and eos after each answer: for base models. BOS is written where the
tokenizer would write it before a plain text."""

BUILTIN: dict[str, str] = {"chatml": CHATML, "raw": RAW}


def with_values(template: str, **values: str) -> str:
    """The template with its capital names set to texts, so that it stands alone as a file."""
    assignments = "".join(f"{{%- set {name} = {jinja_string(value)} -%}}\n" for name, value in values.items())
    return assignments + template


def template_source(tokens: Tokens, name: str) -> Any:
    """The Jinja text that a template's name stands for; the tokenizer's own may be a mapping of several.

    Raises:
        TemplateError: the tokenizer has no template, or lacks the eos token that `raw` needs.
        ConfigError: the name is neither built in nor a file.
    """
    if name == "chat":
        chat_template = tokens.tokenizer.chat_template
        if not chat_template:
            raise TemplateError(
                "this tokenizer has no chat template, so the layout of a conversation is unknown",
                found="tokenizer.chat_template is empty, as it is for base models",
                expected="a chat template",
                remedy="choose one: `template: raw` (the texts and eos, for a base model), `template: chatml` "
                "(built in), or `template: path/to/file.jinja`",
            )
        return chat_template

    if name == "raw":
        if tokens.eos_text is None:
            raise TemplateError(
                "`template: raw` ends every answer with the eos token, and this tokenizer has none",
                found="tokenizer.eos_token is None",
                expected="an eos token",
                remedy="set tokenizer.eos_token, or use another template",
            )
        # Only where the tokenizer itself would write it: a base model that never saw BOS must not train behind one.
        bos = tokens.tokenizer.bos_token if tokens.bos_id in tokens.added_by_default() else None
        return with_values(BUILTIN["raw"], BOS=bos or "", EOS=tokens.eos_text)

    if name == "chatml":
        # A mark that is several tokens could be written by halves, and no sampler stops at it.
        end = "<|im_end|>" if tokens.single_id("<|im_end|>") is not None else tokens.eos_text
        return with_values(BUILTIN["chatml"], END=end or "<|im_end|>")

    path = Path(name).expanduser()
    if not path.is_file():
        raise unknown(
            "chat template",
            name,
            ("chat", *BUILTIN),
            error=ConfigError,
            found=name,
            expected="`chat` (the tokenizer's own), `chatml`, `raw`, or the path of a Jinja file",
            otherwise="give the path of an existing file",
        )
    return path.read_text(encoding="utf-8")


def jinja_string(text: str) -> str:
    """A text as a string of Jinja: jinja_string("it's") -> "'it\\\\'s'"."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
