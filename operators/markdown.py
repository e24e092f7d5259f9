"""Markdown without its marks, for reading by models: CommonMark plus tables, parsed by markdown-it-py.

Headings stay ``# words``, lists ``- item`` or ``1. item``, code stays fenced, table rows ``| a | b |``, because those
marks carry structure that chunking and models use. Links and pictures leave their words; HTML leaves what is between
its tags.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# What is left open runs to the end, so that no text is searched twice.
_TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<(?:script|style)\b.*?(?:</(?:script|style)>|\Z)|</?[A-Za-z][^<>]*>|<[!?][^<>]*>", re.S | re.I
)


def plain(text: str) -> str:
    """``text`` (Markdown) as plain text; blocks are set apart by a blank line, items of a tight list by none.

    What is nested more than 100 levels deep is left out. Takes about 5 s a megabyte of prose.
    """
    from markdown_it import MarkdownIt

    writer = _Writer()
    for token in MarkdownIt("commonmark", {"maxNesting": 100}).enable("table").parse(text):
        writer.take(token)
    return "".join(writer.out).strip("\n")


class _Writer:
    """Walks the block tokens and keeps what is needed to write the next one: list depth, numbers, table row."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.lists: list[int | None] = []
        self.row: list[str] | None = None
        self.prefix = ""

    def take(self, token: Any) -> None:
        """Write one block token."""
        match token.type:
            case "heading_open":
                self.prefix += "#" * int(token.tag[1]) + " "
            case "inline":
                self._inline(inline(token.children or ()))
            case "fence" | "code_block":
                marks = "`" * max(3, 1 + max(map(len, re.findall("`+", token.content)), default=0))
                self.prefix = self.prefix.rstrip() + "\n" if self.prefix.strip() else ""  # a fence begins its line
                self._block(f"{marks}{token.info.strip()}\n{token.content.rstrip()}\n{marks}\n")
            case "html_block":
                if words := _TAG.sub("", token.content).strip():
                    self._block(words + "\n")
            case "bullet_list_open":
                self.lists.append(None)
            case "ordered_list_open":
                self.lists.append(int(token.attrs.get("start", 1)))
            case "bullet_list_close" | "ordered_list_close":
                self.lists.pop()
                self._gap(bool(self.lists))
            case "list_item_open":
                self.prefix = "  " * (len(self.lists) - 1) + self._bullet()
            case "paragraph_close" | "heading_close" | "table_close":
                self._gap(bool(token.hidden))
            case "tr_open":
                self.row = []
            case "tr_close":
                self.out.append("| " + " | ".join(self.row or ()) + " |\n")
                self.row = None

    def _inline(self, words: str) -> None:
        if self.row is not None:
            self.row.append(words.replace("\n", " "))
        else:
            self.out.append(self.prefix + words + "\n")
            self.prefix = ""

    def _block(self, text: str) -> None:
        self.out.append(self.prefix + text)
        self.prefix = ""
        self._gap(False)

    def _bullet(self) -> str:
        number = self.lists[-1]
        if number is None:
            return "- "
        self.lists[-1] = number + 1
        return f"{number}. "

    def _gap(self, tight: bool) -> None:
        if not tight and self.out and self.out[-1] != "\n":
            self.out.append("\n")


def inline(children: Sequence[Any]) -> str:
    """The words of inline tokens: marks, link targets and tags fall away."""
    words: list[str] = []
    for child in children:
        if child.type in ("text", "code_inline"):
            words.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            words.append("\n")
        elif child.type == "image":
            words.append(inline(child.children or ()))
    return "".join(words)
