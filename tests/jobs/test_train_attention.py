"""Training of the ranking: it learns what is there to learn, and only what holds on unseen queries may rank."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conf.load import load
from jobs.attending.examples import Example, from_events
from jobs.attending.fit import fit
from jobs.train_attention import main, report_path, split, table, train
from operators.attend import Attend
from operators.errors import Reject, Stop
from operators.networks import attention
from operators.records import Embedded, Interaction, Message, Neighbourhood, Passage, Query, Verdict, encode
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, create_topics
from tests.service import ROOT

D, NODES, HITS = 16, 12, 8
QUICK = (
    *("layers=2", "heads=4", "learning_rate=0.02", "epochs=25", "sharpness=4"),
    *("holdout=0.3", "validation=0.15"),
)


def settings(*overrides):
    return load("test", overrides=[f"train_attention.{o}" for o in (*QUICK, *overrides)], env={}).settings


def around(rng, vectors, node_ids=None):
    """A neighbourhood of these nodes in an order, and with scores, that say nothing."""
    hop = np.where(np.arange(NODES) < HITS, 0, 1).astype(np.int32)
    hits = np.sort(rng.random(HITS))[::-1]
    ends = np.arange(HITS, NODES, dtype=np.int32)
    return dataclasses.replace(
        Neighbourhood.none(),
        node_ids=node_ids or tuple(f"n{rng.integers(1 << 40)}" for _ in range(NODES)),
        kinds=("document",) * NODES,
        texts=tuple(f"text {rng.integers(1 << 40)}" for _ in range(NODES)),
        sources=("s",) * NODES,
        vectors=vectors.astype(np.float32),
        hop=hop,
        score=np.concatenate([hits, np.zeros(NODES - HITS)]).astype(np.float32),
        similarity=rng.random(NODES).astype(np.float32),
        tokens=np.full(NODES, 5, np.int32),
        edge_from=ends - HITS,
        edge_to=ends,
        edge_relation=np.zeros(len(ends), np.int8),
        edge_weight=rng.random(len(ends)).astype(np.float32),
        snapshot=1,
    )


def query(text, session="s"):
    message = Message(role="user", content=text)
    return Query(interaction_id="i", tenant="t", session=session, text=text, messages=(message,), created_at=0.0)


def examples(count, planted, seed=0):
    """Queries whose right node is the query's image under a fixed rotation, which no cosine sees; or any node."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
    made = []
    for i in range(count):
        vectors = rng.standard_normal((NODES, D))
        vector = rng.standard_normal(D)
        right = int(rng.integers(NODES))
        if planted:
            vectors[right] = rotation @ vector + 0.2 * rng.standard_normal(D)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        near = around(rng, vectors)
        embedded = Embedded(
            vector=(vector / np.linalg.norm(vector)).astype(np.float32), tokens=3, truncated=False, encoder="e5"
        )
        gold = (near.node_ids[right],)
        made.append(Example(query=query(f"q{i}"), embedded=embedded, near=near, gold=gold, group=f"g{i // 2}"))
    return made


def attend(path, ranking="auto"):
    return Attend(Attend.Config(ranking=ranking, checkpoint=str(path)))


# ------------------------------------------------------------------------------------------------- learning, the gate


async def test_a_planted_signal_is_learned_and_may_rank(tmp_path):
    out = tmp_path / "ranking.safetensors"
    report = await train(examples(300, planted=True), settings(), out)
    lines = report["lines"]
    assert report["trained"]
    assert lines["trained"]["ndcg@10"] > max(lines["search"]["ndcg@10"], lines["attended"]["ndcg@10"]) + 0.2
    assert report["queries"] == {"training": 164, "validation": 46, "holdout": 90}
    assert json.loads(report_path(out).read_text())["lines"] == lines
    assert "it will be used" in table(report)
    weights = attention.load(out)
    assert (weights.trained, weights.encoder) == (True, "e5")
    stage = attend(out, "attention")
    await stage.start()
    assert stage.weights is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, report_path(out).name]


