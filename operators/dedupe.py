"""Near-copies of texts by MinHash (Broder, On the resemblance and containment of documents, 1997).

The share of equal places of two signatures estimates the Jaccard similarity of the texts' sets of three-word shingles;
with 128 places its standard error is √(J(1−J)/128), 0.035 at J = 0.8. ``rensa`` does the hashing.
"""

from __future__ import annotations

from typing import Any

from operators.sentences import WORD

PERMUTATIONS = 128
SHINGLE = 3
SEED = 1
"""Signatures compare only with equal permutations and seed; both are constants so that stored ones stay comparable."""


def shingles(text: str) -> list[str]:
    """Every run of three words of ``text``, small letters; all of it if it has fewer. No words: no shingles."""
    words = WORD.findall(text.lower())
    if len(words) < SHINGLE:
        return [" ".join(words)] if words else []
    return [" ".join(run) for run in zip(words, words[1:], words[2:], strict=False)]


def signature(text: str) -> Any:
    """rensa's MinHash of ``text``: ``.jaccard(other)`` compares, ``.digest()`` is 128 × uint32 for storing."""
    from rensa import RMinHash

    sketch = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
    sketch.update(shingles(text))
    return sketch


class Seen:
    """The texts taken so far. Equal texts (but for case and white space) are found without hashing shingles."""

    def __init__(self, min_jaccard: float) -> None:
        self._min_jaccard = min_jaccard
        self._equal: set[str] = set()
        self._signatures: list[Any] = []

    def take(self, text: str) -> bool:
        """Remember ``text`` and say ``True``, or ``False`` if a text taken before is its near-copy."""
        key = " ".join(text.lower().split())
        if key in self._equal:
            return False
        if self._min_jaccard < 1:
            sketch = signature(text)
            if any(sketch.jaccard(other) >= self._min_jaccard for other in self._signatures):
                self._equal.add(key)
                return False
            self._signatures.append(sketch)
        self._equal.add(key)
        return True
