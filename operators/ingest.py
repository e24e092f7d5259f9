"""A document's way into the memory: chunks of whole sentences, embedded, as nodes whose ids stay the same."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from operators.documents import DocumentsConfig, chunk, document_id, node_id, normalise
from operators.engines.ports import Encoded
from operators.errors import Reject
from operators.records import record
from operators.stores.ports import Node

SLICE = 32
"""Chunks of a document in one call of the encoder."""


@record
class Document:
    """One document as text. Its name is ``id``, else its source, else its text.

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
    """The document's id, made of its name."""
    if document.id is not None:
        return document_id(tenant, source=f"id:{document.id}")
    return document_id(tenant, source=document.source, content=document.text)


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
    texts = [piece.text for piece in pieces]
    # In slices, so that queries come in between: the encoder does one call at a time.
    slices = [await embed.texts(texts[i : i + SLICE], query=False) for i in range(0, len(texts), SLICE)]
    vectors = np.concatenate([encoded.vectors for encoded in slices])
    name = identity(tenant, document)
    version = document_id(tenant, content=f"{name}\0{text}")
    seen: Counter[str] = Counter()
    nodes = []
    for i, piece in enumerate(pieces):
        node = Node(
            node_id=node_id(tenant, f"{name}\0{piece.text}", "document", seen[piece.text]),
            kind="document",
            text=piece.text,
            vector=vectors[i],
            # Chunks of one document hang together even when the caller named no source.
            source=document.source or name,
            position=piece.position,
            tokens=piece.tokens,
            created_at=created_at,
            model=embed.id,
            metadata={
                **document.metadata,
                "document": name,
                "version": version,
                **({"heading": piece.heading} if piece.heading else {}),
            },
        )
        seen[piece.text] += 1
        nodes.append(node)
    return nodes