async def test_noise_loses_and_does_not_rank(tmp_path):
    out = tmp_path / "ranking.safetensors"
    report = await train(examples(300, planted=False), settings("patience=30"), out)
    assert not report["trained"]
    assert report["fit"]["training"][-1] < report["fit"]["training"][0] - 0.1  # it did learn the noise by heart
    assert "not surely better" in table(report)
    stage = attend(out)
    await stage.start()
    assert stage.weights is None
    with pytest.raises(Stop, match="untrained"):
        await attend(out, "attention").start()


async def test_what_training_did_not_see_decides(tmp_path):
    """Right answers to learn from, wrong ones in the holdout: what was learned must not pass."""
    good = examples(300, planted=True)
    held = {id(example) for example in split(good, settings().train_attention).holdout}
    rng = np.random.default_rng(1)
    mixed = [dataclasses.replace(e, gold=(e.near.node_ids[rng.integers(NODES)],)) if id(e) in held else e for e in good]
    report = await train(mixed, settings(), tmp_path / "ranking.safetensors")
    assert report["fit"]["validation"][report["fit"]["best"]] < report["fit"]["validation"][0] - 0.3
    assert not report["trained"]


def test_the_same_seed_gives_the_same_weights():
    config = settings("epochs=3").train_attention
    made = examples(60, planted=True)
    one, same = (fit(made[:40], made[40:], config) for _ in range(2))
    other = fit(made[:40], made[40:], config.model_copy(update={"seed": 1}))
    assert one.validation == same.validation
    assert all(np.array_equal(array, same.weights.arrays()[name]) for name, array in one.weights.arrays().items())
    assert not np.array_equal(one.weights.query, other.weights.query)


