"""The fenced code blocks of a Markdown file, and what is to be done with each."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

SHELL = ("bash", "console", "sh", "shell")

_FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}|~{3,}) *(?P<language>[\w+-]*)")
_DIRECTIVE = re.compile(r"^\s*<!-- *(?P<name>file|run|skip)(?:: *(?P<value>.*?))? *-->\s*$")


@dataclass(frozen=True)
class Block:
    """One block; `directive` is that of the comment on the line above it, if any.

    ``<!-- file: tasks.py -->``: write the block to that file.  ``<!-- run -->``: run the shell
    commands.  ``<!-- skip: reason -->``: do nothing, for the reason given.
    """

    language: str
    text: str
    line: int  # of its first line, in the file
    directive: str = ""
    value: str = ""

    @property
    def action(self) -> str:
        """What to do: ``file``, ``python``, ``shell``, ``check`` (are these commands?) or nothing."""
        if self.directive == "skip":
            return ""
        if self.directive == "file":
            return "file"
        if self.language in ("python", "pycon"):
            return "python"
        if self.language in SHELL:
            return "shell" if self.directive == "run" else "check"
        return ""


def code_blocks(markdown: str) -> list[Block]:
    """The blocks in their order.  Raises ValueError for one without end or an unreasoned skip."""
    blocks: list[Block] = []
    lines = markdown.splitlines()
    number = 0
    above = ""
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            above = lines[number] if lines[number].strip() else above
            number += 1
            continue
        start = number + 1
        number = start
        while number < len(lines) and lines[number].strip() != fence["mark"]:
            number += 1
        if number == len(lines):
            raise ValueError(f"the block that begins on line {start} has no end")
        blocks.append(_block(fence, lines[start:number], start + 1, above))
        above = ""
        number += 1
    return blocks


def _block(fence: re.Match[str], lines: list[str], line: int, above: str) -> Block:
    indent = len(fence["indent"])
    text = "".join(one[min(indent, len(one) - len(one.lstrip())) :] + "\n" for one in lines)
    directive = _DIRECTIVE.match(above)
    if directive is None:
        return Block(fence["language"], text, line)
    name, value = directive["name"], directive["value"] or ""
    if name in ("file", "skip") and not value:
        raise ValueError(f"the {name} comment above line {line} needs a value: <!-- {name}: ... -->")
    return Block(fence["language"], text, line, name, value)


def shell_commands(block: Block) -> str:
    """The block's commands without prompts, and without the output that a console shows."""
    lines = block.text.replace("\\\n", "").splitlines()
    if any(line.lstrip().startswith("$ ") for line in lines):
        lines = [line.lstrip()[2:] for line in lines if line.lstrip().startswith("$ ")]
    return "\n".join(lines)


def minicelery_commands(block: Block) -> list[list[str]]:
    """The arguments of every call of minicelery in the block."""
    calls = []
    for line in shell_commands(block).splitlines():
        for words in _simple_commands(line):
            while words and re.match(r"^[A-Za-z_]\w*=", words[0]):
                words = words[1:]
            if words[:1] == ["minicelery"]:
                calls.append(words[1:])
            elif words[1:3] == ["-m", "minicelery"]:
                calls.append(words[3:])
    return calls


def make_targets(block: Block) -> list[str]:
    """The targets of every call of make in the block."""
    return [
        word
        for line in shell_commands(block).splitlines()
        for words in _simple_commands(line)
        if words[:1] == ["make"]
        for word in words[1:]
        if "=" not in word and not word.startswith("-")
    ]


def _simple_commands(line: str) -> list[list[str]]:
    line = re.sub(r"(?<=\s)\d(?=[<>])", "", line)  # the 2 of 2>&1
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if set(word) <= set("();|&"):
            commands.append([])
        elif set(word) <= set("<>&"):
            redirected = True
        elif redirected:
            redirected = False
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def documents(root: Path) -> list[Path]:
    """README.md and the pages of docs/."""
    readme = root / "README.md"
    return [*([readme] if readme.exists() else []), *sorted((root / "docs").rglob("*.md"))]
