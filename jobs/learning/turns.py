"""From a judged interaction to a row that the learner reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.documents import node_id
from operators.errors import Skip
from operators.learning.reservoir import key
from operators.learning.turns import SCHEMA, blank
from operators.networks.exemplars import AT
from operators.networks.fastgrnn import CONTEXT_TOKENS
from operators.records import FEATURES, HIDDEN, Interaction, Verdict
from operators.stores.topics import session_key


def row(interaction: Interaction, verdict: Verdict, slots: Mapping[str, int]) -> dict[str, npt.NDArray[Any]] | None:
    """Columns with one row, or ``None`` if nothing can be learned: no verdict, no route, a route the caller chose, or
    another tier answered than the one that was drawn. ``slots``: tier → slot.

    Raises ``Skip`` if the interaction's numbers can't be: features of another size, NaN, a propensity that is none.
    """
    route, hidden = interaction.route, interaction.hidden
    if verdict.status != "judged" or verdict.score is None or route is None or hidden is None:
        return None
    if (
        route.reason == "caller"
        or route.tier not in slots
        or any(word.startswith("tier:") for word in interaction.degraded)
    ):
        return None
    chances = (route.propensities.get("tier", math.nan), route.propensities.get("context_tokens", math.nan))
    features = np.array(route.features, np.float32)
    sound = features.shape == (FEATURES,) and hidden.shape == (HIDDEN,)
    sound = sound and bool(np.isfinite(features).all() and np.isfinite(hidden).all())
    sound = sound and all(0.0 < chance <= 1.0 + 1e-6 for chance in chances) and 0.0 <= verdict.score <= 1.0
    if not sound:
        got = f"features {features.shape}, hidden {hidden.shape}, propensities {chances}, score {verdict.score}"
        raise Skip("learn", f"interaction {interaction.interaction_id} with {got}", "emit what the router logged")
    features[AT] = 0.0
    slot = slots[route.tier]
    made = blank(1)
    values = {
        "id": key(f"{interaction.tenant}|{interaction.interaction_id}"),
        "owner": key(interaction.tenant),
        "node": key(node_id(interaction.tenant, interaction.interaction_id, "interaction")),
        "session": key(session_key(interaction.tenant, interaction.session)),
        "turn": interaction.turn,
        "features": features,
        "hidden": hidden,
        "slot": slot,
        "propensity": chances[0],
        "context": CONTEXT_TOKENS.index(route.context_tokens) if route.context_tokens in CONTEXT_TOKENS else -1,
        "context_propensity": chances[1],
        "temperature": route.temperature,
        "top_p": route.top_p,
    }
    for name, value in values.items():
        made[name][0] = value
    for tier, score in verdict.others.items():  # counterfactual answers; a tier that is gone teaches nothing
        if tier in slots:
            made["quality"][0, slots[tier]], made["known"][0, slots[tier]] = score, 1.0
    made["quality"][0, slot], made["known"][0, slot] = verdict.score, 1.0
    return made


def together(rows: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Rows as columns [n, …]; n may be 0."""
    return {name: np.concatenate([blank(0)[name], *(each[name] for each in rows)]) for name in SCHEMA}
