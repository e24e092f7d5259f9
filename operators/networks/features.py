"""What the router reads: 128 named features of a turn, their layout and scaling a table in code (design §9).

``TABLE`` is the whole truth about the vector: names, slices, scaling. ``reading.read`` computes the raw values in the
table's order and scales them by it, so nothing else restates a scale. Every feature ends in [-1, 1]; what is absent is
0, and a count of 0 says so.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

TIERS = 4
PROJECTED = 32
NEARNESS = ("near", "nearer", "nearest")
"""How narrowly the learned turns that are like this one are looked at (``exemplars``)."""


class Scale(NamedTuple):
    """``gain · raw`` or, with ``log``, ``gain · ln(1 + raw)``; the result is cut to [-1, 1]."""

    gain: float
    log: bool
    text: str


def _times(gain: float) -> Scale:
    return Scale(gain, False, "as it is" if gain == 1.0 else f"× {gain:g}")


def _log(top: float) -> Scale:
    return Scale(1.0 / math.log1p(top), True, f"ln(1 + x) / ln(1 + {top:g})")


class Row(NamedTuple):
    """One named feature: ``vector[start:stop]``, its scale and what it says."""

    name: str
    start: int
    stop: int
    scale: Scale
    description: str

    @property
    def width(self) -> int:
        """Number of slots it takes; 1 for all but the query embedding."""
        return self.stop - self.start


def _rows() -> Iterator[Row]:
    plain = _times(1.0)
    yield Row("query_embedding", 0, PROJECTED, plain, "projection of the query's vector, times √max(dim, 32) / 6")
    one_each: list[tuple[str, Scale, str]] = [
        ("hit_count", _log(64), "hits found"),
        ("similarity_max", plain, "best cosine of the hits"),
        ("similarity_mean", plain, "mean cosine"),
        ("similarity_std", _times(4), "standard deviation of the cosines"),
        ("similarity_margin", _times(4), "best cosine minus the second"),
        ("similarity_entropy", plain, "entropy of softmax(cosine / 0.1), divided by ln(hits)"),
        ("score_share", plain, "best fused score divided by the sum"),
        ("text_match", plain, "share of hits that BM25 found too"),
        ("text_score_max", _log(32), "best BM25 score"),
        ("hit_quality", plain, "mean stored quality"),
        ("document_share", plain, "share of hits that are documents"),
        ("interaction_share", plain, "share of hits that are interactions"),
        ("source_spread", plain, "distinct sources divided by hits"),
        ("hit_age", _log(365), "days since the best hit was stored"),
        ("relevant_tokens", _log(4096), "tokens of the hits, each weighted by its relevance"),
        ("search_degraded", plain, "1 if the search was degraded"),
        ("node_count", _log(256), "nodes of the neighbourhood"),
        ("edge_count", _log(1024), "edges"),
        ("density", plain, "√(edges / (nodes · (nodes − 1)))"),
        ("edge_weight_mean", plain, "mean edge weight"),
        ("edge_weight_max", plain, "largest edge weight"),
        ("similar_edges", plain, "share of edges of relation `similar`"),
        ("hop_1", plain, "share of nodes one hop away"),
        ("hop_2", plain, "share of nodes two or more hops away"),
        ("neighbour_similarity", plain, "mean cosine of the nodes that are not hits"),
        ("neighbourhood_tokens", _log(4096), "tokens of all nodes, each weighted by its relevance"),
        ("neighbourhood_cut", plain, "1 if a cap or a fault cut the expansion short"),
        *((f"verdict_tier{k}", plain, f"2 · mean verdict − 1 of slot {k} on neighbouring turns") for k in range(TIERS)),
        *((f"count_tier{k}", _log(16), f"neighbouring turns that slot {k} answered") for k in range(TIERS)),
        *(
            (f"exemplar_{name}_tier{k}", plain, f"3 · excess quality of slot {k} on {name} learned turns")
            for name in NEARNESS
            for k in range(TIERS)
        ),
        ("query_tokens", _log(2048), "tokens of the query before truncation"),
        ("word_count", _log(1024), "words, as white space parts them"),
        ("word_length", _times(1 / 12), "mean characters a word"),
        ("line_count", _log(64), "lines beyond the first"),
        ("question_count", _log(8), "question marks"),
        ("list_items", _log(8), "lines that begin like a list item: a bullet, a letter or a number"),
        ("item_length", _log(512), "mean characters of the list items"),
        ("item_spread", plain, "standard deviation of the items' lengths, divided by 1 + their mean"),
        ("item_digits", plain, "share of the list items with a digit"),
        ("stem_characters", _log(4096), "characters before the first list item"),
        ("stem_question", plain, "1 if what stands before the first item ends with a question mark"),
        ("stem_numbers", _log(32), "numbers before the first item"),
        ("code_fence", plain, "1 if there is a ``` fence"),
        ("symbol_share", _times(5), "share of characters that code and formulas use and prose does not"),
        ("digit_share", _times(4), "share of characters that are digits"),
        ("number_count", _log(64), "numbers"),
        ("largest_number", _log(1e9), "the largest number before the first item"),
        ("lone_letters", plain, "single small letters and signs of formulas before the first item, divided by words"),
        ("capital_share", _times(3), "share of characters that are capitals"),
        ("capital_words", _log(64), "words after the first that begin with a capital"),
        ("capital_word_share", plain, "share of words that begin with a capital"),
        ("foreign_share", _times(2), "share of characters outside ASCII"),
        ("quote_marks", _log(32), "quotation marks and apostrophes"),
        ("comma_count", _log(64), "commas"),
        ("bracket_count", _log(32), "opening round brackets"),
        ("hyphen_count", _log(32), "hyphens"),
        ("blanks", _log(4), "blanks to fill: runs of underscores"),
        ("long_words", _times(1.5), "share of words of eight letters or more"),
        ("reasoning_words", _log(4), "words that ask for reasoning: why, compare, prove, design, …"),
        ("lookup_form", plain, "1 if it begins as a lookup: who, when, where, which, what is"),
        ("creative_words", _log(2), "words that ask for invention: story, poem, brainstorm, …"),
        ("conversation_characters", _log(32768), "characters of all messages"),
        ("turn", _log(32), "completed turns of the session"),
        ("last_verdict", plain, "2 · verdict − 1 of the last turn"),
        ("last_verdict_known", plain, "1 if the last turn has a verdict"),
        *((f"last_tier{k}", plain, f"1 if slot {k} answered the last turn") for k in range(TIERS)),
        *((f"warm_tier{k}", plain, f"how warm slot {k} holds the session's prefix") for k in range(TIERS)),
        *((f"queue_tier{k}", _log(16), f"requests that wait or run in slot {k}") for k in range(TIERS)),
        ("latency_pressure", plain, "1 / (1 + latency budget in seconds)"),
        ("cost_weight", plain, "1 − 2 · quality_bias"),
    ]
    for at, (name, scale, description) in enumerate(one_each, start=PROJECTED):
        yield Row(name, at, at + 1, scale, description)


TABLE = tuple(_rows())
SLOT = {row.name: row.start for row in TABLE}
"""Name → first index in the vector."""
LAYOUT = hashlib.sha256("\n".join(f"{r.name} {r.start} {r.stop} {r.scale.text}" for r in TABLE).encode()).hexdigest()[
    :16
]
"""Fingerprint of the table; a checkpoint made for another layout is refused."""

GAIN = np.array([row.scale.gain for row in TABLE[1:]])
"""float64[96]: gains of the features after the query embedding."""
LOG = np.array([row.scale.log for row in TABLE[1:]])
"""bool[96]: which of them are logarithmic."""


_SEED = 2
"""Of the projection. Of three seeds tried it was the one whose routers did best on held-out prompts, by 0.02 APGR."""


@functools.cache
def projection(dim: int) -> Vector:
    """float32[32, dim]: orthonormal rows (columns if ``dim`` < 32) fixed by a seed, times √max(dim, 32) / 6.

    A random orthonormal map keeps distances (Johnson & Lindenstrauss 1984). The scale makes a coordinate of a unit
    vector about 1/6 in size. ``RandomState`` because its stream never changes between numpy versions (NEP 19).
    """
    wide = max(dim, PROJECTED)
    q, r = np.linalg.qr(np.random.RandomState(_SEED).standard_normal((wide, min(dim, PROJECTED))))
    q *= np.sign(np.diag(r))  # makes the factorisation unique, so every LAPACK gives the same
    made: Vector = np.ascontiguousarray((q if dim < PROJECTED else q.T) * (math.sqrt(wide) / 6.0), np.float32)
    made.setflags(write=False)
    return made
