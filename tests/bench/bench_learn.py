"""The learner: judgements a second, beside the same loop written with Avalanche's EWC and replay plugins.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/bench/bench_learn.py

Both learn the same judged turns with the same network, from the same weights, with the same loss and optimiser, eight
new turns beside eight replayed ones a step, one thread each, in turns. The peer is given its inputs and targets ready
made; the learner makes its own (exemplars, doubly robust targets), unrolls sessions and watches for drift as it does in
service. ``log`` is the whole job's loop: reading judgements and interactions from SQLite, learning, measuring, saving.
Without Avalanche (``make peers``) only our own figures come.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import torch

from jobs.continual import peer as continual_peer
from operators.learning.config import LearnerConfig
from operators.learning.learner import Learner
from operators.learning.objective import loss, targets, tensors
from operators.learning.turns import SCHEMA, blank
from operators.networks.exemplars import AT, Exemplars
from operators.networks.fastgrnn_torch import FastGRNN
from operators.networks.prior import prior
from tests import learn_rig

BATCH, ROUND, ROUNDS, WARM = 8, 256, 10, 512
PRICES = np.array([0.0, 1.0, 1.5, 2.0], np.float32)
CONFIG = LearnerConfig()


def world(n: int) -> dict[str, Any]:
    """Judged turns in sessions of three; one slot of four has a verdict."""
    random = np.random.default_rng(0)
    turns, rows = blank(n), np.arange(n)
    turns["id"][:], turns["session"][:], turns["turn"][:] = rows, rows // 3, rows % 3
    turns["features"][:] = random.normal(0, 0.3, (n, 128))
    turns["slot"][:] = slot = random.integers(4, size=n)
    turns["known"][rows, slot] = 1.0
    turns["quality"][rows, slot] = random.uniform(size=n) < 0.3 + 0.15 * slot
    turns["propensity"][:] = 0.25
    return turns


def part(turns: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    return {name: turns[name][begin:end] for name in SCHEMA}


class Ours:
    """The learner of the service, with its defaults."""

    def __init__(self, turns: dict[str, Any]) -> None:
        self.turns, self.learner = turns, Learner(prior(), PRICES, CONFIG)

    def learn(self, begin: int, end: int) -> None:
        for at in range(begin, end, BATCH):
            self.learner.learn(part(self.turns, at, at + BATCH))


class Theirs:
    """Avalanche: an experience for every ``many`` judgements, consolidated after each as its EWC does."""

    def __init__(self, turns: dict[str, Any], many: int) -> None:
        from avalanche.training.plugins import EWCPlugin, ReplayPlugin  # type: ignore[import-not-found]
        from avalanche.training.supervised import Naive  # type: ignore[import-not-found]

        self.many = many
        x = np.array(turns["features"])
        exemplars = Exemplars.of(x[:WARM], np.where(turns["known"][:WARM] > 0, turns["quality"][:WARM], np.nan))
        seen = x[:, AT] = exemplars.recall_all(x)
        made = tensors(turns)
        target, heard = (torch.from_numpy(each) for each in targets(turns, seen, exemplars, CONFIG.objective.clip))
        columns = {"target": target, "heard": heard, **made}
        flat = [value.reshape(len(x), -1).float() for value in columns.values()]
        self.widths = [(name, value.shape[1], columns[name].ndim) for name, value in zip(columns, flat, strict=True)]
        self.x, self.y = torch.from_numpy(x), torch.cat(flat, 1)
        net = FastGRNN(prior())
        self.strategy = Naive(
            model=Once(net),
            optimizer=torch.optim.AdamW(net.parameters(), CONFIG.learning_rate, weight_decay=CONFIG.weight_decay),
            criterion=self.criterion,
            train_mb_size=BATCH,
            train_epochs=CONFIG.rounds,
            plugins=[
                ReplayPlugin(mem_size=CONFIG.capacity, batch_size=BATCH, batch_size_mem=BATCH),
                EWCPlugin(ewc_lambda=CONFIG.ewc, mode="online", decay_factor=CONFIG.ewc_gamma),
            ],
            evaluator=None,
        )

    def criterion(self, out: dict[str, Any], y: Any) -> Any:
        read, begin = {}, 0
        for name, width, ndim in self.widths:
            column = y[:, begin : begin + width]
            read[name], begin = (column if ndim > 1 else column[:, 0]), begin + width
        target, heard = read.pop("target"), read.pop("heard")
        return loss(out, target, heard, read, torch.from_numpy(PRICES), CONFIG.objective).mean()

    def learn(self, begin: int, end: int) -> None:
        from avalanche.benchmarks import benchmark_from_datasets  # type: ignore[import-not-found]
        from avalanche.benchmarks.utils import make_avalanche_dataset  # type: ignore[import-not-found]
        from avalanche.benchmarks.utils.data_attribute import DataAttribute  # type: ignore[import-not-found]

        for at in range(begin, end, self.many):
            rows = slice(at, min(at + self.many, end))
            labels = DataAttribute([0] * len(self.x[rows]), "targets")
            data = make_avalanche_dataset(
                torch.utils.data.TensorDataset(self.x[rows], self.y[rows]), data_attributes=[labels]
            )
            for experience in benchmark_from_datasets(train=[data]).train_stream:
                self.strategy.train(experience, shuffle=False, num_workers=0)


class Once(torch.nn.Module):
    """The router's network on turns of their own, from the empty state: Avalanche knows no sessions."""

    def __init__(self, net: FastGRNN) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any) -> dict[str, Any]:
        out: dict[str, Any] = self.net(x, torch.zeros(len(x), 64))
        return out


