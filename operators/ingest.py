"""A document's way into the memory: chunks of whole sentences, embedded, as nodes whose ids stay the same."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Protocol

from operators.documents import DocumentsConfig, chunk, document_id, node_id, normalise
from operators.engines.ports import Encoded
from operators.errors import Reject
from operators.records import record
from operators.stores.ports import Node


@record
class Document:
    """One document as text. ``id`` is the caller's name for it; without one its source and text together name it.

    A node's id follows from the document's name and the chunk's text: the same document twice is the same nodes, and a
    changed one adds its changed chunks. (The chunks they replace stay until they are deleted.)
    """

    text: str
    source: str = ""
    id: str | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


class Texts(Protocol):
    """What is needed of ``embed``."""

    @property
    def id(self) -> str:
        """What makes vectors comparable."""

    async def texts(self, texts: Sequence[str], *, query: bool) -> Encoded:
        """Vectors of ``texts`` in their order."""

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``, untruncated."""


def identity(tenant: str, document: Document) -> str:
    """The document's id: the caller's name for it, or one made of source and text."""
    if document.id is not None:
        return document_id(tenant, source=f"id:{document.id}")
    return document_id(tenant, content=f"{document.source}\0{document.text}")


async def document_nodes(
    tenant: str, document: Document, embed: Texts, config: DocumentsConfig, created_at: float
) -> list[Node]:
    """The nodes of ``document``, one a chunk, in order. ``created_at`` is Unix seconds.

    Raises ``Reject`` (400) when nothing is left of the text once control characters and blanks are gone.
    """
    text = normalise(document.text)
    pieces = await asyncio.to_thread(
        chunk, text, embed.count_tokens, max_tokens=config.max_tokens, overlap_sentences=config.overlap_sentences
    )
    if not pieces:
        got = f"no text in {len(document.text)} characters"
        raise Reject("documents", got, "send a document with text in it", 400, "documents", "empty_document")
    encoded = await embed.texts([piece.text for piece in pieces], query=False)
    name = identity(tenant, document)
    return [
        Node(
            node_id=node_id(tenant, f"{name}\0{piece.text}", "document", piece.position),
            kind="document",
            text=piece.text,
            vector=encoded.vectors[i],
            # Chunks of one document hang together even when the caller named no source.
            source=document.source or name,
            position=piece.position,
            tokens=piece.tokens,
            created_at=created_at,
            model=embed.id,
            metadata={**document.metadata, "document": name, **({"heading": piece.heading} if piece.heading else {})},
        )
        for i, piece in enumerate(pieces)
    ]
