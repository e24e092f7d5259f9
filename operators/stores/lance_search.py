"""A search that LanceDB's own indexes answer, for tenants too large to be held in memory.

The best of what the two indexes name are fused as rows in memory are, on the same scale; but each row stands alone,
without its neighbours, and a row that neither index names among its first is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from operators.records import Hits
from operators.stores import fusion, lance_rows
from operators.stores.ports import Node, SearchRequest
from operators.stores.resident import speaker


def search_table(
    table: Any, request: SearchRequest, where: str, ef: int, tokenize: Callable[[str], list[str]], now: float
) -> Hits:
    """The best ``k`` rows of ``table`` that pass ``where`` (SQL). ``ef``: candidates that HNSW looks at, 0 without.
    ``now`` is Unix seconds, for the prior."""
    deep = fusion.depth(request.k)
    nodes: dict[str, Node] = {}
    text_score: dict[str, float] = {}
    if request.mode != "text":
        query = table.search(request.vector, vector_column_name="vector").distance_type("cosine")
        query = query.ef(max(ef, deep)) if ef else query
        rows = query.where(where, prefilter=True).select([*lance_rows.COLUMNS, "_distance"]).limit(deep).to_arrow()
        nodes.update((node.node_id, node) for node in lance_rows.nodes(rows))
    if request.mode != "vector":
        rows = _text(table, request.text, where, [*lance_rows.COLUMNS, "_score"], deep)
        nodes.update((node.node_id, node) for node in lance_rows.nodes(rows))
        text_score.update(zip(rows["id"].to_pylist(), rows["_score"].to_pylist(), strict=True))
    rows_, deep_text = list(nodes.values()), sorted(nodes.keys() - text_score.keys())
    if deep_text:  # deeper in the text ranking than we read, or no match: ask for exactly these
        rows = _text(table, request.text, lance_rows.one_of("id", deep_text), ["id", "_score"], len(deep_text))
        text_score.update(zip(rows["id"].to_pylist(), rows["_score"].to_pylist(), strict=True))
    words = np.array([text_score.get(node.node_id, 0.0) for node in rows_], np.float32)
    cosine = fusion.cosines(rows_, request.vector)
    asked = set(tokenize(request.text))
    named = np.array([not asked.isdisjoint(tokenize(speaker(node.text))) for node in rows_], np.bool_)
    most = 0.0
    if rows_ and asked and words.max() > 0:  # LanceDB doesn't tell idf: judge by the share of words the best row has
        has = asked & set(tokenize(rows_[int(words.argmax())].text))
        most = float(words.max()) * len(asked) / max(len(has), 1)
    created = np.array([node.created_at for node in rows_], np.float64)
    quality = np.array([node.quality for node in rows_], np.float32)
    prior = fusion.prior_of(request.prior, created, quality, now)
    scores = fusion.fuse(request.mode, words, cosine, cosine, named, most=most, prior=prior)
    chosen = fusion.best(rows_, np.arange(len(rows_)), scores, cosine, request.k)
    return fusion.hits(
        [rows_[i] for i in chosen],
        scores[chosen].tolist(),
        cosine[chosen].tolist(),
        words[chosen].tolist(),
        request.mode,
        len(request.vector),
    )


def _text(table: Any, text: str, where: str, columns: list[str], limit: int) -> Any:
    query = table.search(text, query_type="fts", fts_columns="text").where(where, prefilter=True).select(columns)
    return query.limit(limit).to_arrow()
