"""The learner's loop: judgements in, learned weights out, every so often a state that holds all of it together.

    1 read       the next ``batch`` judgements of a partition, once there are so many; repeats are dropped
    2 split      whole sessions are held out; with the others the learner takes a step
    3 candidate  every ``candidate_turns`` judgements: measured by the gate, published, offered for promotion
    4 save       every ``save_turns``: learner, held-out turns, what was seen and the positions, in one checkpoint
    5 commit     the positions, as a signal of the lag

Positions live in the state, not in the log: after a crash everything since the last save is done again, from the same
judgements in the same batches, and comes out the same. Between two saves nothing else is kept, so there is nothing to
agree with. Published candidates are the exception: their number follows from what was learned, so none is made twice.

Several workers share the partitions, one batch each a turn. What they read is gathered, and all of them take it the
same way, so all hold the same state; the first one alone publishes, saves and commits.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.learn import Learn
from conf.promotion import Promotion
from jobs.consumer import Seen, dead_letter, read_record, wait
from jobs.evidence import interaction_of
from jobs.learning.read import overruled, whole
from jobs.learning.turns import row, together
from jobs.promote import Promoter
from operators.errors import Reject, Retry, Skip
from operators.learning.arrays import Arrays, from_bytes, to_bytes
from operators.learning.gate import gate
from operators.learning.holdout import Holdout
from operators.learning.learner import Learner
from operators.learning.reservoir import key
from operators.learning.weights import FILE, weights
from operators.learning.workers import Alone
from operators.networks.fastgrnn import Snapshot
from operators.records import Interaction, Verdict
from operators.route import Router
from operators.stores.checkpoints import Registry
from operators.stores.ports import Event, EventLog
from operators.stores.removal import Receipt
from operators.stores.topics import JUDGEMENTS

GROUP = "learn"
STATE = "state.safetensors"
Point = Callable[[str], None]
Row = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """What a worker read of a partition: ``count`` judgements, of them the whole ones by event id, with the rows of
    those that teach something; ``position`` follows them. ``away`` says why a worker could not read."""

    partition: int = -1
    position: int = 0
    count: int = 0
    dead: int = 0
    judged: Mapping[str, tuple[Verdict, Interaction, Row | None]] = dataclasses.field(default_factory=dict)
    away: Retry | None = None


class LearnLoop:
    """A worker's loop. Blocking calls; ``run`` puts them on a thread.

    Args:
        states: the registry of the learner's own states.
        slots: tier → slot. ``costs`` float64[4]: by slot, NaN where there is none.
        removed: the receipts of removals from the memory that are not among the known ids; their turns are forgotten.
        at: told each named step; fault tests end the process in it.
    """

    def __init__(
        self,
        log: EventLog,
        registry: Registry,
        states: Registry,
        promoter: Promoter,
        start: Snapshot,
        slots: Mapping[str, int],
        costs: npt.NDArray[np.float64],
        router: Router.Config,
        config: Learn,
        promotion: Promotion,
        removed: Callable[[Container[str]], Sequence[Receipt]] = lambda known: (),
        at: Point = lambda step: None,
        workers: Alone | None = None,
    ) -> None:
        self._workers = workers or Alone()
        self._first = self._workers.rank == 0
        self.learned = self.dead = self.candidates = 0
        self._log, self._registry, self._states, self._promoter, self._at = log, registry, states, promoter, at
        self._start, self._slots, self._costs = start, slots, costs
        self._router, self._config, self._promotion = router, config, promotion
        dearest = np.nanmax(costs) or 1.0
        prices = np.where(np.isnan(costs), 1e3, router.cost_weight * costs / dearest)
        self.learner = Learner(start, np.asarray(prices, np.float32), config.learner, self._workers)
        self.holdout = Holdout(config.holdout)
        self._seen = Seen(config.remembered)
        self._positions: dict[int, int] = {}
        self._next = [0] * self._workers.count
        self._removed, self._forgotten = removed, Seen(config.remembered)

    async def run(self, stop: asyncio.Event, report: Callable[[dict[str, Any]], None] = lambda metrics: None) -> None:
        """Learn until ``stop``."""
        begun = False
        while not stop.is_set():
            try:
                if not begun:
                    await asyncio.to_thread(self.begin)
                    begun = True
                elif not await asyncio.to_thread(self.turn, report) and not await wait(stop, self._config.poll_s):
                    await asyncio.to_thread(self.forget_removed)
                    if self._first:
                        await asyncio.to_thread(self._promoter.step)
            except Retry as error:  # the event log is away: lag, and the same again
                await wait(stop, error.retry_after_s)

    def begin(self) -> None:
        """Go on from the newest whole state, or from nothing."""
        self._positions = dict.fromkeys(range(self._log.topics()[JUDGEMENTS]), 0)
        found = self._states.newest_good()
        if found is not None:
            self._restore(from_bytes(self._states.read(found.version, STATE)))
        if self._first:
            self._promoter.recall()

    def turn(self, report: Callable[[dict[str, Any]], None] = lambda metrics: None) -> int:
        """A batch of one partition for each worker, where there are whole ones; returns how many judgements that was.

        Raises ``Retry``, on all workers and with nothing taken, while the log is away for one.
        """
        # 1 read
        batches = self._workers.gather(self._read())
        if away := next((batch.away for batch in batches if batch.away), None):
            raise away
        count = sum(batch.count for batch in batches)
        if not count:
            return 0
        # 2 split
        rows = [(row, rank) for rank, batch in enumerate(batches) for row in self._take(rank, batch)]
        turns = together([row for row, _ in rows])
        mine = np.array([rank == self._workers.rank for _, rank in rows], bool)
        held = self.holdout.held(turns)
        self.holdout.add({name: value[held] for name, value in turns.items()})
        if not held.all():
            self.learner.learn({name: value[~held] for name, value in turns.items()}, mine[~held])
        self._at("learned")
        before = self.learned
        self.learned += sum(len(batch.judged) + batch.dead for batch in batches)
        # 3 candidate
        if self._due(before, self._config.candidate_turns) and self.learner.ready:
            self._candidate()
            self._at("candidate")
        if self._due(before, self._config.save_turns):
            self._save()
            if self._first:
                # 5 commit
                for each, at in self._positions.items():
                    self._log.commit(GROUP, JUDGEMENTS, each, at)
                self._promoter.step()
            report({"judgements": self.learned, "steps": self.learner.steps, "buffer": len(self.learner.buffer)})
        return count

    def forget_removed(self) -> int:
        """Forget the turns whose nodes were removed from the memory, for good; returns how many that were.

        What was saved before goes as newer states take its place. Published weights stay; their exemplars hold no text.
        """
        gone = 0
        # The first worker says which: a receipt may be written between two looks.
        for receipt in self._workers.gather(self._removed(self._forgotten) if self._first else ())[0]:
            column = "owner" if receipt.whole_tenant else "node"
            names = [receipt.tenant] if receipt.whole_tenant else receipt.node_ids
            keys = np.array([key(name) for name in names], np.int64)
            gone += self.learner.forget(keys, column) + self.holdout.forget(keys, column)
            self._forgotten.add(receipt.receipt_id)
        if gone:
            self._save()
        return gone

    def _save(self) -> None:
        # 4 save
        if not self._first:
            return
        self._states.publish({STATE: to_bytes(self.state())}, note=f"{self.learned} judgements")
        self._states.prune(self._config.keep_states)
        self._at("saved")

    def _due(self, before: int, every: int) -> bool:
        return before // every != self.learned // every

    def _read(self) -> Batch:
        """The next whole batch of this worker's partitions, which take turns; what is broken becomes a dead letter.

        Nothing is noted here: after a ``Retry`` the same judgements come again, as if unseen.
        """
        try:
            rank, workers = self._workers.rank, self._workers.count
            mine = range(rank, len(self._positions), workers)
            for partition in sorted(mine, key=lambda partition: (partition < self._next[rank], partition)):
                events = whole(self._log, partition, self._positions[partition], self._config.batch, self._seen)
                if events:
                    return self._understood(partition, events)
        except Retry as error:
            return Batch(away=error)
        return Batch()

    def _understood(self, partition: int, events: Sequence[Event]) -> Batch:
        judged: dict[str, tuple[Verdict, Interaction, Row | None]] = {}
        letters = []
        for event in events:
            try:
                verdict = read_record(Verdict, event)
                if verdict.event_id not in self._seen:
                    interaction = interaction_of(self._log, event, verdict)
                    judged[verdict.event_id] = verdict, interaction, row(interaction, verdict, self._slots)
            except (Skip, Reject) as error:
                letters.append(dead_letter(event, error, 1))
        for letter in letters:
            self._log.append(letter.topic, letter.key, letter.value, letter.headers)
        return Batch(partition, events[-1].offset + 1, len(events), len(letters), judged)

    def _take(self, rank: int, batch: Batch) -> list[Row]:
        """Note what was read; returns the rows to learn from."""
        if not batch.count:
            return []
        self.dead += batch.dead
        self._positions[batch.partition] = batch.position
        self._next[rank] = batch.partition + 1
        rows: dict[int, Row] = {}
        for event_id, (verdict, interaction, made) in batch.judged.items():
            if event_id in self._seen:  # another worker read it in the same turn
                continue
            self._seen.add(event_id)
            self._promoter.seen(interaction, verdict)
            if made is None or overruled(verdict, self._seen):
                continue
            if verdict.by == "user" or verdict.replaces:  # it stands against what a model said of the same turn
                self.learner.buffer.forget(made["id"].tolist())
                self.holdout.forget(made["id"], "id")
            rows[int(made["id"][0])] = made
        return list(rows.values())

    def _candidate(self) -> None:
        """Measure the weights of now and publish them; nothing where too little was held out to measure with."""
        sets = self.holdout.sets(self._promotion.gate.min_turns)
        about = {"judgements": self.learned, "steps": self.learner.steps}
        if not any(one.name == "rolling" for one in sets):
            return
        self.learner.refresh()
        if not self._first or self._published(about):
            return
        now = self._registry.rollouts.current()
        parent = now.active if now else self._start.checkpoint
        active = weights(self._registry, parent, self._start)
        candidate = self.learner.snapshot("candidate")
        result = gate(candidate, active, sets, self._costs, self._router, self._promotion.gate)
        window = {f"{JUDGEMENTS}/{partition}": (0, at) for partition, at in self._positions.items()}
        self._promoter.publish({FILE: candidate.to_bytes()}, result, parent=parent, window=window, metrics=about)
        self.candidates += 1

    def _published(self, about: Mapping[str, int]) -> bool:
        """Whether a run that ended after publishing and before saving has published this one."""
        found = self._registry.newest_good()
        return found is not None and about.items() <= self._registry.manifest(found.version).metrics.items()

    # ----------------------------------------------------------------------------------------------------- in and out

    def state(self) -> Arrays:
        """All of it as arrays."""
        made = {f"learner/{name}": value for name, value in self.learner.state().items()}
        made |= {f"holdout/{name}": value for name, value in self.holdout.state().items()}
        made["positions"] = np.array(list(self._positions.values()), np.int64)
        made["counts"] = np.array([self.learned, self.dead, *self._next], np.int64)
        for name, seen in (("seen", self._seen), ("forgotten", self._forgotten)):
            made[name] = np.frombuffer("\n".join(seen).encode(), np.uint8).copy()
        return made

    def _restore(self, state: Arrays) -> None:
        def part(name: str) -> Arrays:
            return {path[len(name) + 1 :]: value for path, value in state.items() if path.startswith(f"{name}/")}

        self.learner.restore(part("learner"))
        self.holdout.restore(part("holdout"))
        self._positions = dict(enumerate(state["positions"].tolist()))
        self.learned, self.dead, *cursors = (int(count) for count in state["counts"])
        if len(cursors) == len(self._next):  # else as many workers as then are not there: whose turn it is starts anew
            self._next = cursors
        for name, seen in (("seen", self._seen), ("forgotten", self._forgotten)):
            for one in filter(None, state[name].tobytes().decode().split("\n")):
                seen.add(one)
