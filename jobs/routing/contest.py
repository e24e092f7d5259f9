"""All routers on one split of the outcomes: each learns from one part and says what it believes of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from conf.schema import Settings
from jobs.routing import ours as router_ours
from jobs.routing import peers as router_peers
from jobs.routing.edits import edit
from jobs.routing.metrics import Beliefs, ends
from jobs.routing.outcomes import Array, Outcomes, Rows
from operators.records import record


@record
class Part:
    """One seed's part of a file: what was read of its prompts, and of the same prompts edited (none of a part to learn
    from)."""

    texts: tuple[str, ...]
    edited_texts: tuple[str, ...]
    prompts: router_ours.Prompts
    edited: router_ours.Prompts
    quality: Array
    cost: Array


class Readings:
    """Every distinct text, embedded and read once."""

    def __init__(self, prompts: router_ours.Prompts, texts: Sequence[str]) -> None:
        self._prompts = prompts
        self._row = {text: i for i, text in enumerate(texts)}

    @classmethod
    async def of(cls, texts: Sequence[str], settings: Settings, advance: Callable[[int, int], None]) -> Readings:
        """Read ``texts``; ``advance`` is told how many of how many are done."""
        distinct = list(dict.fromkeys(texts))
        prompts = await router_ours.read(distinct, settings, lambda done: advance(done, len(distinct)))
        return cls(prompts, distinct)

    def part(self, outcomes: Outcomes, rows: Rows, test: bool) -> Part:
        """The ``rows`` of ``outcomes``."""
        texts = tuple(outcomes.prompts[i] for i in rows)
        edited = tuple(edit(text, 0) for text in texts) if test else ()
        return Part(
            texts=texts,
            edited_texts=edited,
            prompts=self._of(texts),
            edited=self._of(edited),
            quality=outcomes.quality[rows],
            cost=outcomes.cost[rows],
        )

    def _of(self, texts: Sequence[str]) -> router_ours.Prompts:
        return self._prompts.of(np.array([self._row[text] for text in texts], np.int64))


def beliefs(learned: Part, test: Part, slots: Sequence[int], settings: Settings, seed: int) -> dict[str, Beliefs]:
    """Router → what it says of the prompts of ``test``, after learning from ``learned``."""
    ends(learned.cost)
    prices = learned.cost.mean(axis=0)
    in_logits = settings.route.cost_weight * prices / prices[-1]
    made: dict[str, Beliefs] = {}
    for name, bandit in (("ruvllm", False), ("ruvllm-bandit", True)):
        snapshot = router_ours.learn(
            learned.prompts.features,
            learned.quality,
            slots,
            in_logits,
            settings.replay.fit,
            bandit=bandit,
            tied=settings.route.tied,
            seed=seed,
        )
        said, edited = (router_ours.predict(snapshot, p.features, slots) for p in (test.prompts, test.edited))
        made[name] = Beliefs(values=said, prices=prices, edited=edited, qualities=True)
    x, quality, random = learned.prompts.vectors, learned.quality, np.random.default_rng(seed)
    n, dearest = len(test.texts), len(slots) - 1
    drawn, shuffled = random.random(n), made["ruvllm"].values[random.permutation(n)]
    made["random"] = Beliefs(values=router_peers.by_score(drawn, prices), prices=prices)
    made["shuffle"] = Beliefs(values=shuffled, prices=prices, qualities=True)
    for name, tier in (("always-weak", 0), ("always-strong", dearest)):
        made[name] = Beliefs(values=np.zeros((n, dearest + 1)), prices=prices, always=tier)
    long, edited_long = (
        router_peers.by_score(router_peers.lengths(t), prices) for t in (test.texts, test.edited_texts)
    )
    made["length"] = Beliefs(values=long, prices=prices, edited=edited_long)
    for name, model in (
        ("logistic", router_peers.logistic(x, quality)),
        ("knn-40", router_peers.nearest(x, quality)),
        ("matrix-factorisation", router_peers.factorised(x, quality, seed)),
    ):
        said, edited = model(test.prompts.vectors), model(test.edited.vectors)
        made[name] = Beliefs(values=said, prices=prices, edited=edited, qualities=name != "matrix-factorisation")
    made["oracle"] = Beliefs(values=test.quality, prices=test.cost, qualities=True)
    return made
