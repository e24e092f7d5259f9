"""A log full of judged turns of an invented world, and a learner's loop on it. Run as a script, it learns until told.

python learn_rig.py ROOT [POINT COUNT]    ends itself by SIGKILL the COUNT-th time it passes POINT

With RANK and WORLD_SIZE in the environment, as torchrun sets them, it is one of several workers. It prints what it has
learned and the digest of the state it ends with.
"""

import contextlib
import hashlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from conf.learn import Learn
from conf.promotion import Promotion
from jobs.learning.loop import LearnLoop
from jobs.promote import Promoter
from operators.learning.arrays import to_bytes
from operators.learning.config import LearnerConfig
from operators.learning.holdout import HoldoutConfig
from operators.learning.workers import Alone, Group
from operators.networks.features import SLOT
from operators.networks.prior import prior
from operators.records import Interaction, Route, Verdict, encode
from operators.route import Router
from operators.stores.checkpoints import Registry
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, create_topics, session_key

SLOTS = {"small": 0, "large": 3}
COSTS = np.array([1.0, np.nan, np.nan, 2.0])
CONFIG = Learn(
    batch=4, candidate_turns=60, save_turns=24, keep_states=2,
    learner=LearnerConfig(
        gather=32, learning_rate=0.01, rounds=2, dense_steps=10, consolidate_steps=9, fisher_turns=32, capacity=150,
    ),
    holdout=HoldoutConfig(share=0.3),
)  # fmt: skip
PROMOTION = Promotion(shadow_events=0, canary_events=0, gate={"min_turns": 20})


def turn(i, tenant="t", *, score=None, turn_of=0, session=None):
    """An interaction and its verdict: slot 0 does well where there are few digits."""
    random = np.random.default_rng([7, i])
    features = np.zeros(128, np.float32)
    features[:32] = random.standard_normal(32) / 6
    features[SLOT["digit_share"]] = random.uniform()
    tier = str(random.choice(["small", "large"]))
    chance = 0.9 if tier == "large" else (0.9 if features[SLOT["digit_share"]] < 0.5 else 0.1)
    session = session or f"s{i // 2}"
    route = Route(
        tier=tier, context_tokens=512, temperature=0.5, top_p=0.9, confidence=0.5, probabilities={}, propensity=0.25,
        propensities={"tier": 0.5, "context_tokens": 0.5}, checkpoint="prior-2", reason="router",
        hidden=np.zeros(64, np.float32), features=features,
    )  # fmt: skip
    interaction = Interaction(
        event_id=f"e{i}", interaction_id=f"i{i}", tenant=tenant, session=session, turn=turn_of or i % 2, created_at=1.0,
        query="q", answer="a", route=route, hidden=np.zeros(64, np.float32),
    )  # fmt: skip
    verdict = Verdict(
        event_id=f"v{i}", interaction_id=f"i{i}", tenant=tenant, session=session, created_at=2.0, status="judged",
        score=float(random.uniform() < chance) if score is None else score, uncertainty=0.1, judge="j",
    )  # fmt: skip
    return interaction, verdict


def put(log, interaction, verdict):
    key = session_key(interaction.tenant, interaction.session)
    partition, offset = log.append(INTERACTIONS, key, encode(interaction))
    where = {"src.topic": INTERACTIONS, "src.partition": str(partition), "src.offset": str(offset)}
    log.append(JUDGEMENTS, key, encode(verdict), where)


def fill(root, n):
    with contextlib.closing(opened(root)) as log:
        for i in range(n):
            put(log, *turn(i))


def opened(root):
    log = SqliteLog(Path(root) / "events.db")
    log.open()
    create_topics(log, 2)
    return log


def loop_on(root, log, at=lambda step: None, removed=lambda known: (), workers=None, config=CONFIG):
    registry = Registry(Path(root) / "checkpoints")
    return LearnLoop(
        log, registry, Registry(Path(root) / "checkpoints", "learner"),
        Promoter(registry, log, "prior-2", PROMOTION, clock=lambda: 3.0), prior(), SLOTS, COSTS, Router.Config(),
        config, PROMOTION, removed, at, workers,
    )  # fmt: skip


def learn_all(root, at=lambda step: None, workers=None):
    """Learn what is there; the loop, to look at."""
    with contextlib.closing(opened(root)) as log:
        loop = loop_on(root, log, at, workers=workers)
        loop.begin()
        while loop.turn():
            pass
        return loop


def had(loop):
    """A digest of the ids of all turns that are in the buffer or held out."""
    state = loop.state()
    ids = {id for name, value in state.items() if name.endswith("/id") for id in value.tolist()}
    return hashlib.sha256(repr(sorted(ids)).encode()).hexdigest()


if __name__ == "__main__":
    root, *fault = sys.argv[1:]
    left = int(fault[1]) if fault else 0

    def at(step):
        global left
        if fault and step == fault[0]:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    workers = Alone()
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
        workers = Group()
    print("learning", flush=True)
    ended = learn_all(root, at, workers)
    print(ended.learned, had(ended), hashlib.sha256(to_bytes(ended.state())).hexdigest())
