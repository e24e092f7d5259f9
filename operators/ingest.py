"""A document's way into the memory: masked, in chunks of whole sentences, embedded, as nodes whose ids stay."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from operators.documents import Chunk, DocumentsConfig, chunk, document_id, node_id, normalise
from operators.engines.ports import Encoded
from operators.errors import Reject
from operators.privacy.masker import Masker
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
    domain: str = ""
    user: str = ""
    expires_at: float = 0.0
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


@record
class Nodes:
    """The nodes of some documents, those of each in order, and how many values of each kind were masked in them."""

    nodes: list[list[Node]]
    masked: dict[str, int]


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
    tenant: str, document: Document, embed: Texts, config: DocumentsConfig, masker: Masker, created_at: float
) -> list[Node]:
    """The nodes of ``document``, one a chunk, in order. ``created_at`` is Unix seconds.

    Its text and the values of its metadata are masked if ``masker.config.documents`` says so; ``masker`` counts. The
    text is masked as a whole, so equal values have equal placeholders in all chunks, and ids follow from masked text.

    Raises ``Reject`` (400) when nothing is left of the text once control characters and blanks are gone.
    """

    def cut() -> tuple[str, list[Chunk], dict[str, str]]:
        text, metadata = normalise(document.text), document.metadata
        if masker.config.documents:
            text, metadata = masker(text), {key: masker(value) for key, value in metadata.items()}
        most, overlap = config.max_tokens, config.overlap_sentences
        return text, chunk(text, embed.count_tokens, max_tokens=most, overlap_sentences=overlap), metadata

    text, pieces, metadata = await asyncio.to_thread(cut)
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
            domain=document.domain,
            user=document.user,
            expires_at=document.expires_at,
            position=piece.position,
            tokens=piece.tokens,
            created_at=created_at,
            model=embed.id,
            metadata={
                **metadata,
                "document": name,
                "version": version,
                **({"heading": piece.heading} if piece.heading else {}),
            },
        )
        seen[piece.text] += 1
        nodes.append(node)
    return nodes
