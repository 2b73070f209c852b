"""The Dockerfile looked through as hadolint does, by those of its rules that concern ours; no Docker engine is needed.

    faults("FROM python\\nRUN cd /x")       # ["DL3006 line 1: ...", "DL3003 line 2: ...", ...]

`# hadolint ignore=DL3008` above an instruction leaves a rule out there, as it does for hadolint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

INSTRUCTIONS = frozenset(
    (
        *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN"),
        *("SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
    )
)
APT_OPTIONS = (
    ("DL3014", ("-y", "--yes", "-qq"), "asks for a yes"),
    ("DL3015", ("--no-install-recommends",), "installs more than it is told"),
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """Instruction("RUN", "pip install x", line=4, ignored={"DL3013"})"""

    name: str
    text: str
    line: int
    ignored: frozenset[str]


def faults(text: str) -> list[str]:
    """What is wrong, a line each: the rule, where, and what."""
    steps = list(instructions(text))
    found = [(step.line, rule, said) for step in steps for rule, said in _wrong(step) if rule not in step.ignored]
    found += [(line, rule, said) for line, rule, said in _wrong_together(steps)]
    return [f"{rule} line {line}: {said}" for line, rule, said in sorted(found)]


def instructions(text: str) -> Iterator[Instruction]:
    """Each with its continued lines as one text, without comments."""
    ignored: frozenset[str] = frozenset()
    parts: list[str] = []
    begun = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#"):
            if found := re.match(r"\s*#\s*hadolint\s+ignore=([\w,\s]+)", line):
                ignored = frozenset(re.split(r"[,\s]+", found[1].strip()))
            continue
        if not line.strip():
            continue
        begun = begun or number
        parts.append(line.rstrip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            name, _, rest = " ".join(parts).partition(" ")
            yield Instruction(name, rest.strip(), begun, ignored)
            ignored, parts, begun = frozenset(), [], 0
    if parts:
        yield Instruction("", " ".join(parts), begun, ignored)  # the file ends inside of an instruction


def _wrong(step: Instruction) -> Iterator[tuple[str, str]]:
    if step.name not in INSTRUCTIONS:
        yield "DL1000", f"no instruction: {step.name or step.text}"
    elif step.name == "FROM":
        image = step.text.split()[0]
        tag = image.rpartition("/")[2].partition(":")[2]
        if not tag and "@" not in image:
            yield "DL3006", f"{image} has no tag"
        if tag == "latest":
            yield "DL3007", f"{image} is another image tomorrow"
    elif step.name == "RUN":
        for command in re.split(r"&&|\|\||;|\|", step.text):
            yield from _wrong_command(command.split())
        if "apt-get install" in step.text and "rm -rf /var/lib/apt/lists" not in step.text:
            yield "DL3009", "the lists of apt stay in the layer"
    elif step.name in ("CMD", "ENTRYPOINT") and not step.text.startswith("["):
        yield "DL3025", f"{step.name} is no list, and a shell takes the signals"
    elif step.name == "WORKDIR" and not re.match(r'["$/]', step.text):
        yield "DL3000", f"{step.text} is no absolute path"
    elif step.name == "ADD" and not re.search(r"https?://|\.tar", step.text):
        yield "DL3020", "COPY copies files"


def _wrong_command(words: list[str]) -> Iterator[tuple[str, str]]:
    if words[:1] == ["sudo"]:
        yield "DL3004", "sudo"
    if words[:1] == ["cd"]:
        yield "DL3003", "cd, where WORKDIR would do"
    if words[:2] == ["apt-get", "install"]:
        yield from ((rule, f"apt-get {said}") for rule, any_of, said in APT_OPTIONS if not set(any_of) & set(words))
        if any("=" not in word for word in words[2:] if not word.startswith("-")):
            yield "DL3008", "packages of apt without versions"
    if words[:2] == ["pip", "install"]:
        if "--no-cache-dir" not in words:
            yield "DL3042", "pip keeps a cache in the layer"
        if "--constraint" not in words and "-c" not in words:
            yield "DL3013", "packages of pip without versions or constraints"


def _wrong_together(steps: list[Instruction]) -> Iterator[tuple[int, str, str]]:
    """What no instruction shows alone: who runs it, how often it starts, and names that nobody gave."""
    users = [step for step in steps if step.name == "USER"]
    last = users[-1] if users else None
    if last is None or last.text.partition(":")[0] in ("root", "0"):
        yield (last or steps[-1]).line, "DL3002", "the container runs as root"
    for name, rule in (("CMD", "DL4003"), ("ENTRYPOINT", "DL4004")):
        given = [step for step in steps if step.name == name]
        yield from ((step.line, rule, f"{name} is given again") for step in given[1:])
    known: set[str] = set()
    for step in steps:
        if step.name == "FROM":
            known = set()  # an ARG ends with its stage; those before the first FROM are for FROM alone
        elif step.name in ("ARG", "ENV"):
            known |= {word.partition("=")[0] for word in re.findall(r"(?:^|\s)(\w+(?==|\s|$))", step.text)}
        if step.name in ("RUN", "COPY", "WORKDIR", "ENTRYPOINT", "CMD"):
            for used in re.findall(r"\$\{?(\w+)", step.text):
                if used not in known | {"PATH", "HOME"}:
                    yield step.line, "SC2154", f"${used} is given nowhere in this stage"
