"""Documents: bytes a user gave us → clean text → chunks of whole sentences, with ids that say the same twice.

``parse`` is slow for large PDFs and blocks (seconds); call it in a worker thread or process, never on the event loop.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
import uuid
from collections.abc import Callable, Sequence

from pydantic import Field

from operators import markdown
from operators.base import Knobs
from operators.errors import Reject
from operators.records import Kind, record
from operators.sentences import Unit, split

LONG_BYTES = 256 * 1024
"""Text that is worth a request's time of its own: half a minute's embedding where 12 chunks a second are embedded."""
NAMESPACE = uuid.UUID("6f1d3c52-9b0e-5c1b-8a54-2f0c8e7d4a10")
"""Namespace of all ids made here. Changing it makes every stored node a stranger: never do."""

_BY_MEDIA_TYPE = {
    "application/pdf": "pdf",
    "text/markdown": "markdown",
    "text/x-markdown": "markdown",
    "text/plain": "text",
}
_BY_SUFFIX = {"pdf": "pdf", "md": "markdown", "markdown": "markdown", "mdown": "markdown"}
_UNTOLD = {"", "application/octet-stream", "binary/octet-stream"}
_JUNK = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u00ad\u200b\u2060\ufeff\ufffe\uffff]")


class DocumentsConfig(Knobs):
    """The knobs of reading and chunking documents."""

    max_bytes: int = Field(default=10 * 2**20, ge=1)
    """Largest document in bytes; larger ones are refused with 413."""
    max_markdown_bytes: int = Field(default=2 * 2**20, ge=1)
    """Largest Markdown document in bytes; its parser takes seconds a megabyte, and a minute for one made to be slow."""
    max_pages: int = Field(default=500, ge=1)
    """Most pages of a PDF; longer ones are refused with 413."""
    max_chars: int = Field(default=5_000_000, ge=1)
    """Most characters of text a document may turn into; a PDF's compressed pages can hold far more than its bytes."""
    max_tokens: int = Field(default=200, ge=16)
    """Longest chunk in the encoder's tokens; what the encoder cuts off can't be found."""
    overlap_sentences: int = Field(default=1, ge=0, le=8)
    """Sentences that a chunk repeats from the one before, so that a pronoun keeps its noun."""


@record
class Chunk:
    """A piece of a document. ``position`` counts from 0; ``heading`` is the path of headings it begins under, joined
    by " > " (empty: none). ``tokens`` is what ``count`` says of ``text``; the first ``overlap`` characters repeat the
    chunk before.
    """

    text: str
    tokens: int
    position: int
    heading: str
    overlap: int = 0


# ------------------------------------------------------------------------------------------------------------- parse


def parse(data: bytes, *, name: str, media_type: str | None = None, config: DocumentsConfig | None = None) -> str:
    """Clean text of a document: UTF-8 text, Markdown or PDF.

    ``media_type`` decides what it is; without one (or with ``application/octet-stream``) the first bytes and the suffix
    of ``name`` do. Headings stay as ``# words`` and code stays fenced, because ``chunk`` reads both.

    Raises:
        Reject: 413 too large, 415 not a kind we read, 400 broken, encrypted, not UTF-8 or without text.
    """
    config = config or DocumentsConfig()
    who = f"documents: {name or 'unnamed document'}"
    kind = _kind(data, name, media_type, who)
    knob = "max_markdown_bytes" if kind == "markdown" and config.max_markdown_bytes < config.max_bytes else "max_bytes"
    if len(data) > getattr(config, knob):
        got = f"{len(data)} bytes, the limit is {getattr(config, knob)}"
        raise Reject(who, got, f"split the document or raise {knob}", 413, "file", "document_too_large")
    if kind == "pdf":
        text = _pdf(data, who, config)
    else:
        text = _decode(data, who)
        if kind == "markdown":
            text = markdown.plain(text)
    text = normalise(text)
    if len(text) > config.max_chars:
        got = f"{len(text)} characters of text, the limit is {config.max_chars}"
        raise Reject(who, got, "split the document or raise max_chars", 413, "file", "document_too_large")
    if not text:
        raise Reject(
            who, f"no text in {len(data)} bytes", "send a document with text in it", 400, "file", "empty_document"
        )
    return text


