"""The pages of the documentation, and what is written on them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "clients/*/*.md",
        "examples/**/*.md",
        "helm/**/*.md",
        "protos/*.md",
    )
    for path in ROOT.glob(pattern)
)


def page_id(page: Path) -> str:
    """Return what a page is called in the names of tests."""
    return str(page.relative_to(ROOT))


def fenced(text: str, language: str) -> Iterator[str]:
    """Yield the fenced blocks in a language."""
    for found, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if found == language:
            yield block


def spans(text: str) -> Iterator[str]:
    """Yield the inline code of a page, in one line each."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for paragraph in prose.split("\n\n"):
        for span in re.findall(r"`([^`]+)`", paragraph):
            yield " ".join(span.split())


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield the heading and the rows of each table."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        heading, _, *rows = (
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
            for line in block.splitlines()
        )
        yield heading, rows


def shell_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each simple command in the shell blocks of a page."""
    prompts = (
        "\n".join(line[2:] for line in block.splitlines() if line.startswith("$ "))
        for block in fenced(text, "console")
    )
    for block in (*fenced(text, "sh"), *prompts):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            yield from _simple_commands(list(lexer))


def _simple_commands(words: Sequence[str]) -> Iterator[list[str]]:
    """Split at `&&`, `;` and `|`; leave out variables set before a command, and redirections."""
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set(";&|"):
            if command:
                yield command[: command.index(">")] if ">" in command else command
            command = []
        elif command or not re.match(r"\w+=", word):
            command.append(word)
