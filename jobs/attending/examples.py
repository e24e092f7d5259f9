"""What the attention network learns from: queries, each with its neighbourhood and the nodes that answer it.

Two sources give the same ``Example``: files with known answers, and judged interactions from the event log. Either way
the neighbourhood comes from the real stages ``embed``, ``search`` and ``expand`` of the profile.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from conf.schema import Settings
from jobs.consumer import read_record
from operators.embed import Embed
from operators.errors import Skip
from operators.evaluation_files import Line, as_node, read_corpus, read_queries
from operators.expand import Expand, ExpandInput
from operators.ids import uuid7
from operators.records import Embedded, Filter, Interaction, Message, Neighbourhood, Query, Verdict, record
from operators.search import Search, SearchInput
from operators.stores.make import memory_in
from operators.stores.memory import Memory
from operators.stores.ports import EventLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS

T = TypeVar("T")
TENANT = "training"
SLICE = 256
"""Corpus lines embedded and written, and events read, at a time."""


@record
class Example:
    """One query. ``gold``: ids of the nodes that answer it; some may lie outside ``near``, where nobody can find them.

    Examples of one ``group`` share something (a session, an answer, the words) and stay on one side of every split.
    """

    query: Query
    embedded: Embedded
    near: Neighbourhood
    gold: tuple[str, ...]
    group: str


class Surroundings:
    """The stages that lead to a neighbourhood, over an open ``memory``."""

    def __init__(self, settings: Settings, memory: Memory) -> None:
        self.embed = Embed(settings.embed, settings.data_dir / "cache")
        self.search = Search(settings.search, memory)
        self.expand = Expand(settings.expand, memory)

    async def __aenter__(self) -> Surroundings:
        await self.embed.start()
        await self.search.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.search.close()
        await self.embed.close()

    async def of(self, query: Query) -> tuple[Embedded, Neighbourhood]:
        """The query's vector and its neighbourhood, the hits first in the order of search."""
        (embedded,) = await self.embed([query])
        (hits,) = await self.search([SearchInput(query=query, embedded=embedded)])
        (near,) = await self.expand([ExpandInput(query=query, embedded=embedded, hits=hits)])
        return embedded, near


# ------------------------------------------------------------------------------------------------------- gold files


async def from_files(
    corpus: Path, queries: Path, settings: Settings, advance: Callable[[int, int], None] = lambda done, total: None
) -> list[Example]:
    """An example a query of the files that ``evaluate memory`` reads. The corpus goes into a memory of its own.

    ``advance`` is told how many lines and queries of how many are done. Raises ``Reject`` for files that can't be used.
    """
    lines = read_corpus(corpus)
    questions = read_queries(queries, lines)
    place = {line.id: f"session {line.session}" if line.session else f"line {line.id}" for line in lines}
    groups = _groups([[f"text {q.text.casefold()}", *(place[node_id] for node_id in q.gold)] for q in questions])
    total = len(lines) + len(questions)
    examples = []
    with tempfile.TemporaryDirectory(prefix="ruvllm-train-") as scratch:
        memory = memory_in(Path(scratch), settings.embed.output_dim, settings.memory, settings.vectors, settings.graph)
        memory.open()
        try:
            async with Surroundings(settings, memory) as around:
                await _fill(memory, around.embed, lines, lambda done: advance(done, total))
                for question, group in zip(questions, groups, strict=True):
                    query = _query(TENANT, TENANT, question.text)
                    embedded, near = await around.of(query)
                    example = Example(query=query, embedded=embedded, near=near, gold=question.gold, group=group)
                    examples.append(example)
                    advance(len(lines) + len(examples), total)
        finally:
            memory.close()
    return examples


async def _fill(memory: Memory, embed: Embed, lines: Sequence[Line], advance: Callable[[int], None]) -> None:
    now = time.time()
    for begin in range(0, len(lines), SLICE):
        some = lines[begin : begin + SLICE]
        made = await embed.texts([line.text for line in some], query=False)
        columns = zip(some, made.vectors, made.tokens, strict=True)
        memory.add(TENANT, [as_node(line, vector, int(tokens), now) for line, vector, tokens in columns])
        advance(begin + len(some))
    memory.publish(TENANT)


def _groups(shared: Sequence[Sequence[str]]) -> list[str]:
    """The group of every example: those that have one of their strings in common, even over others, are together."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (up := parent.setdefault(name, name)) != name:
            name = up
        return name

    for names in shared:
        for name in names:
            parent[root(name)] = root(names[0])
    return [root(names[0]) for names in shared]


# ------------------------------------------------------------------------------------------------ judged interactions


async def from_events(log: EventLog, around: Surroundings, threshold: float) -> list[Example]:
    """An example an interaction whose verdict is at least ``threshold``: the nodes its answer was given to read are
    positives, the rest of its neighbourhood, as search finds it today, the negatives.

    Only nodes that existed then are hits. What can't be read is passed over: it is another job's dead letter.
    The positives are what the ranking of that day chose, so these examples can sharpen a ranking, hardly turn it.
    """
    scores = {
        verdict.interaction_id: verdict.score
        for verdict in _all(log, JUDGEMENTS, Verdict)
        if verdict.status == "judged" and verdict.score is not None
    }
    chosen: dict[str, Interaction] = {}
    for interaction in _all(log, INTERACTIONS, Interaction):
        if any(p.node_id for p in interaction.context) and scores.get(interaction.interaction_id, -1.0) >= threshold:
            chosen.setdefault(interaction.interaction_id, interaction)
    groups = _groups([[f"session {i.tenant}|{i.session}", f"text {i.query.casefold()}"] for i in chosen.values()])
    examples = []
    for interaction, group in zip(chosen.values(), groups, strict=True):
        query = _query(interaction.tenant, interaction.session, interaction.query)
        query = dataclasses.replace(query, filter=Filter(created_to=interaction.created_at))
        embedded, near = await around.of(query)
        gold = tuple(dict.fromkeys(passage.node_id for passage in interaction.context if passage.node_id))
        examples.append(Example(query=query, embedded=embedded, near=near, gold=gold, group=group))
    return examples


def _all(log: EventLog, topic: str, cls: type[T]) -> Iterator[T]:
    """Every readable record of ``topic``."""
    for partition in range(log.topics().get(topic, 0)):
        position = 0
        while events := log.read(topic, partition, position, SLICE):
            for event in events:
                try:
                    yield read_record(cls, event)
                except Skip:
                    continue
            position = events[-1].offset + 1


def _query(tenant: str, session: str, text: str) -> Query:
    return Query(
        interaction_id=str(uuid7()),
        tenant=tenant,
        session=session,
        text=text,
        messages=(Message(role="user", content=text),),
        created_at=time.time(),
    )
