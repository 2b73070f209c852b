"""The structure of templates that models are shipped with, in our own words, one for each way of writing a turn.

Each name says whose layout it has. Nothing is copied: what matters is where a template puts thoughts, calls and the end
of a turn, which is what training tools have got wrong.
"""

from __future__ import annotations

_LAST_USER = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
"""
_TAKE_THOUGHTS = """\
{%- set c = m.content or '' -%}{%- set r = m.reasoning_content or '' -%}
{%- if '</think>' in c -%}
{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set c = c.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
"""
_TOOLS = "{%- if tools -%}{{ '<|im_start|>system\\nTools: ' + tools | tojson + '<|im_end|>\\n' }}{%- endif -%}\n"
_HERMES_CALLS = """\
{%- for t in m.tool_calls or [] -%}
{{ '<tool_call>\\n' + {'name': t.function.name, 'arguments': t.function.arguments} | tojson + '\\n</tool_call>' }}
{%- endfor -%}
"""
_XML_CALLS = """\
{%- for t in m.tool_calls or [] -%}
{{ '<tool_call>\\n<function=' + t.function.name + '>\\n' }}
{%- for k, v in t.function.arguments | items -%}
{%- set v = v | tojson if v is mapping or (v is sequence and v is not string) else v | string -%}
{{ '<parameter=' + k + '>\\n' + v + '\\n</parameter>\\n' }}
{%- endfor -%}
{{ '</function>\\n</tool_call>' }}
{%- endfor -%}
"""

HERMES = (
    _TOOLS
    + """\
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
"""
    + _HERMES_CALLS
    + """\
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
)
"""Calls as JSON in <tool_call>; contents as they are."""

QWEN3 = (
    _TOOLS
    + _LAST_USER
    + "{%- for m in messages -%}{%- if m.role == 'assistant' -%}\n"
    + _TAKE_THOUGHTS
    + """\
{{ '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or r) -%}{{ '<think>\\n' + r + '\\n</think>\\n\\n' }}{%- endif -%}
{{ c }}
"""
    + _HERMES_CALLS
    + """\
{{ '<|im_end|>\\n' }}
{%- else -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}"""
)
"""Moves thoughts out of the content; the last turn has a thought, if an empty one."""

QWEN35_THINK = (
    _TOOLS
    + _LAST_USER
    + "{%- for m in messages -%}{%- if m.role == 'assistant' -%}\n"
    + _TAKE_THOUGHTS
    + """\
{{ '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last -%}{{ '<think>\\n' + r + '\\n</think>\\n\\n' }}{%- endif -%}
{{ c }}
"""
    + _XML_CALLS
    + """\
{{ '<|im_end|>\\n' }}
{%- else -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- else -%}{{ '<think>\\n' }}{%- endif -%}{%- endif -%}"""
)
"""The same, and the generation prompt opens the thought."""

KIMI_K2 = """\
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' -%}{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{%- endif -%}
{{ (m.content or '') + '<|im_end|>' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>' }}{%- endif -%}"""
"""Writes a thought of its own before every answer, and the content, with whatever thoughts, as it is."""

NEMOTRON3 = (
    _LAST_USER
    + """\
{%- for m in messages -%}{%- if m.role == 'assistant' -%}
{%- if m.reasoning_content -%}{%- set c = '<think>\\n' + m.reasoning_content + '\\n</think>\\n' + (m.content or '') -%}
{%- elif '<think>' in (m.content or '') and '</think>' in (m.content or '') -%}{%- set c = m.content -%}
{%- else -%}{%- set c = '<think></think>' + (m.content or '') -%}{%- endif -%}
{%- if loop.index0 < ns.last -%}{%- set c = '<think></think>' + c.split('</think>')[-1] -%}{%- endif -%}
{{ '<|im_start|>assistant\\n' + c + '<|im_end|>\\n' }}
{%- else -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '</think>' }}{%- else -%}{{ '\\n' }}{%- endif -%}
{%- endif -%}"""
)
"""Leaves thoughts in the content as they are written, and the generation prompt opens one."""

GEMMA4_LOSES_CALLS = """\
{%- if tools -%}{{ '<|turn>system\\n' + tools | tojson + '<turn|>\\n' }}{%- endif -%}
{%- for m in messages -%}
{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{%- if m.reasoning_content -%}{{ '<|channel>thought\\n' + m.reasoning_content + '\\n<channel|>' }}{%- endif -%}
{{ (m.content or '') | trim + '<turn|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|turn>model\\n' }}
{%- if not enable_thinking -%}{{ '<|channel>thought\\n<channel|>' }}{%- endif -%}{%- endif -%}"""
"""The generation prompt writes an empty thought that finished turns lack; tool calls are shown nowhere."""

