"""What arrives while a batch runs is the next batch; one bad item fails alone."""

import asyncio

import pytest

from pipeline.batching import Batcher


class Gate:
    """A stage whose batches the test releases one by one."""

    def __init__(self):
        self.batches = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, batch):
        self.batches.append(list(batch))
        self.entered.set()
        await self.release.wait()
        if "bad" in batch:
            raise ValueError("bad item")
        return [item.upper() for item in batch]


async def test_waiting_items_become_one_batch():
    gate = Gate()
    batcher = Batcher(gate, 8)
    first = asyncio.create_task(batcher("a"))
    await asyncio.wait_for(gate.entered.wait(), 5)
    rest = [asyncio.create_task(batcher(x)) for x in "bcd"]
    await asyncio.sleep(0)
    gate.release.set()
    assert await asyncio.gather(first, *rest) == ["A", "B", "C", "D"]
    assert gate.batches == [["a"], ["b", "c", "d"]]


async def test_batches_are_bounded():
    gate = Gate()
    gate.release.set()
    batcher = Batcher(gate, 2)
    assert await asyncio.gather(*(batcher(x) for x in "abcde")) == list("ABCDE")
    assert max(map(len, gate.batches)) == 2


async def test_a_bad_item_does_not_fail_its_neighbours():
    gate = Gate()
    gate.release.set()
    batcher = Batcher(gate, 8)
    results = await asyncio.gather(*(batcher(x) for x in ("a", "bad", "c")), return_exceptions=True)
    assert results[0] == "A"
    assert results[2] == "C"
    assert isinstance(results[1], ValueError)


async def test_a_cancelled_item_is_not_run():
    gate = Gate()
    batcher = Batcher(gate, 8)
    first = asyncio.create_task(batcher("a"))
    await asyncio.wait_for(gate.entered.wait(), 5)
    second = asyncio.create_task(batcher("b"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.release.set()
    assert await first == "A"
    assert gate.batches == [["a"]]


async def test_it_serves_again_after_an_error():
    gate = Gate()
    gate.release.set()
    batcher = Batcher(gate, 8)
    with pytest.raises(ValueError, match="bad item"):
        await batcher("bad")
    assert await batcher("a") == "A"
