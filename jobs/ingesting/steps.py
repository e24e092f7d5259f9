"""What the ingest job does to one file, in Ray's workers: read and parse; mask, chunk and embed.

A row goes through both: ``path`` (absolute), ``source`` (how its nodes name it), ``known`` (the SHA-256 it had when it
was last brought in, or ""). It gets ``size`` (bytes), ``mtime_ns``, ``sha256`` and ``text``, then, in place of text,
``nodes`` (an Arrow IPC stream of ``lance_rows.table``) and ``masked`` (JSON, personal values by kind), and ``error`` if
it can't be used: bad data is an output, not a crash. A file whose bytes are known has neither text nor nodes. What is
not there is empty, never ``None``: all blocks of rows must have the same types.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from jobs.door import to_ipc
from operators.documents import DocumentsConfig, parse
from operators.embed import Embed
from operators.errors import Reject
from operators.ingest import Document, document_nodes
from operators.privacy.masker import Masker
from operators.stores.lance_rows import table

Row = dict[str, Any]


def read(row: Row, config: DocumentsConfig) -> Row:
    """Read and parse the file of ``row``. Blocks: seconds for a large PDF."""
    found: Row = {**row, "size": 0, "mtime_ns": 0, "sha256": "", "text": "", "error": ""}
    try:
        with open(row["path"], "rb") as file:
            # Before the first byte: what changes while we read is noticed the next time.
            stat = os.fstat(file.fileno())
            data = file.read(config.max_bytes + 1)  # enough for parse to refuse it, and no more in memory
        found |= {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": hashlib.sha256(data).hexdigest()}
        if found["sha256"] != row["known"]:
            found["text"] = parse(data, name=row["source"], config=config)
    except OSError as error:
        found["error"] = (
            f"documents: {row['source']} can't be read: {error.strerror}; see that it is there and readable"
        )
    except Reject as error:
        found["error"] = str(error)
    return found


class Nodes:
    """Masks, chunks and embeds, with an encoder of its own on one thread.

    Args:
        created_at: Unix seconds that the nodes get.
    """

    def __init__(
        self,
        tenant: str,
        embed: Embed.Config,
        documents: DocumentsConfig,
        privacy: Masker.Config,
        cache_dir: Path,
        created_at: float,
    ) -> None:
        self._tenant, self._documents, self._created_at = tenant, documents, created_at
        self._masker = Masker(privacy)
        self._embed = Embed(embed.model_copy(update={"threads": 1}), cache_dir)
        self._loop = asyncio.Runner()
        self._loop.run(self._embed.start())

    def __call__(self, row: Row) -> Row:
        """``row`` with its nodes, and how many values of each kind were masked, as JSON."""
        made = {**row, "nodes": b"", "masked": "{}"}
        before = Counter(self._masker.found)
        text = made.pop("text")
        if text:
            document = Document(text=text, source=row["source"])
            work = document_nodes(self._tenant, document, self._embed, self._documents, self._masker, self._created_at)
            try:
                made["nodes"] = to_ipc(table(self._loop.run(work), self._embed.dim))
                made["masked"] = json.dumps(self._masker.found - before)
            except Reject as error:
                made["error"] = str(error)
        return made

    def close(self) -> None:
        """Free the encoder; Ray's workers just end."""
        self._loop.run(self._embed.close())
        self._loop.close()
