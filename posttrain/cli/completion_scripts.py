"""What completes a command line in bash, zsh and fish, from records of its verbs: three scripts of the same content.

A word that begins with `-` completes to options; after an option come its choices, or files; else come verbs, names
that the verb knows, the stages of the recipe on the line (`posttrain run mine.yaml dp<tab>` is `dpo.`), and files.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class Names(Enum):
    """What an argument completes to, beside names that are known."""

    FILES = "files"
    STAGES_OF_RECIPE = "files, and settings of the stages of the recipe that stands on the line"


@dataclass(frozen=True, slots=True)
class Option:
    """Option("--device", ("auto", "cpu"), "auto, cpu, cuda, ...")"""

    name: str
    choices: tuple[str, ...]
    help: str
    is_flag: bool = False
    """Whether no value follows."""


@dataclass(frozen=True, slots=True)
class Command:
    """Command("models pull", (), (Option("--force", (), "..."),), names=("embedded",)): words after `posttrain`, and
    what may follow."""

    words: str
    verbs: tuple[str, ...]
    options: tuple[Option, ...]
    help: str
    names: tuple[str, ...] = ()
    """What an argument may be beside a file."""
    takes: Names = Names.FILES


AWK = r"""
function flush() { if (name == "") name = method; if (name != "") print name; name = method = "" }
function value(line, key) {
  if (!match(line, "(^|[{, ])" key ": *[A-Za-z0-9_-]+")) return ""
  line = substr(line, RSTART, RLENGTH); sub(/^.*: */, "", line); return line
}
/^[^ #-]/ { inside = ($0 ~ /^stages:/); next }
!inside || /^ *#/ || /^ *$/ { next }
{ match($0, /^ */); depth = RLENGTH; line = substr($0, depth + 1) }
line ~ /^- / && (item == "" || depth == item) { flush(); item = depth; sub(/^- */, "", line); depth += 2 }
depth == item + 2 && line !~ /^- / {
  if (line ~ /^[{]/) sub(/\[.*/, "", line)
  else if (line !~ /^(name|method):/) next
  if ((found = value(line, "name")) != "") name = found
  if ((found = value(line, "method")) != "") method = found
}
END { flush() }
"""
"""Names of a recipe's stages, one a line: a stage without a name has its method's."""
STAGES = f"""_posttrain_stages() {{
  local word record
  for word in "$@"; do
    if [ -f "$word/run.json" ]; then
      for record in "$word"/*/stage.json; do
        if [ -f "$record" ]; then record="${{record%/stage.json}}"; echo "${{record##*/}}"; fi
      done
    elif [ -f "$word" ]; then
      case "$word" in *.yaml|*.yml) awk {shlex.quote(AWK)} "$word" ;; esac
    fi
  done
}}
"""
BASH = """_posttrain() {
  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" verb="" found="" files="" one
  local line=("${COMP_WORDS[@]:2}")
  if (( COMP_CWORD > 1 )); then verb="${COMP_WORDS[1]}"; fi
  case "$verb" in @GROUPS@) if (( COMP_CWORD > 2 )); then verb="$verb ${COMP_WORDS[2]}"; fi ;; esac
  _posttrain_found "$verb" "$before" "$current" "${line[@]}"
  COMPREPLY=($(compgen -W "$found" -- "$current"))
  # Files complete by themselves (`-o default`) where nothing else does; beside names they are added.
  if [ -n "$files" ] && (( ${#COMPREPLY[@]} )); then
    while IFS= read -r one; do COMPREPLY+=("$one"); done < <(compgen -f -- "$current")
    if type compopt > /dev/null 2>&1; then compopt -o filenames; fi
  fi
  case "${COMPREPLY[*]}" in *.) if type compopt > /dev/null 2>&1; then compopt -o nospace; fi ;; esac
}
complete -o default -o bashdefault -F _posttrain posttrain
"""
ZSH = """_posttrain() {
  local current="${words[CURRENT]}" before="${words[CURRENT-1]}" verb="" found="" files=""
  local line=("${(@Q)words[3,-1]}")
  if (( CURRENT > 2 )); then verb="${words[2]}"; fi
  case "$verb" in @GROUPS@) if (( CURRENT > 3 )); then verb="$verb ${words[3]}"; fi ;; esac
  _posttrain_found "$verb" "$before" "$current" "${line[@]}"
  local plain=(${${=found}:#*.}) stages=(${(M)${=found}:#*.}) known=1
  compadd -- $plain && known=0
  compadd -S '' -- $stages && known=0
  if [[ -n "$files" ]]; then _files && known=0; fi
  return known
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _posttrain posttrain
"""
FISH = """function __posttrain_verb
    set -l words (commandline -opc)
    set -l verb "$words[2]"
    if contains -- "$verb" @GROUPS@
        set verb (string trim -- "$verb $words[3]")
    end
    echo $verb
end
function __posttrain_is
    set -l verb (__posttrain_verb)
    test "$verb" = "$argv[1]"
end
function __posttrain_stages
    for word in (commandline -opc)[3..-1]
        set word (string replace -r '^~' $HOME -- $word)
        if test -f "$word/run.json"
            for record in $word/*/stage.json
                path basename (path dirname $record)
            end
        else if string match -qr '\\.ya?ml$' -- $word; and test -f $word
            awk @AWK@ $word
        end
    end
end
function __posttrain_stages_or
    set -l stages (__posttrain_stages)
    if set -q stages[1]
        printf '%s.\n' $stages
    else
        printf '%s\n' $argv
    end
end
"""


def bash(commands: list[Command]) -> str:
    """A function for bash's `complete`."""
    return '# Completion of posttrain in bash: eval "$(posttrain completion bash)"\n' + _shared(commands, BASH)


def zsh(commands: list[Command]) -> str:
    """A function for zsh's `compdef`."""
    return '# Completion of posttrain in zsh: eval "$(posttrain completion zsh)"\n' + _shared(commands, ZSH)


def _shared(commands: list[Command], shell: str) -> str:
    """What bash and zsh read alike: `found` and `files` of a verb, the word before and the word itself."""
    groups = "|".join(shlex.quote(command.words) for command in commands if command.verbs and command.words)
    lines = [
        STAGES + "_posttrain_found() {",
        '  local verb="$1" before="$2" current="$3"; shift 3',
        '  case "$verb $before" in',
        *_after_options(commands),
        "    *)",
        '  case "$current" in',
        "  -*)",
        '  case "$verb" in',
        *(f"    {_case(one.words)}) found={_listed(option.name for option in one.options)} ;;" for one in commands),
        "  esac ;;",
        "  *)",
        '  case "$verb" in',
        *(f"    {_case(one.words)}) {_arguments(one)} ;;" for one in commands),
        "  esac ;;",
        "  esac ;;",
        "  esac",
        "}",
    ]
    return "\n".join(lines) + "\n" + shell.replace("@GROUPS@", groups)


def _after_options(commands: list[Command]) -> Iterator[str]:
    for command in commands:
        valued = [option for option in command.options if not option.is_flag]
        for option in valued:
            if option.choices:
                yield f"    {_case(f'{command.words} {option.name}')}) found={_listed(option.choices)} ;;"
            elif option.name == "--stage":
                yield f'    {_case(f"{command.words} {option.name}")}) found="$(_posttrain_stages "$@")" ;;'
        plain = [option.name for option in valued if not option.choices and option.name != "--stage"]
        if plain:
            yield f"    {'|'.join(_case(f'{command.words} {name}') for name in plain)}) files=1 ;;"


def _arguments(command: Command) -> str:
    if command.verbs:
        return f"found={_listed(command.verbs)}"
    if command.takes is Names.STAGES_OF_RECIPE:  # names of recipes until there is one
        stages = "$(_posttrain_stages \"$@\" | sed 's/$/./')"
        return f'files=1 found="{stages}"; [ -n "$found" ] || found={_listed(command.names)}'
    return f"files=1 found={_listed(command.names)}"


def _case(words: str) -> str:
    return shlex.quote(words)


def _listed(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def fish(commands: list[Command]) -> str:
    """Lines of `complete`; each says under which verb it holds."""
    groups = " ".join(command.words for command in commands if command.verbs and command.words)
    lines = ["# Completion of posttrain in fish: posttrain completion fish | source"]
    lines += [FISH.replace("@GROUPS@", groups).replace("@AWK@", _fish_quoted(AWK))]
    below = {command.words: command.help for command in commands}
    for command in commands:
        where = f"complete -c posttrain -n {_fish_quoted(f'__posttrain_is {_fish_quoted(command.words)}')}"
        for verb in command.verbs:
            text = below[f"{command.words} {verb}".strip()]
            lines.append(f"{where} -f -a {verb} -d {_fish_quoted(text)}")
        if command.takes is Names.STAGES_OF_RECIPE:
            lines.append(f"{where} -a '(__posttrain_stages_or {' '.join(command.names)})'")
        elif command.names:
            lines.append(f"{where} -a {_fish_quoted(' '.join(command.names))}")
        for option in command.options:
            values = "" if option.is_flag else " -r"
            if option.choices:
                values = f" -x -a {_fish_quoted(' '.join(option.choices))}"
            elif option.name == "--stage":
                values = " -x -a '(__posttrain_stages)'"
            kind = f"-l {option.name[2:]}" if option.name.startswith("--") else f"-s {option.name[1:]}"
            lines.append(f"{where} {kind}{values} -d {_fish_quoted(option.help)}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    """In fish a backslash counts inside single quotes too."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
