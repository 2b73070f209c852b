"""GGUF files: what is written, that a file of another model is noticed, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from posttrain.errors import ExportError
from posttrain.models.folders.exports import export_model
from posttrain.models.gguf import write as module
from posttrain.models.gguf.architectures import permuted
from posttrain.models.gguf.modelfile import DIALOGUES, TurnTemplate, modelfile, turn_template
from posttrain.models.gguf.tokenizer import cutting_of
from posttrain.models.gguf.write import allowed_error, kind_of, write_gguf
from tests.gguf import qwen_tokenizer


def tiny(tokenizer: Any, kind: Any = LlamaForCausalLM, config: Any = LlamaConfig, **changed: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        **changed,
    }
    return kind(config(**settings)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return qwen_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny(tokenizer)


def test_rows_of_a_head_are_interlaced() -> None:
    """By hand: one head of 4 rows, its halves (0, 1) and (2, 3) -> 0, 2, 1, 3."""
    rows = torch.arange(8.0).reshape(8, 1)
    assert permuted(rows[:4], 1).flatten().tolist() == [0, 2, 1, 3]
    assert permuted(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_how_far_a_weight_may_be_rounded_is_half_a_step() -> None:
    weight = torch.tensor([[1.0, -0.3] * 16])
    assert float(allowed_error(weight, "f32").max()) == 0
    for kind, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        error = (weight.to(dtype).float() - weight).abs()
        assert bool((error <= allowed_error(weight, kind)).all()) and bool((2 * error).max() > 0)
    # q8_0: d = 1 / 127, so that no weight is further off than 0.5 / 127, and d's own rounding.
    assert float(allowed_error(weight, "q8_0").max()) == pytest.approx(0.5 / 127 + 2**-11, rel=1e-2)
    assert [kind_of(shape, "q8_0") for shape in ((64,), (4, 64), (4, 65))] == ["f32", "q8_0", "f16"]


def test_every_dtype_is_read_back_and_smaller(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    reports = {d: write_gguf(model, tokenizer, tmp_path / f"{d}.gguf", dtype=d, stop_ids=(2,)) for d in module.DTYPES}
    assert reports["f32"].largest_difference == 0 and reports["f32"].largest_logit_difference < 1e-4
    for dtype in ("f16", "bf16", "q8_0"):
        assert 0 < reports[dtype].largest_difference < 5e-3
    sizes = {dtype: report.bytes for dtype, report in reports.items()}
    assert sizes["q8_0"] < sizes["f16"] <= sizes["bf16"] < sizes["f32"]
    from gguf import GGUFReader

    reader = GGUFReader(tmp_path / "q8_0.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0" and kinds["output_norm.weight"] == "F32" and "output.weight" in kinds
    fields = {name: reader.get_field(name).contents() for name in ("tokenizer.ggml.pre", "tokenizer.ggml.eos_token_id")}
    assert fields == {"tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.eos_token_id": 2}


def test_another_model_in_the_file_is_noticed(
    tmp_path: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    whole = module.as_written
    monkeypatch.setattr(module, "as_written", lambda name, weight, *rest: weight)  # queries and keys not interlaced
    with pytest.raises(ExportError, match="another model") as refused:
        write_gguf(model, tokenizer, path, dtype="f32")
    assert "q_proj" in str(refused.value)
    monkeypatch.setattr(module, "as_written", lambda name, weight, *rest: whole(name, weight * (1 + 2e-3), *rest))
    with pytest.raises(ExportError, match="off by"):
        write_gguf(model, tokenizer, path, dtype="f16")
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_in_the_file_is_noticed(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = qwen_tokenizer()
    whole = module.write_vocabulary

    def cut(writer: Any, vocabulary: Any, *rest: Any) -> None:
        del vocabulary.merges[:40]
        whole(writer, vocabulary, *rest)

    monkeypatch.setattr(module, "write_vocabulary", cut)
    with pytest.raises(ExportError, match="another model"):
        write_gguf(model, tokenizer, tmp_path / "model.gguf")


def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "model.gguf"
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    for refused, named in (
        (tiny(tokenizer, MistralForCausalLM, MistralConfig), "model_type: mistral"),
        (tiny(tokenizer, rope_parameters=scaled), "rope_type: linear"),
        (tiny(tokenizer, attention_bias=True), "attention_bias"),
        (tiny(tokenizer, hidden_act="gelu"), "hidden_act: gelu"),
        (tiny(tokenizer, Qwen3ForCausalLM, Qwen3Config, head_dim=16), "head_dim: 16"),
    ):
        with pytest.raises(ExportError, match=named):
            write_gguf(refused, tokenizer, path)
    with pytest.raises(ExportError, match="cuts texts by"):
        write_gguf(tiny(tokenizer), qwen_tokenizer(r"\p{L}+|\p{N}+|\s+"), path)
    huge = tiny(tokenizer)
    with torch.no_grad():
        huge.lm_head.weight[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"lm_head\.weight: 1e\+06"):
        write_gguf(huge, tokenizer, path, dtype="f16")
    assert list(tmp_path.iterdir()) == []


def test_cuttings_are_known_by_their_description(tmp_path: Path) -> None:
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    for steps, name in (([level], "gpt-2"), ([digits, level], "smollm")):
        assert cutting_of({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}, tmp_path) == name
    with pytest.raises(ExportError, match="normaliser"):
        cutting_of({"pre_tokenizer": level, "normalizer": {"type": "NFKC"}}, tmp_path)


# ---------------------------------------------------------------- Modelfile


def test_a_template_by_turns_is_found_and_written_in_go(tokenizer: Any) -> None:
    found = turn_template(tokenizer, adds_bos=False)
    assert isinstance(found, TurnTemplate) and found.opening == "<|im_start|>assistant\n"
    assert found.around["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert found.go() == (
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_a_default_system_message_leads_where_there_is_none() -> None:
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        + tokenizer.chat_template
    )
    found = turn_template(tokenizer, adds_bos=False)
    assert isinstance(found, TurnTemplate) and found.lead == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert found.go().startswith('{{ if ne (index .Messages 0).Role "system" }}<|im_start|>system\nBe kind.')
    for turns in DIALOGUES:
        messages = [{"role": role, "content": content} for role, content in turns]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert found.render(turns) == text


def test_a_template_that_does_more_is_left_out_with_its_reason() -> None:
    by_turns = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}|{% endfor %}"
    for template, why in (
        (
            by_turns + "{% if messages | length > 4 %}!{% endif %}{% if add_generation_prompt %}>{% endif %}",
            "more than",
        ),
        ("{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}", "does not write turn after turn"),
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}", "does not write turn after turn"),
        ("{{ raise_exception('no system here') }}", "no system here"),
        (None, "no chat template"),
    ):
        tokenizer = qwen_tokenizer()
        tokenizer.chat_template = template
        text, said = modelfile("m.gguf", tokenizer, adds_bos=False, stop_texts=[], sampling={}, context=64)
        assert said is not None and why in said and 'TEMPLATE "' not in text and said in text, template


def values_of(text: str) -> list[tuple[str, str]]:
    """A Modelfile as Ollama reads it (`parser/parser.go`): a value that begins with one or three quotes goes on over
    lines until one ends in as many; nothing in it is an escape, and what is not printed is passed over."""
    found: list[tuple[str, str]] = []
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        value = "".join(sign for sign in value if sign.isprintable() or sign in "\n\t").strip()
        quotes = '"""' if value.startswith('"""') else '"' if value.startswith('"') else ""
        while quotes and not (value.endswith(quotes) and len(value) >= 2 * len(quotes)):
            value = (value + ("\n" if not value.endswith("\n") else "") + next(lines)).removesuffix("\n")
        found.append((name, value[len(quotes) : len(value) - len(quotes)]))
    return found


def test_the_modelfile_says_stops_and_the_plain_distribution(tokenizer: Any) -> None:
    stops = ['<|"end|>', "\n", "<|end|>", "a\\b"]
    text, _ = modelfile(
        "m.gguf", tokenizer, adds_bos=False, stop_texts=[*stops, "a\x07"], sampling={"top_p": 0.9}, context=64
    )
    read = values_of(text)
    assert read[0] == ("FROM", "./m.gguf") and [value for name, value in read if name == "stop"] == stops
    assert "# No stop 'a\\x07'" in text  # told, and not made another one in silence
    found = turn_template(tokenizer, adds_bos=False)
    assert isinstance(found, TurnTemplate) and ("TEMPLATE", found.go()) in read
    for name, value in {
        "temperature": "1.0", "top_p": "0.9", "top_k": "0", "min_p": "0.0", "repeat_penalty": "1.0", "num_ctx": "64"
    }.items():  # fmt: skip
        assert (name, value) in read


def test_braces_of_a_template_open_nothing() -> None:
    """A brace before the content would make `{{{ .Content }}`, which Go refuses."""
    around = {"system": ("{", "}"), "user": ("<{{a}} {b", "{{{"), "assistant": ("", "")}
    text = TurnTemplate(around, "{", "").go()
    assert '{{ "{" }}{{ .Content }}}' in text and '<{{ "{{" }}a}} {b{{ .Content }}{{ "{{{" }}' in text
    assert text.endswith('{{ "{" }}')


# ---------------------------------------------------------------- exports


def test_a_folder_becomes_a_gguf_folder_that_replaces_itself_and_nothing_else(
    tmp_path: Path, model: Any, tokenizer: Any
) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    for _ in range(2):
        exported = export_model(start, out, to="gguf", dtype="q8_0")
    assert {path.name for path in out.iterdir()} == {"model-q8_0.gguf", "Modelfile", "posttrain_manifest.json"}
    manifest = json.loads((out / "posttrain_manifest.json").read_text())
    assert manifest["kind"] == "gguf" and set(manifest["files"]) == {"model-q8_0.gguf", "Modelfile"}
    assert f"ollama create mine -f {out}/Modelfile" in exported.commands
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="something else"):
        export_model(start, tmp_path / "other", to="gguf")
    with pytest.raises(ExportError, match="no adapter"):
        export_model(start, tmp_path / "a", to="adapter")


def test_whole_models_and_adapters_come_out_in_the_dtype_that_is_asked_for(
    tmp_path: Path, model: Any, tokenizer: Any
) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    start = tmp_path / "start"
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    adapted = get_peft_model(tiny(tokenizer), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(start)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    exported = export_model(tmp_path / "adapter", tmp_path / "whole", to="bf16")
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    name = "model.layers.0.self_attn.q_proj.weight"
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    folded = layer.base_layer.weight + layer.get_delta_weight("default")
    assert torch.equal(weights[name], folded.detach().to(torch.bfloat16))
    assert "rounding moved a logit" in exported.lines[1]
    assert exported.commands == (f"vllm serve {tmp_path}/whole",)  # bf16: what vLLM takes by itself


def test_the_verb_refuses_what_would_be_ignored(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from posttrain.cli.app import app

    for words in (["--to", "bf16", "--dtype", "f16"], ["--to", "merged", "--dtype", "q8_0"], ["--to", "ggml"]):
        answer = CliRunner().invoke(app, ["export", "embedded", str(tmp_path / "out"), *words])
        assert answer.exit_code == 2, words
    assert not (tmp_path / "out").exists()