def normalise(text: str) -> str:
    """NFC, ``\\n`` line ends, no control or invisible characters, no trailing blanks, at most one blank line in a row.

    Applying it twice changes nothing more.
    """
    text = unicodedata.normalize("NFC", _JUNK.sub("", re.sub(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", "\n", text)))
    text = "\n".join(line.rstrip(" \t\u00a0") for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _kind(data: bytes, name: str, media_type: str | None, who: str) -> str:
    told = (media_type or "").split(";")[0].strip().lower()
    looks_pdf = b"%PDF-" in data[:1024]
    if told in _UNTOLD:
        suffix = name.rsplit(".", 1)[-1].lower() if "." in name else ""
        kind = "pdf" if looks_pdf else _BY_SUFFIX.get(suffix, "text")
    elif told in _BY_MEDIA_TYPE:
        kind = _BY_MEDIA_TYPE[told]
    else:
        remedy = f"send one of {', '.join(_BY_MEDIA_TYPE)}"
        raise Reject(who, f"media type {told!r}", remedy, 415, "file", "unsupported_media_type")
    if kind == "pdf" and not looks_pdf:
        got = f"no PDF header, the document begins with {data[:16]!r}"
        raise Reject(who, got, "send a PDF, or name the real media type", 400, "file", "not_a_pdf")
    return kind


def _decode(data: bytes, who: str) -> str:
    if b"\x00" in data:
        got = f"a zero byte at offset {data.index(0)}, so this is no text"
        raise Reject(who, got, "send UTF-8 text, Markdown or PDF", 415, "file", "unsupported_media_type")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        got = f"byte 0x{data[e.start]:02x} at offset {e.start} is not UTF-8"
        raise Reject(who, got, "save the document as UTF-8", 400, "file", "not_utf8") from e


def _pdf(data: bytes, who: str, config: DocumentsConfig) -> str:
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = 0 if locked else len(reader.pages)
        if locked:
            raise Reject(who, "an encrypted PDF", "remove the password and send it again", 400, "file", "encrypted_pdf")
        if pages > config.max_pages:
            got = f"{pages} pages, the limit is {config.max_pages}"
            raise Reject(who, got, "split the document or raise max_pages", 413, "file", "document_too_large")
        texts: list[str] = []
        size = 0
        for page in reader.pages:
            texts.append(page.extract_text())
            size += len(texts[-1])
            if size > config.max_chars:
                got = f"more than {config.max_chars} characters of text after {len(texts)} pages"
                raise Reject(who, got, "split the document or raise max_chars", 413, "file", "document_too_large")
    except Reject:
        raise
    except Exception as e:  # a broken PDF fails in the parser with almost any error, so this is the one door for them
        got = f"a PDF that can't be read ({type(e).__name__}: {str(e)[:120]})"
        raise Reject(who, got, "repair it or export it again", 400, "file", "broken_pdf") from e
    if not any(text.strip() for text in texts):
        got = f"no text on {pages} pages, so they are pictures"
        raise Reject(who, got, "run text recognition on it first", 400, "file", "empty_document")
    return re.sub(r"(?<=[^\W\d_])-\n(?=[a-zà-öø-ÿ])", "", "\n\n".join(text.strip("\n") for text in texts))


# ------------------------------------------------------------------------------------------------------------- chunk


def chunk(text: str, count: Callable[[str], int], *, max_tokens: int, overlap_sentences: int) -> list[Chunk]:
    """Pack the sentences of ``text`` greedily into chunks of at most ``max_tokens`` by ``count``.

    A longer sentence is cut between words near its middle, a longer word between characters. A heading opens a new
    chunk once the present one is half full, and ends one only when nothing fits behind it. Nothing is lost or
    reordered: without their overlaps the chunks are ``normalise(text)`` but for the white space between them.
    """
    units = [part for unit in split(normalise(text)) for part in _fit(unit, count, max_tokens)]
    sizes = [count(_join([unit])) for unit in units]
    chunks: list[Chunk] = []
    path: list[Unit] = []
    begin = end = 0
    while end < len(units):
        fresh = end
        begin = _overlap(units, sizes, begin, fresh, max_tokens, overlap_sentences)
        end = _pack(units, sizes, begin, fresh, max_tokens)
        # Tokens of joined text may be more than the sum of its parts: let the real count decide.
        while end > fresh + 1 and count(_join(units[begin:end])) > max_tokens:
            end -= 1
        while begin < fresh and count(_join(units[begin:end])) > max_tokens:
            begin += 1
        while end > fresh + 1 and end < len(units) and units[end - 1].level:
            end -= 1
        _enter(path, units[fresh])
        body = _join(units[begin:end])
        if body:
            overlap = len(body) - len(_join(units[fresh:end]))
            under = " > ".join(heading.title for heading in path)
            chunks.append(Chunk(text=body, tokens=count(body), position=len(chunks), heading=under, overlap=overlap))
        for unit in units[fresh + 1 : end]:
            _enter(path, unit)
    return chunks


def _fit(unit: Unit, count: Callable[[str], int], max_tokens: int) -> list[Unit]:
    """``unit`` in parts of at most ``max_tokens``, halved at the white space nearest to the middle."""
    text = unit.text
    if len(text) < 2 or count(_join([unit])) <= max_tokens:
        return [unit]
    middle = len(text) // 2
    gaps = [gap.end() for gap in re.finditer(r"\s+", text) if gap.start() and gap.end() < len(text)]
    cut = min(gaps, key=lambda at: abs(at - middle), default=middle)
    return _fit(Unit(text[:cut]), count, max_tokens) + _fit(Unit(text[cut:]), count, max_tokens)


def _overlap(units: Sequence[Unit], sizes: Sequence[int], begin: int, fresh: int, max_tokens: int, wanted: int) -> int:
    """Where the chunk whose first new unit is ``fresh`` begins: up to ``wanted`` units earlier, within its section."""
    start, room = fresh, max_tokens - sizes[fresh]
    if units[fresh].level:
        return fresh
    while start > begin + 1 and fresh - start < wanted and sizes[start - 1] <= room and not units[start - 1].level:
        start -= 1
        room -= sizes[start]
    return start


def _pack(units: Sequence[Unit], sizes: Sequence[int], begin: int, fresh: int, max_tokens: int) -> int:
    """End of the chunk that begins at ``begin``: all that fits, at least ``fresh``, less before a new section."""
    used = sum(sizes[begin : fresh + 1])
    end = fresh + 1
    while end < len(units) and used + sizes[end] <= max_tokens:
        if 2 * used >= max_tokens and units[end].level:
            break
        used += sizes[end]
        end += 1
    return end


def _enter(path: list[Unit], unit: Unit) -> None:
    """Keep ``path``, the headings in force, up to date."""
    if unit.level:
        while path and path[-1].level >= unit.level:
            path.pop()
        path.append(unit)


def _join(units: Sequence[Unit]) -> str:
    return "".join(unit.text for unit in units).strip("\n").rstrip()


# --------------------------------------------------------------------------------------------------------------- ids


def document_id(tenant: str, *, source: str = "", content: str = "") -> str:
    """UUIDv5 of a document: of its ``source`` (path, URL) if it has one, else of the SHA-256 of its ``content``.

    The same document of the same tenant always gets the same id; two tenants never share one.
    """
    if not source and not content:
        raise Reject("documents", "neither source nor content", "give one of them", 400)
    what = ["source", source] if source else ["content", hashlib.sha256(content.encode()).hexdigest()]
    return str(uuid.uuid5(NAMESPACE, json.dumps([tenant, *what])))


def node_id(tenant: str, what: str, kind: Kind, position: int = 0) -> str:
    """UUIDv5 of a memory node: ``what`` is a document id (with the chunk's ``position``) or an interaction id."""
    return str(uuid.uuid5(NAMESPACE, json.dumps([tenant, what, kind, position])))