def test_parts_share_no_group_and_lose_nothing():
    made = examples(100, planted=False)
    parts = split(made, settings().train_attention)
    groups = [{e.group for e in part} for part in (parts.training, parts.validation, parts.holdout)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 50
    assert len(parts.holdout) == 30
    assert len(parts.training) + len(parts.validation) == 70
    again = split(list(reversed(made)), settings().train_attention)
    assert {e.query.text for e in again.holdout} == {e.query.text for e in parts.holdout}


# ---------------------------------------------------------------------------------------------------- what is refused


async def test_too_few_queries_or_groups_are_refused(tmp_path):
    out, made = tmp_path / "r.safetensors", examples(200, planted=True)
    with pytest.raises(Reject, match="30 queries in 8 groups are needed"):
        await train(made[:40], settings(), out)
    with pytest.raises(Reject, match="nothing to learn"):
        await train([dataclasses.replace(e, group="one") for e in made], settings(), out)
    with pytest.raises(Reject, match="in no query of the training part"):
        await train([dataclasses.replace(e, gold=("elsewhere",)) for e in made], settings(), out)
    with pytest.raises(Stop, match="5 heads"):
        await train(made, settings("heads=5"), out)
    assert not list(tmp_path.iterdir())


async def test_a_checkpoint_is_never_written_over(tmp_path):
    out = tmp_path / "r.safetensors"
    out.write_bytes(b"in use")
    with pytest.raises(Reject, match="is there already"):
        await train(examples(300, planted=True), settings(), out)
    assert out.read_bytes() == b"in use"


LINE = {"id": "a", "text": "alpha"}


@pytest.mark.parametrize(
    ("corpus", "queries", "more", "says"),
    [
        ([LINE, "{"], [LINE], [], "corpus.jsonl: line 2: not JSON"),
        ([LINE], [{"id": "q", "text": "x", "gold": ["b"]}], [], "queries.jsonl: line 1: gold id 'b' is not in the"),
        ([LINE], [], ["--out", "nowhere/at/all"], "no folder nowhere/at"),
        ([LINE], [], ["--set", "train_attention.holdout=0.9"], "let their sum be below 1"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, corpus, queries, more, says):
    command = ["--profile", "test", "--set", f"data_dir={tmp_path / 'data'}", "--out", str(tmp_path / "r.safetensors")]
    for name, rows in {"corpus": corpus, "queries": queries}.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        command += [f"--{name}", str(path)]
    with pytest.raises(SystemExit) as ended:
        main([*command, *more])
    assert says in str(ended.value)


@pytest.mark.slow
def test_ruvllm_train_runs_the_job(tmp_path):
    path = tmp_path / "none.jsonl"
    words = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "train",
        "attention",
        "--profile",
        "test",
        "--out",
        str(tmp_path / "r"),
    ]
    words += ["--corpus", str(path), "--queries", str(path), "--set", "train_attention.epochs=1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"{path}: can't be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_needs_one_source(tmp_path, capsys):
    for given in ([], ["--events", "--corpus", "c", "--queries", "q"], ["--corpus", "c"]):
        with pytest.raises(SystemExit):
            main([*given, "--out", str(tmp_path / "r")])
        assert "or --events alone" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ both sources


@pytest.mark.slow
def test_gold_files_end_to_end(tmp_path, capsys):
    things, colours = ("kettle", "ladder", "violin", "carpet", "lantern", "basket"), ("red", "green", "blue", "grey")
    places = ("attic", "cellar", "garden", "kitchen", "garage", "hall")
    rng = np.random.default_rng(0)
    texts = [f"The {c} {t} is kept in the {rng.choice(places)}." for t in things for c in colours]
    questions = [f"Where is the {c} {t}?" for t in things for c in colours]
    rows = {"corpus": [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]}
    rows["queries"] = [{"id": f"q{i}", "text": text, "gold": [f"d{i}"]} for i, text in enumerate(questions)]
    for name, some in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    out = tmp_path / "r.safetensors"
    command = ["--profile", "test", "--json", "--out", str(out), "--set", f"data_dir={tmp_path / 'data'}"]
    for override in ("min_holdout=10", "holdout=0.5", "epochs=2"):
        command += ["--set", f"train_attention.{override}"]
    main([*command, "--corpus", str(tmp_path / "corpus"), "--queries", str(tmp_path / "queries")])
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(report_path(out).read_text())
    assert report["queries"] == {"training": 7, "validation": 5, "holdout": 12}
    assert report["lines"]["search"]["recall@5"] > 0.9  # the real stages found them
    weights = attention.load(out)
    assert (weights.trained, weights.dim) == (report["trained"], 384)
    assert weights.encoder == report["encoder"] != ""


class Scripted:
    """Stands for the stages: a neighbourhood of given nodes for every query, and the queries that were asked."""

    def __init__(self):
        self.asked = []

    async def of(self, asked):
        self.asked.append(asked)
        rng = np.random.default_rng(0)
        near = around(rng, rng.standard_normal((NODES, D)), tuple(f"n{i}" for i in range(NODES)))
        return Embedded(vector=np.zeros(D, np.float32), tokens=1, truncated=False, encoder="e5"), near


async def test_judged_interactions_become_examples(tmp_path: Path):
    log = SqliteLog(tmp_path / "events.sqlite")
    log.open()
    create_topics(log)

    def turn(number, score, cited=("n3", "n9"), session="s1", text=None):
        passages = tuple(Passage(node_id=node_id, source="", text="x", tokens=1, score=1.0) for node_id in cited)
        common = {"interaction_id": f"i{number}", "tenant": "acme", "session": session, "created_at": 5.0}
        asked = Interaction(
            event_id=f"e{number}", turn=number, query=text or f"q{number}", answer="a", context=passages, **common
        )
        log.append(INTERACTIONS, f"acme|{session}", encode(asked))
        if score is not None:
            verdict = Verdict(
                event_id=f"v{number}", status="judged", score=score, uncertainty=0.0, judge="scripted", **common
            )
            log.append(JUDGEMENTS, f"acme|{session}", encode(verdict))

    turn(1, 0.9)
    turn(2, 0.74)  # not good enough
    turn(3, None)  # not judged
    turn(4, 0.75, session="s2", text="Q1")  # another session, the words of the first
    turn(5, 1.0, cited=())  # answered from nothing
    turn(6, 1.0, session="s3")
    turn(6, 1.0, session="s3")  # the same event once more
    log.append(INTERACTIONS, "acme|s1", b"no interaction")
    stages = Scripted()
    found = await from_events(log, stages, 0.75)
    log.close()
    assert sorted(example.query.text for example in found) == ["Q1", "q1", "q6"]
    assert all(example.gold == ("n3", "n9") for example in found)
    group = {example.query.text: example.group for example in found}
    assert group["q1"] == group["Q1"] != group["q6"]
    assert {(q.tenant, q.filter.created_to) for q in stages.asked} == {("acme", 5.0)}