GEMMA4 = """\
{%- if tools -%}{{ '<|turn>system\\n' + tools | tojson + '<turn|>\\n' }}{%- endif -%}
{%- set ns = namespace(result=false) -%}
{%- for m in messages -%}{%- if m.role == 'tool' -%}
{{ 'response:' + m.content + '<tool_response|>' }}{%- set ns.result = true -%}
{%- else -%}
{%- if not ns.result -%}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}{%- endif -%}
{%- set ns.result = false -%}
{%- for t in m.tool_calls or [] -%}{{ '<|tool_call>call:' + t.function.name + '{' }}
{%- for k, v in t.function.arguments | dictsort -%}{{ ('' if loop.first else ',') + k + ':' }}
{{- '<|"|>' + v + '<|"|>' if v is string else v | tojson }}{%- endfor -%}{{ '}<tool_call|>' }}{%- endfor -%}
{{ (m.content or '') | trim + ('<|tool_response>' if m.tool_calls else '<turn|>\\n') }}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt and not ns.result -%}{{ '<|turn>model\\n' }}{%- endif -%}"""
"""Calls stand before the content and end with the mark that begins the result; after it the turn goes on."""

EXAONE4 = """\
{%- for m in messages -%}{{ '[|' + m.role + '|]\\n' }}
{%- if m.role == 'assistant' -%}{{ '<think>\\n\\n</think>\\n\\n' }}
{{- (m.content or '').split('</think>')[-1].strip() }}
{%- for t in m.tool_calls or [] -%}{{ '<tool_call>' + t.function | tojson + '</tool_call>' }}{%- endfor -%}
{%- else -%}{{ m.content }}{%- endif -%}{{ '[|endofturn|]\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[|assistant|]\\n' }}
{%- if enable_thinking -%}{{ '<think>\\n' }}{%- else -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"""
"""Prompt and finished turns have an empty closed thought; thoughts of the content are dropped."""

FALCON_H1 = (
    _TOOLS
    + """\
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
)
"""Shows the tools, and not the calls."""

LFM2 = """\
{%- if tools -%}{{ '<|im_start|>system\\nList of tools: ' + tools | tojson + '<|im_end|>\\n' }}{%- endif -%}
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- if m.tool_calls -%}{{ '<|tool_call_start|>[' }}{%- for t in m.tool_calls -%}
{{ ('' if loop.first else ', ') + t.function.name + '(' }}
{%- for k, v in t.function.arguments.items() -%}
{{ ('' if loop.first else ', ') + k + '=' + ("'" + v.replace("'", "\\\\'") + "'" if v is string else v | string) }}
{%- endfor -%}{{ ')' }}{%- endfor -%}{{ ']<|tool_call_end|>' }}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
"""Calls in the notation of Python."""

GLM4 = (
    _LAST_USER
    + """\
{%- if tools -%}{{ '<|system|>\\n' + tools | tojson }}{%- endif -%}
{%- for m in messages -%}{%- if m.role == 'assistant' -%}
"""
    + _TAKE_THOUGHTS
    + """\
{{ '<|assistant|>\\n<think>' + (r if loop.index0 > ns.last else '') + '</think>' }}
{%- if c.strip() -%}{{ '\\n' + c.strip() }}{%- endif -%}
{%- for t in m.tool_calls or [] -%}{{ '\\n<tool_call>' + t.function.name + '\\n' }}
{%- for k, v in t.function.arguments.items() -%}
{{ '<arg_key>' + k + '</arg_key>\\n<arg_value>' + (v if v is string else v | tojson) + '</arg_value>\\n' }}
{%- endfor -%}{{ '</tool_call>' }}{%- endfor -%}
{%- elif m.role == 'tool' -%}{{ '<|observation|>\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- else -%}{{ '<|' + m.role + '|>\\n' + m.content }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{ '\\n<think></think>' }}{%- endif -%}{%- endif -%}"""
)
"""No token ends a turn; what follows a call is the token that begins the tool's result."""

DEEPSEEK_V3 = """\
{%- for m in messages -%}{%- if m.role == 'user' -%}{{ '<|User|>' + m.content }}
{%- elif m.role == 'tool' -%}{{ '<|tool_output|>' + m.content }}
{%- elif m.role == 'system' -%}{{ m.content }}
{%- else -%}{{ '<|Assistant|>' + (m.content or '').split('</think>')[-1] }}
{%- for t in m.tool_calls or [] -%}
{{ '<|call|>function<|sep|>' + t.function.name + '\\n```json\\n' + t.function.arguments + '\\n```<|call_end|>' }}
{%- endfor -%}{{ eos_token }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|Assistant|>' }}{%- endif -%}"""
"""Joins `arguments` as a text, drops thoughts of finished turns, and shows no tools."""

DEEPSEEK_R1 = DEEPSEEK_V3.removesuffix("{{ '<|Assistant|>' }}{%- endif -%}") + (
    "{{ '<|Assistant|><think>\\n' }}{%- endif -%}"
)
"""The same; the generation prompt opens the thought."""