def whole_loop(judgements: int) -> float:
    """Judgements a second of the job's loop on a full log."""
    with tempfile.TemporaryDirectory() as root:
        learn_rig.fill(root, judgements)
        config = learn_rig.CONFIG.model_copy(update={"batch": BATCH, "learner": CONFIG})
        config = config.model_copy(update={"save_turns": 64, "candidate_turns": 256})
        with contextlib.closing(learn_rig.opened(root)) as log:
            loop = learn_rig.loop_on(root, log, config=config)
            loop.begin()
            began = time.perf_counter()
            while loop.turn():
                pass
            return loop.learned / (time.perf_counter() - began)


def main() -> None:
    """Interleaved rounds; prints a table and JSON."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    turns = world(WARM + ROUND * ROUNDS)
    sides: dict[str, Any] = {"ours": Ours(turns)}
    try:
        continual_peer.find()
        # Not one for every batch: its buffer gets a part for each experience, and steps take longer and longer.
        sides["avalanche, 256 an experience"] = Theirs(turns, ROUND)
    except ModuleNotFoundError as missing:
        print(f"{missing}: only our own figures")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        side.learn(0, WARM if name == "ours" else ROUND)
    for at in range(WARM, len(turns["id"]), ROUND):
        for name, side in sides.items():
            began = time.perf_counter()
            side.learn(at, at + ROUND)
            rates[name].append(ROUND / (time.perf_counter() - began))
    random = np.random.default_rng(0)
    result: dict[str, Any] = {"rounds": ROUNDS, "config": CONFIG.model_dump()}
    for name, found in rates.items():
        ratio = np.array(rates["ours"]) / np.array(found)
        low, high = np.quantile(np.median(random.choice(ratio, (2000, ROUNDS)), axis=1), [0.025, 0.975])
        result[name] = {
            "judgements_s": float(np.median(found)),
            "ours_over": float(np.median(ratio)),
            "low": low,
            "high": high,
        }
        print(
            f"{name:32} {np.median(found):8.1f} judgements/s   ours / it {np.median(ratio):.2f} [{low:.2f}, {high:.2f}]"
        )
    result["log"] = [whole_loop(512) for _ in range(3)]
    print(f"{'the whole loop, from the log':32} {np.median(result['log']):8.1f} judgements/s")
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
