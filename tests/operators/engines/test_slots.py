"""A conversation finds its state again, in its slot or from a file; another tenant's never, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.engines.llama.slots import WORTH, Slots
from operators.engines.make import make_engine
from operators.errors import Retry
from operators.tiers import ModelFile
from tests.operators.engines import kit
from tests.operators.engines import tiny_gguf as tiny

STORY = "in the sea there is a ship and the ship is in the sea, and a bell rings in it. " * 3


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    found: ModelFile = tiny.write(gguf, tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return found


@pytest.fixture
async def engine(model: ModelFile, tmp_path: Path) -> AsyncIterator[Any]:
    made: Any = make_engine(
        "llama_server", model, tmp_path, context_tokens=1024, parallel=2, threads=1, states_bytes=1_000_000
    )
    await made.start()
    yield made
    await made.close()


async def ask(engine: Any, text: str, session: str, scope: str = "t", n: int = 16) -> tuple[int, str]:
    """Tokens that were known, and the answer."""
    pieces = await kit.collect(engine, kit.request(engine, text, max_tokens=n, scope=scope, session=session))
    return pieces[-1].cached_tokens, "".join(piece.text for piece in pieces)


async def test_a_session_that_lost_its_slot_finds_its_state_again(engine: Any) -> None:
    texts = {name: f"{name} {STORY}" for name in "abcd"}
    first = {name: await ask(engine, text, name) for name, text in texts.items()}
    assert engine.slots.saved >= 2, "two slots, four sessions"
    for name, text in texts.items():
        known, answer = await ask(engine, text, name)
        assert known >= len(engine.tokenize(text)) - 8
        assert answer == first[name][1]
    assert engine.slots.restored >= 2
    # The next turn goes on from it, and is answered as by an engine that never saw the first.
    known, answer = await ask(engine, f"{texts['a']} and then the", "a")
    assert known >= len(engine.tokenize(texts["a"])) - 8
    assert answer == (await ask(engine, f"{texts['a']} and then the", "new", scope="other"))[1]


async def test_a_turn_that_leaves_the_last_question_goes_on_from_where_they_part(engine: Any) -> None:
    """As prompts are laid out: the passages of the last turn are gone from the next one's history."""
    long = STORY * 3
    await ask(engine, long + "the passage of the first turn, and its question", "s")
    for i in range(3):  # somebody else takes the slots meanwhile
        await ask(engine, f"{i} {STORY}", f"other {i}")
    known, answer = await ask(engine, long + "what came then, and now another", "s")
    assert known > 0.5 * len(engine.tokenize(long))
    assert answer == (await ask(engine, long + "what came then, and now another", "s", scope="fresh"))[1]


async def test_two_sessions_of_a_tenant_share_their_beginning(engine: Any) -> None:
    await ask(engine, STORY + "one", "a")
    known, answer = await ask(engine, STORY + "two", "b")
    assert known >= len(engine.tokenize(STORY)) - 8
    assert answer == (await ask(engine, STORY + "two", "b", scope="fresh"))[1]


async def test_no_tenant_finds_anothers(engine: Any) -> None:
    for i in range(4):
        assert (await ask(engine, STORY, "same name", scope=f"tenant {i}"))[0] == 0
    assert (await ask(engine, STORY, "same name", scope="tenant 0"))[0] > 60


async def test_a_disk_that_takes_nothing_costs_only_the_state(engine: Any, tmp_path: Path) -> None:
    for directory in (tmp_path / "states").iterdir():
        shutil.rmtree(directory)
    answers = [await ask(engine, f"{name} {STORY}", name) for name in "abcabc"]
    assert engine.slots.failed > 0
    assert engine.slots.bytes == 0
    assert [a[1] for a in answers[:3]] == [a[1] for a in answers[3:]]


async def test_states_stay_below_their_bytes(model: ModelFile, tmp_path: Path) -> None:
    made: Any = make_engine(
        "llama_server", model, tmp_path, context_tokens=1024, parallel=1, threads=1, states_bytes=200_000
    )
    await made.start()
    try:
        for i in range(8):
            await ask(made, f"{i} {STORY}", str(i), n=2)
        files = list((tmp_path / "states").rglob("*.state"))
        assert 0 < sum(file.stat().st_size for file in files) == made.slots.bytes <= 200_000
        assert len(files) < made.slots.saved
        assert (await ask(made, f"6 {STORY}", "6", n=2))[0] > 60
        assert (await ask(made, f"0 {STORY}", "0", n=2))[0] < 10
    finally:
        await made.close()
    assert list((tmp_path / "states").iterdir()) == []


