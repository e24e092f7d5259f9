"""Choose tier, context size, temperature and top-p for a query (design §9): read 128 features, one FastGRNN step, draw.

The policy is written so that its propensities are exact in every case. Tier and context size each get a base
distribution: the softmax of the logits over what is allowed or, below the confidence threshold, all mass on the safe
route; then ``(1 − ε)·base + ε·uniform``. The context size is drawn given the tier, so the joint propensity is the
product. ``deterministic`` puts all mass on the best choice, a caller's tier all mass on that tier.

Which weights decide is one immutable object, read once a decision; ``swap`` replaces it (``networks.acting``).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from operators.base import Knobs, Operator
from operators.errors import Reject, Retry, Stop
from operators.networks import drawing, fastgrnn, reading
from operators.networks.acting import Active, starting
from operators.networks.explaining import explain
from operators.records import (
    HIDDEN,
    Embedded,
    Hits,
    Load,
    Neighbourhood,
    Query,
    Route,
    SessionState,
    ShadowRoute,
    record,
)
from operators.tiers import SLOTS, ModelFile, Tier

if TYPE_CHECKING:
    from operators.engines.executorch.networks import RouterProgram


@record
class RouteInput:
    """What the router reads: the turn, its session, the system now, and what memory found."""

    query: Query
    session: SessionState
    load: Load
    embedded: Embedded
    hits: Hits
    neighbourhood: Neighbourhood


class SafeRoute(Knobs):
    """The route taken when the router does not trust its own choice."""

    slot: int = Field(default=2, ge=0, lt=len(SLOTS))
    """Slot of the safe tier (2 is the 1.2B tier); if that is absent, the nearest available one, the larger of two."""
    context_tokens: int = Field(default=2048, ge=fastgrnn.CONTEXT_TOKENS[0])
    """Context size in tokens; the largest allowed size that is no larger."""
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    """Sampling temperature."""
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    """Nucleus sampling mass."""


class Router(Operator[RouteInput, Route]):
    """The routing decision. ``tiers`` are the profile's, one to four, each with its own slot."""

    name = "route"

    class Config(Knobs):
        """Knobs of the router. The network's sizes are fixed: 128 features, hidden 64."""

        checkpoint: str = ""
        """Path of a router checkpoint (safetensors) to start from; empty starts from the documented prior. What was
        promoted acts in its place."""
        pte: ModelFile | None = None
        """The network as ``ruvllm export executorch`` made it, for ExecuTorch to run in numpy's place. It runs the
        weights it was made from; when others act, numpy runs them."""
        tied: bool = True
        """Whether gate and candidate of the prior share W and U; a checkpoint says by itself which form it has."""
        confidence_threshold: float = Field(default=0.35, ge=0.0, le=1.0)
        """Below this confidence the safe route is taken; of learned weights its context size and sampling, while the
        tier stays what they think best. The prior's confidence is not calibrated: 0.35 lets it decide
        unless memory has nothing and the session goes badly. The seed's 0.7 presumes a calibrated checkpoint."""
        safe: SafeRoute = SafeRoute()
        """The safe route."""
        epsilon: float = Field(default=0.05, ge=0.0, le=1.0)
        """Share of draws that are uniform over what is allowed; keeps every propensity above 0, as learning needs."""
        temperature: float = Field(default=1.0, gt=0.0)
        """Temperature of the softmax that tier and context size are drawn from; smaller explores less."""
        deterministic: bool = False
        """Take the best choice instead of drawing; every propensity is then 1 and nothing can be learned off-policy."""
        cost_weight: float = Field(default=2.0, ge=0.0)
        """λ_cost: logits the dearest tier loses at the neutral ``quality_bias`` of 0.5 (twice that at 0, none at 1)."""
        max_context_tokens: int = Field(default=4096, ge=fastgrnn.CONTEXT_TOKENS[0])
        """Largest context size in tokens that may be chosen, whatever the tier's window."""
        seed: int = 0
        """Seed of the draws: the same seed and interaction id draw the same route."""
        explained: int = Field(default=8, ge=1)
        """How many features an explanation names."""

    def __init__(self, config: Config, tiers: Sequence[Tier], cache_dir: Path | None = None) -> None:
        super().__init__()
        self.config = config
        self._cache_dir = cache_dir
        self.program: RouterProgram | None = None
        self._tiers = tuple(sorted(tiers, key=lambda tier: tier.slot))
        self._by_name = {tier.name: tier for tier in self._tiers}
        taken = {tier.slot for tier in self._tiers}
        if not tiers or len(taken) < len(tiers) or len(self._by_name) < len(tiers):
            got = [(tier.name, tier.slot) for tier in tiers]
            raise Stop(self.name, f"tiers {got}", f"give 1 to {len(SLOTS)} tiers, each its own name and slot")
        self._slots = reading.slots({tier.name: tier.slot for tier in tiers}, {t.name: t.model.id for t in tiers})
        dearest = max(tier.cost for tier in tiers)
        self._cost = {tier.slot: tier.cost / dearest for tier in tiers}
        self._active: Active | None = None

    async def start(self) -> None:
        """Load the checkpoint, or make the prior. Raises ``Stop`` if the checkpoint or ``pte`` is missing or unfit."""
        config = self.config
        if config.pte is not None:
            from operators.engines.executorch.networks import RouterProgram

            if self._cache_dir is None:
                raise Stop(self.name, "pte without a directory for checksums", "give cache_dir")
            self.program = RouterProgram(config.pte, self._cache_dir)
        self._active = self._served(Active(starting(config.checkpoint, tied=config.tied)))

    def _served(self, active: Active) -> Active:
        return active if self.program is None else self.program.serve(active)

    async def run(self, batch: Sequence[RouteInput]) -> list[Route]:
        """A route for every input, in order."""
        return [self.decide(item) for item in batch]

    @property
    def active(self) -> Active:
        """Which weights decide. Raises ``Stop`` before ``start``."""
        if self._active is None:
            raise Stop(self.name, "no weights yet", "await start() before routing")
        return self._active

    @property
    def snapshot(self) -> fastgrnn.Snapshot:
        """The active weights. Raises ``Stop`` before ``start``."""
        return self.active.snapshot

    def swap(self, snapshot: fastgrnn.Snapshot) -> fastgrnn.Snapshot:
        """Route with ``snapshot`` alone from the next decision on and return the old weights."""
        return self.act(Active(snapshot)).snapshot

    def act(self, active: Active) -> Active:
        """Route as ``active`` says from the next decision on and return what did before.

        One reference is replaced, which is atomic: a decision under way keeps its weights, and nobody waits. Sessions
        keep their hidden state: it was written by other weights, but these are its descendants and read the same 64
        numbers, while a session that lost it would route like a new one.
        """
        old, self._active = self.active, self._served(active)
        if self.program is not None:
            self.program.tell(self._active)
        return old

    def decide(self, item: RouteInput) -> Route:
        """The route of one turn.

        Raises:
            Retry: no tier, or not the one the caller named, is available now.
            Reject: the caller named an unknown tier, or gave a ``quality_bias`` outside [0, 1].
            Stop: the embedding or the session's hidden state is not what the network reads.
        """
        active, config, query = self.active, self.config, item.query
        snapshot = active.deciding(query.tenant, query.session)
        named = self._named(query)
        tiers = self._available(item.load, named)
        hidden = item.session.hidden
        if hidden.shape != (HIDDEN,):
            raise Stop(self.name, f"hidden state of shape {hidden.shape}", f"start sessions with float32[{HIDDEN}]")
        raw = reading.read(query, item.session, item.load, item.embedded, item.hits, item.neighbourhood, self._slots)
        x = snapshot.recall(raw)
        out = snapshot.forward(x, hidden)
        confidence = float(out.confidence)
        if not math.isfinite(confidence):
            raise Stop(self.name, "features or hidden state with NaN", "check the encoder and the session's state")
        cautious = confidence < config.confidence_threshold
        u_tier, u_context = drawing.uniforms(config.seed, query.interaction_id)

        best, chances = self._tiers_of(snapshot, out, query, tiers)
        drawn = drawing.pick(chances, u_tier)
        tier, tier_chance = tiers[drawn], chances[drawn]

        limit = min(tier.context_tokens, config.max_context_tokens)
        sizes = [size for size in fastgrnn.CONTEXT_TOKENS if size <= limit]
        safe = sum(size <= config.safe.context_tokens for size in sizes) - 1 if cautious else None
        best_size, size_chances = self._policy(out.context.tolist()[: len(sizes)], safe)
        size = drawing.pick(size_chances, u_context)

        sampling = query.sampling
        temperature = config.safe.temperature if cautious else float(out.temperature)
        top_p = config.safe.top_p if cautious else float(out.top_p)
        reason: Literal["router", "explored", "low_confidence", "caller"] = "low_confidence" if cautious else "router"
        if named:
            reason = "caller"
        elif drawn != best or size != best_size:
            reason = "explored"
        probabilities = dict.fromkeys(self._by_name, 0.0)
        probabilities.update((t.name, chance) for t, chance in zip(tiers, chances, strict=True))
        return Route(
            tier=tier.name,
            context_tokens=sizes[size],
            temperature=temperature if sampling.temperature is None else sampling.temperature,
            top_p=top_p if sampling.top_p is None else sampling.top_p,
            confidence=confidence,
            probabilities=probabilities,
            propensity=tier_chance * size_chances[size],
            propensities={"tier": tier_chance, "context_tokens": size_chances[size]},
            checkpoint=snapshot.checkpoint,
            reason=reason,
            hidden=out.hidden,
            features=x,
            explanation=explain(snapshot, x, hidden, tier.slot, config.explained) if query.explain else (),
            shadow=None if active.shadow is None else self._watched(active.shadow, raw, hidden, query, tiers, drawn),
        )

    def _tiers_of(
        self, snapshot: fastgrnn.Snapshot, out: fastgrnn.Outputs, query: Query, tiers: Sequence[Tier]
    ) -> tuple[int, list[float]]:
        """The preferred one of ``tiers`` and the chance of each."""
        config, preference = self.config, snapshot.preference(out.tier)
        price = 2.0 * config.cost_weight * (1.0 - query.quality_bias)
        # Learned weights say what every tier is worth, the safe one too; where all fail, the dear one helps nobody.
        doubt = not snapshot.learned and float(out.confidence) < config.confidence_threshold
        safe = _nearest(tiers, config.safe.slot) if doubt else None
        return self._policy([preference[t.slot] - price * self._cost[t.slot] for t in tiers], safe)

    def _watched(
        self,
        shadow: fastgrnn.Snapshot,
        raw: fastgrnn.Vector,
        hidden: fastgrnn.Vector,
        query: Query,
        tiers: Sequence[Tier],
        taken: int,
    ) -> ShadowRoute | None:
        """What ``shadow`` would have done, from the same state and the same draw; ``None`` if it gives no number."""
        out = shadow.forward(shadow.recall(raw), hidden)
        _, chances = self._tiers_of(shadow, out, query, tiers)
        if not math.isfinite(float(out.confidence)) or not math.isfinite(sum(chances)):
            return None
        would = drawing.pick(chances, drawing.uniforms(self.config.seed, query.interaction_id)[0])
        return ShadowRoute(
            checkpoint=shadow.checkpoint,
            tier=tiers[would].name,
            confidence=float(out.confidence),
            propensity=chances[taken],
        )

    def _named(self, query: Query) -> Tier | None:
        """The tier the caller asked for, if any; also refuses a bad ``quality_bias``."""
        bias = query.quality_bias
        if not 0.0 <= bias <= 1.0:
            raise Reject(self.name, f"quality_bias {bias}", "give a number in [0, 1]", param="quality_bias")
        name = query.sampling.tier
        if name is None:
            return None
        if name not in self._by_name:
            near = difflib.get_close_matches(name, self._by_name, cutoff=0.3) or list(self._by_name)
            remedy = f"nearest: {', '.join(near)}"
            raise Reject(self.name, f"unknown tier {name!r}", remedy, 404, "model", "model_not_found")
        return self._by_name[name]

    def _available(self, load: Load, named: Tier | None) -> list[Tier]:
        """The tiers that can be chosen now, smallest first; a tier that ``load`` does not list is absent."""
        up = {entry.tier for entry in load.tiers if entry.available}
        if unknown := up - self._by_name.keys():
            known = ", ".join(self._by_name)
            raise Stop(self.name, f"load of unknown tier {min(unknown)!r}", f"report the profile's tiers: {known}")
        tiers = [tier for tier in self._tiers if tier.name in up and (named is None or tier is named)]
        if not tiers:
            got = f"tier {named.name} is unavailable" if named else "no tier is available"
            raise Retry(self.name, got, "wait until a model is loaded" if not named else "wait, or name no tier")
        return tiers

    def _policy(self, logits: list[float], safe: int | None) -> tuple[int, list[float]]:
        """The preferred index and the chance of each one; ``safe`` overrules the logits."""
        best = drawing.best(logits) if safe is None else safe
        if self.config.deterministic:
            return best, drawing.certain(best, len(logits))
        base = drawing.softmax(logits, self.config.temperature) if safe is None else drawing.certain(best, len(logits))
        return best, drawing.mix(base, self.config.epsilon)


def _nearest(tiers: Sequence[Tier], slot: int) -> int:
    """Index of the tier nearest to ``slot``, the larger of two that are equally near."""
    return min(range(len(tiers)), key=lambda i: (abs(tiers[i].slot - slot), -tiers[i].slot))