GPT_OSS = """\
{%- set ns = namespace(last=-1) -%}
{%- if tools -%}{{ '<|start|>developer<|message|>' + tools | tojson + '<|end|>' }}{%- endif -%}
{%- for m in messages -%}{%- if m.role == 'assistant' -%}
{%- if m.thinking and loop.last -%}
{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif -%}
{%- if m.tool_calls -%}{%- set t = m.tool_calls[0].function -%}
{{ '<|start|>assistant to=functions.' + t.name + '<|channel|>commentary json<|message|>' + t.arguments | tojson }}
{{- '<|call|>' }}
{%- else -%}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}
{{- '<|return|>' if loop.last else '<|end|>' }}
{%- endif -%}
{%- elif m.role == 'tool' -%}{{ '<|start|>functions to=assistant<|message|>' + m.content + '<|end|>' }}
{%- else -%}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}"""
"""Channels; three tokens that end a turn, by what it is and where it stands; one call a turn."""

COHERE = """\
{%- if tools -%}{{ '<|START_TURN|><|SYSTEM|>' + tools | tojson + '<|END_TURN|>' }}{%- endif -%}
{%- for m in messages -%}{{ '<|START_TURN|>' }}
{%- if m.role == 'assistant' -%}{{ '<|CHATBOT|>' }}
{%- if m.tool_calls -%}{{ '<|START_ACTION|>' }}{%- for t in m.tool_calls -%}{{ t.function | tojson }}{%- endfor -%}
{{ '<|END_ACTION|>' }}
{%- else -%}{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}{%- endif -%}
{%- else -%}{{ ('<|USER|>' if m.role == 'user' else '<|SYSTEM|>') + m.content }}{%- endif -%}{{ '<|END_TURN|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|START_TURN|><|CHATBOT|>' }}{%- endif -%}"""
"""An answer ends with two tokens, the second of which ends every turn."""

MISTRAL = """\
{{ bos_token }}{%- if tools -%}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{{ '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'tool' -%}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
{%- elif m.role == 'assistant' -%}
{%- if m.tool_calls -%}{{ '[TOOL_CALLS][' }}{%- for t in m.tool_calls -%}
{%- if t.id | length != 9 -%}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif -%}{{ ('' if loop.first else ', ') + t.function | tojson }}{%- endfor -%}{{ ']' }}
{%- else -%}{{ m.content }}{%- endif -%}{{ eos_token }}
{%- else -%}{{ raise_exception('Only user, assistant and tool roles are supported') }}{%- endif -%}{%- endfor -%}"""
"""No generation prompt; calls as a JSON list; ids of nine letters."""

_CHATML = ("<|im_start|>", "<|im_end|>")
_THINK = ("<think>", "</think>")
_CALLS = ("<tool_call>", "</tool_call>")
_DEEPSEEK = ("<|User|>", "<|Assistant|>", "<|tool_output|>", "<|call|>", "<|sep|>", "<|call_end|>")
_COHERE_TURNS = ("START_TURN", "END_TURN", "CHATBOT", "USER", "SYSTEM")
_COHERE_PARTS = ("START_RESPONSE", "END_RESPONSE", "START_ACTION", "END_ACTION")
_COHERE = tuple(f"<|{name}|>" for name in (*_COHERE_TURNS, *_COHERE_PARTS))
_MISTRAL = tuple(f"[{slash}{name}]" for name in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS") for slash in ("", "/"))

FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "HERMES": (HERMES, (*_CHATML, *_CALLS)),
    "QWEN3": (QWEN3, (*_CHATML, *_THINK, *_CALLS)),
    "QWEN35_THINK": (QWEN35_THINK, (*_CHATML, *_THINK, *_CALLS)),
    "KIMI_K2": (KIMI_K2, (*_CHATML, *_THINK)),
    "NEMOTRON3": (NEMOTRON3, (*_CHATML, *_THINK)),
    "GEMMA4_LOSES_CALLS": (GEMMA4_LOSES_CALLS, ("<|turn>", "<turn|>", "<|channel>", "<channel|>")),
    "GEMMA4": (
        GEMMA4,
        ("<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'),
    ),
    "EXAONE4": (EXAONE4, ("[|user|]", "[|assistant|]", "[|endofturn|]", "[|tool|]", "[|system|]")),
    "FALCON_H1": (FALCON_H1, _CHATML),
    "LFM2": (LFM2, (*_CHATML, "<|tool_call_start|>", "<|tool_call_end|>")),
    "GLM4": (GLM4, ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", *_THINK, *_CALLS)),
    "DEEPSEEK_V3": (DEEPSEEK_V3, _DEEPSEEK),
    "DEEPSEEK_R1": (DEEPSEEK_R1, _DEEPSEEK),
    "GPT_OSS": (GPT_OSS, ("<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>")),
    "COHERE": (COHERE, _COHERE),
    "MISTRAL": (MISTRAL, (*_MISTRAL, "[TOOL_CALLS]")),
}
"""Template and special tokens by the family whose structure it has."""