class Server:
    """What llama.cpp's server does with its slots: it keeps tokens, and compares them with the next prompt's."""

    def __init__(self, directory: Path, n: int, failing: frozenset[int]) -> None:
        self.directory, self.slots, self.failing, self.acts = directory, [("", ())] * n, failing, 0

    async def act(self, slot: int, action: str, file: str) -> int:
        await asyncio.sleep(0)
        self.acts += 1
        if self.acts in self.failing and action != "erase":
            raise Retry("server", "no space", "free some")
        if action == "save":
            self.files = getattr(self, "files", {}) | {file: self.slots[slot]}
            (self.directory / file).touch()
            return 10 * len(self.slots[slot][1])
        if action == "restore" and not (self.directory / file).exists():
            raise Retry("server", "invalid slot save file", "try again")
        self.slots[slot] = ("", ()) if action == "erase" else self.files[file]
        return 0

    def compute(self, slot: int, scope: str, prompt: tuple[int, ...]) -> None:
        owner, known = self.slots[slot]
        assert owner in ("", scope) or not known or known[0] != prompt[0], f"{scope} can measure what {owner} asked"
        self.slots[slot] = (scope, prompt)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("ab"), st.integers(60, 90)), max_size=25),
    st.frozensets(st.integers(1, 30)),
    st.sampled_from((0, 2000, 100_000)),
)
def test_no_order_of_requests_and_failures_crosses_a_scope(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    asked: list[tuple[str, str, int]],
    failing: frozenset[int],
    max_bytes: int,
) -> None:
    directory = tmp_path_factory.mktemp("slots")
    server = Server(directory, n, failing)
    slots = Slots(n, server.act, directory=directory, max_bytes=max_bytes)
    busy: set[int] = set()

    async def one(scope: str, session: str, length: int) -> None:
        prompt = tuple(range(length))
        async with slots.take(scope, session, prompt) as slot:
            assert slot not in busy
            busy.add(slot)
            server.compute(slot, scope, prompt)
            await asyncio.sleep(0)
            busy.remove(slot)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(*request) for request in asked))

    asyncio.run(all_of_them())
    assert slots.bytes <= max_bytes
    assert len(list(directory.iterdir())) == len(slots._parked)
    if asked and max_bytes == 100_000 and not failing and asked[-1][2] >= WORTH:
        assert slots.knows(*asked[-1][:2])


async def test_the_state_that_is_fetched_does_not_give_way_to_the_one_that_makes_room(tmp_path: Path) -> None:
    """The longest unused goes first when bytes are short, but not while it is wanted."""
    server = Server(tmp_path, 1, frozenset())
    slots = Slots(1, server.act, directory=tmp_path, max_bytes=1000)
    for session in "aba":
        prompt = tuple(range(ord(session), ord(session) + 90))
        async with slots.take("x", session, prompt) as slot:
            server.compute(slot, "x", prompt)
    assert (slots.restored, slots.failed) == (1, 0)


@pytest.mark.parametrize("max_bytes", [0, 100_000])
def test_requests_at_once_lie_in_adjacent_slots_if_states_are_kept(tmp_path: Path, max_bytes: int) -> None:
    now = iter(range(1000))
    slots = Slots(
        8, Server(tmp_path, 8, frozenset()).act, directory=tmp_path, max_bytes=max_bytes, clock=lambda: next(now)
    )
    # After this order of leaving, the four that nobody used for longest are not neighbours.
    leaving = [3, 6, 0, 5, 1, 2, 4, 7]

    async def volley(sessions: list[str], order: list[int]) -> list[int]:
        async with contextlib.AsyncExitStack() as all_:
            taken, held = [], {}
            for session in sessions:
                one = await all_.enter_async_context(contextlib.AsyncExitStack())
                taken.append(await one.enter_async_context(slots.take("x", session, tuple(range(90)))))
                slots._states[taken[-1]].tokens = tuple(range(90))
                held[taken[-1]] = one
            for slot in order or taken:
                await held[slot].aclose()
            return taken

    async def main() -> list[int]:
        assert await volley([f"a{i}" for i in range(8)], leaving) == list(range(8))
        return await volley([f"b{i}" for i in range(4)], [])

    taken = asyncio.run(main())
    assert taken == ([3, 2, 1, 0] if max_bytes else leaving[:4])
