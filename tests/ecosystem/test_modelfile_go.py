"""The TEMPLATE of a Modelfile rendered by Go's own `text/template`, which is what Ollama renders it with."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from posttrain.models.folders import loading
from posttrain.models.gguf.modelfile import DIALOGUES, TurnTemplate, turn_template
from tests.gguf import qwen_tokenizer

pytestmark = [
    pytest.mark.ecosystem,
    pytest.mark.skipif(shutil.which("go") is None, reason="no Go is installed here"),
]
PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var asked struct {
		Template  string
		Dialogues [][]Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(asked.Template))
	for _, messages := range asked.Dialogues {
		if err := parsed.Execute(os.Stdout, map[string]any{"Messages": messages}); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("\\x00")
	}
}
"""
LEAD = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe {kind}.<|im_end|>\n{% endif %}"
BRACES = (
    "{% for m in messages %}{{ '{{' + m['role'] + '}}{' + m['content'] + '}\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '{{assistant}}{' }}{% endif %}"
)


def test_go_renders_what_the_jinja_template_does(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(PROGRAM)
    subprocess.run(["go", "build", "-o", "render", "main.go"], cwd=tmp_path, check=True)
    chatml, led, braces = (qwen_tokenizer() for _ in range(3))
    led.chat_template = LEAD + led.chat_template
    braces.chat_template = BRACES
    for tokenizer in (loading.load("embedded").tokenizer, chatml, led, braces):
        found = turn_template(tokenizer, adds_bos=False)
        assert isinstance(found, TurnTemplate), found
        messages = [[{"Role": role, "Content": content} for role, content in turns] for turns in DIALOGUES]
        asked = json.dumps({"Template": found.go(), "Dialogues": messages})
        done = subprocess.run([tmp_path / "render"], input=asked, capture_output=True, text=True, check=True)
        for turns, text in zip(DIALOGUES, done.stdout.split("\x00"), strict=False):
            own = [{"role": role, "content": content} for role, content in turns]
            assert text == tokenizer.apply_chat_template(own, add_generation_prompt=True, tokenize=False)
