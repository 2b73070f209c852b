"""Every call that reads a model folder says whether the folder's own code is run; left out, transformers asks.

It says no, or what the one question `code_runs(folder)` answers. The fresh process that reads a save back is told.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT_CODE = ("PeftModel", "GenerationConfig")
"""`peft` takes no such argument and reads no code: it puts tensors on a model that is there. A generation config is
numbers in a JSON file."""


def test_no_call_leaves_it_open() -> None:
    calls, open_calls = 0, []
    for path in [*(ROOT / "posttrain").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in ("from_pretrained", "from_config") or ast.unparse(node.func.value) in WITHOUT_CODE:
                continue
            calls += 1
            passed = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if passed.get("trust_remote_code") not in ("False", "model_code"):
                open_calls.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert calls > 10 and open_calls == []


def test_the_value_comes_from_the_one_question() -> None:
    answers = set()
    for path in (ROOT / "posttrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "model_code":
                answers.add((path.name, ast.unparse(node.value).partition("(")[0]))
    told = {("readback.py", "request['model_code']")}
    callers = ("loading.py", "tokenizers.py", "folders.py", "starts.py", "inputs.py", "tokens.py")
    asked = {(name, "code_runs") for name in callers}
    assert answers == told | asked
