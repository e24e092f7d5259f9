"""attend: rank the neighbourhood for the query and build the context the engine reads.

rank → leave out what is irrelevant → leave out near-copies → fit to the route's token budget → cite by node id.

How nodes are ranked is in ``ranking.py``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from operators.base import Knobs, Operator
from operators.dedupe import Seen
from operators.errors import Stop
from operators.extract import Words, best_sentences
from operators.networks import attention
from operators.ranking import attention_scores, similarity_scores
from operators.records import Context, Embedded, Neighbourhood, Passage, Query, Route, record
from operators.tiers import ModelFile

Ranking = Literal["attention", "similarity"]
_log = logging.getLogger("ruvllm.attend")


@record
class AttendInput:
    """What ``attend`` reads."""

    query: Query
    embedded: Embedded
    neighbourhood: Neighbourhood
    route: Route


class Attend(Operator[AttendInput, Context]):
    """Context for every query. An empty neighbourhood, or one without relevant nodes, gives an empty context whose
    ranking is ``none``; that is an answer, not an error."""

    name = "attend"

    class Config(Knobs):
        """The knobs of ranking and of building the context."""

        ranking: Literal["auto", "attention", "similarity"] = "auto"
        """What orders the nodes; ``auto`` takes attention if ``checkpoint`` names trained weights, else similarity."""
        checkpoint: str = ""
        """Path of the attention network's safetensors file; empty if there is none yet."""
        pte: ModelFile | None = None
        """The network of ``checkpoint`` as ``ruvllm export executorch`` made it, for ExecuTorch to run in numpy's
        place."""
        hop_decay: float = Field(default=0.8, gt=0, le=1)
        """What a neighbour's score is multiplied with for each hop away from the hits."""
        min_score: float = Field(default=0.3, ge=0, le=1)
        """After a hybrid search: score below which a hit is irrelevant. Depends on the encoder. With MiniLM-L6-v2, over
        four corpora (two families of invented conversations, monologues by sentence and by chunk), held-out halves: of
        751 questions to a corpus that says nothing about them 13 % got a passage (with cosine 0.3 as the limit 50 %),
        of 396 to their own 99.6 %. At 0.35 it was 5 % and 97 % of the tuning halves, at 0.3 13 % and 98 %."""
        min_similarity: float = Field(default=0.3, ge=-1, le=1)
        """Cosine below which a node is irrelevant, if the graph brought it or the search was by ``vector`` or ``text``
        alone. Depends on the encoder. With MiniLM-L6-v2 over 484 chunks of news and technical notes, 27 of 30 off-topic
        queries stayed below 0.3, and 98 % of 120 headlines found their article above 0.32."""
        min_overlap: float = Field(default=0.6, gt=0, le=1)
        """After a search by ``vector`` or ``text``, a hit below ``min_similarity`` still counts if its text has this
        share of the query's telling words: names and error codes match by letter, hardly by vector. A query of one
        plain word gets no such second chance."""
        max_passages: int = Field(default=3, ge=1, le=64)
        """Most passages in a context. Small models answer worse with more: Gemma-3-270M got 49 of 55 questions right
        with the right passage alone, 39 with three."""
        min_relative: float = Field(default=0.85, ge=0, le=1)
        """With ranking by similarity: passages below this share of the best score stay out, so a clear winner stands
        alone and only near-ties travel together. Measured as ``min_score``: on the tuning halves the right passage was
        in the context for 76 % of the questions with 2.1 passages on average, at 0.9 for 73 % with 1.8, at 0.8 for 77 %
        with 2.4; on the held-out halves for 74 % with 2.2."""
        min_relative_attention: float = Field(default=0.3, ge=0, le=1)
        """The same with ranking by attention, whose weights are exponentials and so lie further apart."""
        max_jaccard: float = Field(default=0.7, gt=0, le=1)
        """A node this similar (Jaccard of three-word shingles, by MinHash) to a passage already taken is a near-copy
        and stays out; 1 leaves out only equal texts."""
        max_candidates: int = Field(default=20, ge=1)
        """Most nodes compared for copies, taken ones included; bounds the work when memory is full of copies."""
        reserve_share: float = Field(default=0.25, ge=0, lt=1)
        """Share of the route's context size that is kept for the answer."""
        reserve_tokens: int = Field(default=32, ge=0)
        """Tokens kept for the prompt's frame; the question's own tokens are kept besides."""
        summary_chars: int = Field(default=400, ge=0)
        """Longest summary in characters; 0 makes none."""

        def unlimited(self, passages: int, nodes: int) -> Attend.Config:
            """The same ranking of up to ``nodes`` nodes without its limits, in numpy: ``passages`` of them, equal texts
            once."""
            none = {"min_score": 0.0, "min_similarity": -1.0, "min_relative": 0.0, "min_relative_attention": 0.0}
            size = {"max_passages": passages, "max_candidates": nodes, "summary_chars": 0}
            return self.model_copy(update={**none, **size, "max_jaccard": 1.0, "pte": None})

    def __init__(self, config: Config, cache_dir: Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.weights: attention.AttentionWeights | None = None
        self._network = attention.attend
        self._cache_dir = cache_dir

    async def start(self) -> None:
        """Load the network if the knobs ask for it. Raises ``Stop``: it is missing, broken, or untrained but wanted."""
        config = self.config
        if config.pte is not None and not config.checkpoint:
            raise Stop(self.name, "a pte without the checkpoint it was made from", "set attend.checkpoint, or no pte")
        if config.ranking == "similarity" or (config.ranking == "auto" and not config.checkpoint):
            return
        if not config.checkpoint:
            raise Stop(self.name, "ranking 'attention' without a checkpoint", "set attend.checkpoint, or ranking: auto")
        weights = attention.load(Path(config.checkpoint))
        if not weights.trained and config.ranking == "attention":
            got = f"untrained weights in {config.checkpoint} for ranking 'attention'"
            raise Stop(self.name, got, "train them first, or set ranking: auto")
        if not weights.trained:
            _log.warning("attend: %s did not beat the untrained ranking; ranking by similarity", config.checkpoint)
        self.weights = weights if weights.trained else None
        if config.pte is not None and weights.trained:
            from operators.engines.executorch.networks import AttentionProgram

            if self._cache_dir is None:
                raise Stop(self.name, "pte without a directory for checksums", "give cache_dir")
            self._network = AttentionProgram(config.pte, self._cache_dir, weights).attend

    def fits(self, encoder: str) -> None:
        """Raise ``Stop`` if the network was trained on vectors of another encoder than ``encoder``."""
        if self.weights is not None and self.weights.encoder not in ("", encoder):
            got = f"weights for vectors of {self.weights.encoder}, vectors of {encoder}"
            raise Stop(self.name, got, "train anew for this encoder, or set ranking: similarity")

    async def close(self) -> None:
        """Forget the weights."""
        self.weights = None

    async def run(self, batch: Sequence[AttendInput]) -> list[Context]:
        """One context for every input; about a millisecond each, so it stays on the caller's thread."""
        return [self._attend(item) for item in batch]

    def _attend(self, item: AttendInput) -> Context:
        near = item.neighbourhood
        if not near.node_ids:
            return Context(passages=(), tokens=0, ranking="none", degraded=near.degraded)
        ranking: Ranking = "similarity" if self.weights is None else "attention"
        if self.weights is None:
            scores: npt.NDArray[np.floating] = similarity_scores(near, self.config.hop_decay)
            weights: npt.NDArray[np.floating] = np.zeros_like(scores)
            share = self.config.min_relative
        else:
            self.fits(item.embedded.encoder)
            scores = weights = attention_scores(self.weights, item.embedded.vector, near, self._network)
            share = self.config.min_relative_attention
        if not np.isfinite(scores).all():
            bad = near.node_ids[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise Stop(
                self.name, f"a score that is not finite, node {bad}", "check the stored vectors and the checkpoint"
            )
        words = Words(item.query.text)
        chosen, duplicates = self._choose(near, scores, share, words, self._budget(item))
        passages = tuple(
            Passage(
                node_id=near.node_ids[i],
                kind=near.kinds[i],
                source=near.sources[i],
                text=text,
                tokens=tokens,
                score=float(scores[i]),
                attention=float(weights[i]),
            )
            for i, text, tokens in chosen
        )
        return Context(
            passages=passages,
            tokens=sum(passage.tokens for passage in passages),
            ranking=ranking if passages else "none",
            duplicates=duplicates,
            summary=best_sentences([passage.text for passage in passages], words, self.config.summary_chars),
            degraded=near.degraded,
        )

    def _budget(self, item: AttendInput) -> int:
        """Tokens that passages may take, in the encoder's tokens; ``generate`` fits again in the engine's own."""
        whole = item.route.context_tokens
        answer = math.ceil(whole * self.config.reserve_share)
        return whole - answer - self.config.reserve_tokens - item.embedded.tokens

    def _choose(
        self, near: Neighbourhood, scores: npt.NDArray[np.floating], share: float, words: Words, budget: int
    ) -> tuple[list[tuple[int, str, int]], int]:
        """(node, text, tokens) of the passages, best first, and how many near-copies were left out.

        Goes down the ranking and stops as soon as it can; only what is about to be taken is compared with what was.
        """
        seen = Seen(self.config.max_jaccard)
        chosen: list[tuple[int, str, int]] = []
        duplicates, least = 0, 0.0
        for i in np.argsort(-scores, kind="stable").tolist():
            if len(chosen) == self.config.max_passages or len(chosen) + duplicates == self.config.max_candidates:
                break
            if budget <= 0 or (chosen and scores[i] < least):
                break
            if not self._relevant(near, i, words):
                continue
            text, tokens = near.texts[i], int(near.tokens[i])
            if tokens > budget:
                if chosen:
                    continue  # a smaller one further down may fit
                text, tokens = words.cut(text, tokens, budget)
            if not text.strip():
                continue
            if not seen.take(near.texts[i]):
                duplicates += 1
                continue
            least = least if chosen else share * float(scores[i])
            chosen.append((i, text, tokens))
            budget -= tokens
        return chosen, duplicates

    def _relevant(self, near: Neighbourhood, i: int, words: Words) -> bool:
        config, hit = self.config, bool(near.hop[i] == 0)
        if near.mode == "hybrid" and hit:
            return bool(near.score[i] >= config.min_score)
        if near.mode == "hybrid" and near.score[0] < config.min_score:
            return False  # the hits come first, best first: none of them is relevant, so none led here for a reason
        if near.similarity[i] >= config.min_similarity:
            return True
        one_sided = near.mode != "hybrid" and hit
        return one_sided and words.telling and words.share(near.texts[i]) >= config.min_overlap
