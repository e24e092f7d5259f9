"""The router's learner: judged turns in, weights out, nothing forgotten on the way (design §9).

Some new turns come in; ``rounds`` times they are learned from, each time beside others from the replay buffer::

    1 replay     as many turns as are new, drawn evenly over the strata of the buffer (region of queries × slot)
    2 gradient   of the loss of both halves, sessions unrolled through time, plus EWC's λ/2 Σ F (θ − θ*)²
    3 update     AdamW, then W is cut back to its support
    4 remember   the new turns are offered to the buffer
    5 drift      the loss on the new turns, before the first update, feeds the detector; at a rise, or on schedule, θ*
                 and F are taken anew

**The same after a crash.** Every draw of chance comes from the seed and the number of the step, and ``state`` holds all
else. A learner that is restored from it and given the same turns is bit for bit the one that was never interrupted.

**On several workers** (``workers``) all learn from the same turns, and each computes the gradient of its part of them.

Until ``gather`` turns are there nothing is learned: the standardised space and the first exemplars are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators.errors import Stop
from operators.learning.arrays import Arrays
from operators.learning.config import LearnerConfig
from operators.learning.drift import Drift
from operators.learning.ewc import Ewc, diagonal_fisher
from operators.learning.fit import begin
from operators.learning.objective import Space, loss, targets, tensors
from operators.learning.reservoir import Reservoir
from operators.learning.sessions import unrolled
from operators.learning.turns import SCHEMA, Columns, strata
from operators.learning.workers import Alone
from operators.networks.exemplars import AT, Exemplars
from operators.networks.fastgrnn import Snapshot, Vector
from operators.networks.fastgrnn_torch import FastGRNN
from operators.records import FEATURES

WHO = "learner"


class Learner:
    """Learns from ``start`` on. ``prices`` float32[4]: what a slot costs, in logits of the policy. One thread."""

    def __init__(self, start: Snapshot, prices: Vector, config: LearnerConfig, workers: Alone | None = None) -> None:
        self.config = config
        self._workers = workers or Alone()
        self.steps = 0
        self.consolidations = 0
        self._start, self._prices = start, torch.from_numpy(np.array(prices, np.float32))
        self.buffer = Reservoir(SCHEMA, capacity=config.capacity, seed=config.seed)
        self._drift = Drift()
        self._ewc = Ewc(config.ewc, config.ewc_gamma)
        self._net: FastGRNN | None = None
        self._space = Space(np.zeros(0, np.float32), np.zeros(0, np.float32))
        self._exemplars: Exemplars | None = None
        self._places: dict[int, int] = {}
        self._optimizer: torch.optim.AdamW | None = None

    @property
    def ready(self) -> bool:
        """Whether enough turns were gathered to learn from."""
        return self._net is not None

    def learn(self, turns: Columns, mine: npt.NDArray[np.bool_] | None = None) -> float | None:
        """Learn from n ≥ 1 new turns, the same on every worker; ``mine`` bool[n] are this worker's to compute.

        Returns the mean loss of the new turns before the update; ``None`` while turns are gathered. A turn must not be
        given twice: the caller drops repeats. Raises ``Stop`` if the loss is not finite, with nothing remembered.
        """
        n = len(turns["id"])
        mine = np.ones(n, bool) if mine is None else mine
        if not self.ready:
            self._remember(turns)
            if len(self.buffer) >= self.config.gather:
                self._begin()
            return None
        told: float | None = None
        for _ in range(self.config.rounds):
            random = np.random.default_rng([self.config.seed, self.steps])
            # Whoever owned the buffer's turns may have had them deleted.
            replayed = self.buffer.sample(n, random) if len(self.buffer) else {k: v[:0] for k, v in turns.items()}
            said = self._gradient(turns, replayed, mine, random)
            told = said if told is None else told
            self._update()
            self.steps += 1
            if self.steps % self.config.consolidate_steps == 0:
                self.consolidate()
        self._remember(turns)
        if told is not None and self._drift.update(told):
            self.consolidate()
        return told

    def consolidate(self) -> None:
        """Take θ* ← θ and F ← γF + the Fisher information of turns from the buffer."""
        net = self._network()
        if not len(self.buffer):
            return
        random = np.random.default_rng([self.config.seed, self.steps, 1])
        drawn = self.buffer.sample(min(self.config.fisher_turns, len(self.buffer)), random)
        turns = {name: drawn[name][self._workers.rank :: self._workers.count] for name in SCHEMA}
        x, target, heard = self._seen(turns)
        names = tuple(tensors(turns))

        def of_one(call: Callable[..., dict[str, Tensor]], x: Tensor, h: Tensor, *rest: Tensor) -> Tensor:
            part = dict(zip(names, rest[2:], strict=True))
            return loss(call(x, h), rest[0], rest[1], part, self._prices, self.config.objective)

        hidden = torch.from_numpy(turns["hidden"])
        columns = tuple(tensors(turns).values())
        if len(x):
            fisher = diagonal_fisher(net, of_one, x, hidden, target, heard, *columns)
        else:  # more workers than turns
            fisher = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
        for each in fisher.values():
            each.mul_(len(x) / len(drawn["id"]))
        self._workers.add(list(fisher.values()))
        self._ewc.consolidate(net, fisher)
        self.consolidations += 1

    def refresh(self) -> None:
        """Choose the exemplars anew from the buffer: what the next snapshot compares with."""
        random = np.random.default_rng([self.config.seed, self.steps, 2])
        drawn = self.buffer.sample(2 * self.config.most_exemplars, random, balanced=False)
        _, first = np.unique(drawn["id"], return_index=True)
        rows = np.sort(first)[: self.config.most_exemplars]
        known = drawn["known"][rows] > 0
        self._exemplars = Exemplars.of(drawn["features"][rows], np.where(known, drawn["quality"][rows], np.nan))
        self._places = {int(key): i for i, key in enumerate(drawn["id"][rows])}

    def snapshot(self, name: str) -> Snapshot:
        """The weights now. Raises ``Stop`` before enough was gathered."""
        net = FastGRNN(self._network().snapshot(name))
        self._space.leave(net)
        return Snapshot(net.snapshot(name).params, name, self._exemplars, learned=True)

    def forget(self, values: npt.NDArray[np.int64], column: str = "owner") -> int:
        """Remove the turns whose ``column`` is among ``values`` from buffer and exemplars; returns how many."""
        gone = self.buffer.forget(values.tolist(), column)
        if gone and self.ready and len(self.buffer):
            self.refresh()
        return gone

    # --------------------------------------------------------------------------------------------- the parts of a step

    def _network(self) -> FastGRNN:
        if self._net is None:
            raise Stop(WHO, f"{len(self.buffer)} turns so far", f"wait until {self.config.gather} were judged")
        return self._net

    def _begin(self) -> None:
        self.refresh()
        random = np.random.default_rng([self.config.seed, 3])
        turns = self.buffer.sample(len(self.buffer), random)
        assert self._exemplars is not None  # noqa: S101 - refresh made them
        x = np.array(turns["features"])
        seen = x[:, AT] = self._exemplars.recall_all(x, self._own(turns))
        self._space = Space.of(x)
        target, heard = targets(turns, seen, self._exemplars, self.config.objective.clip)
        generator = torch.Generator().manual_seed(self.config.seed)
        self._net = begin(self._start, torch.from_numpy(target), torch.from_numpy(heard), generator, self._space)
        with torch.no_grad():  # all begin as the first worker does: unlike machines round differently
            for parameter in self._net.parameters():
                parameter.mul_(float(self._workers.rank == 0))
        self._workers.add(list(self._net.parameters()))
        self._optimizer = self._made_optimizer()

    def _made_optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self._network().parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )

    def _own(self, turns: Columns) -> npt.NDArray[np.int64]:
        return np.array([self._places.get(int(key), -1) for key in turns["id"]], np.int64)

    def _seen(self, turns: Columns) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and their weights."""
        if self._exemplars is None:
            raise Stop(WHO, "no exemplars", "learn from some turns first")
        x = np.array(turns["features"])
        seen = x[:, AT] = self._exemplars.recall_all(x, self._own(turns)) if len(x) else x[:, AT]
        target, heard = targets(turns, seen, self._exemplars, self.config.objective.clip)
        return torch.from_numpy(self._space.put(x)), torch.from_numpy(target), torch.from_numpy(heard)

    def _gradient(
        self, new: Columns, replayed: Columns, mine: npt.NDArray[np.bool_], random: np.random.Generator
    ) -> float:
        """The gradient of all workers' turns together; returns the mean loss of the new ones."""
        net, n = self._network(), len(new["id"])
        both = {name: np.concatenate((new[name], replayed[name])) for name in SCHEMA}
        rows = np.flatnonzero(np.concatenate((mine, mine[: len(replayed["id"])])))
        keep = random.random((len(both["id"]), FEATURES), np.float32) >= self.config.dropout
        part = {name: both[name][rows] for name in SCHEMA}
        net.zero_grad()
        told, total = torch.zeros(()), torch.zeros(())
        if len(rows):
            x, target, heard = self._seen(part)
            inputs = x * torch.from_numpy(keep[rows]) / (1.0 - self.config.dropout)
            out, own = unrolled(net, inputs, part, int(mine.sum())), int(mine.sum())
            each = loss(out, target, heard, tensors(part), self._prices, self.config.objective)
            told, total = each[:own].detach().sum() / n, each.sum() / len(both["id"])
        if self._workers.rank == 0:
            total = total + self._ewc.penalty(net)
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        for parameter in net.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sums = [told, total.detach().clone()]
        self._workers.add([*sums, *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)])
        if not bool(torch.isfinite(sums[1])):
            raise Stop(WHO, f"a loss of {float(sums[1])} at step {self.steps}", "go back to the last good checkpoint")
        return float(sums[0])

    def _update(self) -> None:
        net, config = self._network(), self.config
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip_gradient)
        if self._optimizer is None:
            raise Stop(WHO, "no optimiser", "this is a bug")
        self._optimizer.step()
        if config.density < 1.0 and self.steps >= config.dense_steps:
            if self.steps < 2 * config.dense_steps:
                net.threshold(config.density)
            net.project()

    def _remember(self, turns: Columns) -> None:
        self.buffer.add_many(strata(turns), {name: turns[name] for name in SCHEMA})

    # ----------------------------------------------------------------------------------------------------- in and out

    def state(self) -> Arrays:
        """All of it as arrays."""
        made: Arrays = {"counts": np.array([self.steps, self.consolidations, int(self.ready)], np.int64)}
        made |= {f"buffer/{name}": value for name, value in self.buffer.state().items()}
        made |= {f"drift/{name}": value for name, value in self._drift.state().items()}
        made |= {f"ewc/{name}": value for name, value in self._ewc.state().items()}
        if self._net is None or self._exemplars is None or self._optimizer is None:
            return made
        made |= {f"net/{name}": value.detach().numpy().copy() for name, value in self._net.named_parameters()}
        made["support"] = self._net.support.numpy().copy()
        made |= {"space/mean": self._space.mean, "space/scale": self._space.scale}
        made |= {"exemplars/keys": self._exemplars.keys, "exemplars/quality": self._exemplars.quality}
        made["exemplars/ids"] = np.array(list(self._places), np.int64)
        for at, moments in self._optimizer.state_dict()["state"].items():
            made |= {f"adamw/{at}/{name}": value.numpy().copy() for name, value in moments.items()}
        return made

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the learner that gave ``state``. Raises ``Stop``, for a new learner, if it can't be that."""

        def part(name: str) -> Arrays:
            return {path[len(name) + 1 :]: value for path, value in state.items() if path.startswith(f"{name}/")}

        try:
            self.steps, self.consolidations, ready = (int(count) for count in state["counts"])
            self.buffer = Reservoir.from_state(part("buffer"), SCHEMA, capacity=self.config.capacity)
            self._drift = Drift.from_state(part("drift"))
            if not ready:
                return
            params = {name: np.array(value) for name, value in part("net").items()}
            net = FastGRNN(Snapshot(params, "restored"))
            net.support.copy_(torch.from_numpy(np.array(state["support"])))
            self._net = net
            self._ewc.restore(part("ewc"), net)
            self._space = Space(state["space/mean"], state["space/scale"])
            self._exemplars = Exemplars(np.array(state["exemplars/keys"]), np.array(state["exemplars/quality"]))
            self._places = {int(key): i for i, key in enumerate(state["exemplars/ids"])}
            self._optimizer = self._made_optimizer()
            moments: dict[int, dict[str, Tensor]] = {}
            for path, value in part("adamw").items():
                at, _, name = path.partition("/")
                moments.setdefault(int(at), {})[name] = torch.from_numpy(np.array(value))
            whole = self._optimizer.state_dict()
            self._optimizer.load_state_dict({**whole, "state": moments})
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            got = f"a state that can't be read ({type(error).__name__}: {error})"
            raise Stop(WHO, got, "restore what this version wrote, or start anew") from error
