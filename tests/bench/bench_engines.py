"""Tokens per second and time to the first token at 1, 2, 4 and 8 requests at once, beside the bare libraries and
llama-cpp-python's own server: same GGUF, same prompts, same threads, in turns.

At one request also the share of the memory's bandwidth that writing a token reaches: bytes of weights × tokens per
second ÷ bytes per second of a loop measured in this run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from operators.engines.files.models import resolve
from operators.engines.make import make_engine
from tests.bench import roofline
from tests.bench.engine_kit import Told, arguments, interval, shown, story, watched
from tests.bench.engine_peers import BareLlamaCpp, BareServer, OverHttp, Port, Way, llama_cpp_server, service
from tests.operators.engines.weights import SMOLLM2

LEVELS = (1, 2, 4, 8)
"""The first is 1."""
WINDOW = 512
HTTP, PORT, XLLAMA, LLAMA, SERVER = "ours over HTTP", "our engine", "xllamacpp", "llama-cpp-python", "llama_cpp.server"
BARE = {LLAMA: LLAMA, SERVER: LLAMA}
"""Whose greedy text a way must have, if not xllamacpp's: two builds of llama.cpp round differently."""
AIMS = (((HTTP, XLLAMA), 1, 0.97), ((PORT, XLLAMA), 1, 0.97), ((HTTP, LLAMA), 1, 0.97), ((HTTP, SERVER), 8, 1.8))
"""(Who, against whom), at how many requests, at least what ratio of tokens per second."""


@contextlib.asynccontextmanager
async def ways(root: Path, threads: int) -> AsyncIterator[dict[str, Way]]:
    """All ways, loaded and asked once; they read the same prompt, token for token."""
    most = max(LEVELS)
    path = resolve(SMOLLM2, root)
    sizes: dict[str, Any] = {"context_tokens": WINDOW, "threads": threads}
    engine = make_engine("llama_server", SMOLLM2, root, parallel=most, states_bytes=512 << 20, **sizes)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(600)))
        running = await asyncio.to_thread(stack.enter_context, service(root, parallel=most, **sizes))
        url = await asyncio.to_thread(stack.enter_context, llama_cpp_server(path, **sizes))
        await engine.start()
        stack.push_async_callback(engine.close)
        llama, server = BareLlamaCpp(path, engine, **sizes), BareServer(path, engine, parallel=most, **sizes)
        stack.callback(server.close)
        stack.callback(llama.close)
        theirs = OverHttp(client, url, "any", usage=False, repeat_penalty=1.0)  # 1.1 if not told
        made: dict[str, Way] = {
            HTTP: OverHttp(client, running.url, "135M", usage=True),
            PORT: Port(engine),
            XLLAMA: server,
            LLAMA: llama,
            SERVER: theirs,
        }
        read = {name: (await way.volley([story(0)], 4))[0].prompt_tokens for name, way in made.items()}
        read[SERVER] = (await theirs.usage(story(0)))["prompt_tokens"]
        assert len(set(read.values())) == 1, f"they don't read the same prompt: {read}"
        yield made


async def measure(report: dict[str, Any], rounds: int, tokens: int, threads: int, levels: tuple[int, ...]) -> None:
    """Every round asks every way once at every level, in another order each time."""
    told: dict[tuple[str, int], list[list[Told]]] = {}
    numbers = itertools.count(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        memory, looks = roofline.Memory(threads), list[float]()
        report["weight_bytes"] = roofline.weight_bytes(resolve(SMOLLM2, root))
        async with ways(root, threads) as made:
            with watched(report):
                for turn in range(rounds + 1):
                    looks.append(memory.look())
                    for level in levels:
                        questions = [story(next(numbers)) for _ in range(level)]
                        first = turn % len(made)
                        for name in [*made][first:] + [*made][:first]:
                            told.setdefault((name, level), []).append(await made[name].volley(questions, tokens))
            for volleys in told.values():
                volleys.pop(0)  # the first round warms up
            same = _agreement(told, made[PORT], levels[0])
    report["same_text"], report["bandwidth"] = same, memory.told()
    for level in levels:
        speeds = {name: np.array([_speed(volley) for volley in told[name, level]]) for name in made}
        report[f"c={level}"] = {
            name: {
                "tokens_per_s": interval(speeds[name]),
                "first_ms": interval([1e3 * one.first_s for volley in told[name, level] for one in volley]),
                "ratio": {other: interval(speeds[name] / speeds[other]) for other in made if other != name},
                "tokens": sum(one.tokens for volley in told[name, level] for one in volley),
            }
            for name in made
        }
    report["roofline"] = {
        name: interval(report["weight_bytes"] * np.array([_writing(v[0]) for v in told[name, 1]]) / np.array(looks[1:]))
        for name in made
    }


def _speed(volley: list[Told]) -> float:
    return sum(one.tokens for one in volley) / max(one.end_s for one in volley)


def _agreement(told: dict[tuple[str, int], list[list[Told]]], port: Way, level: int) -> dict[str, float]:
    """Way → share of the greedy answers that are those of its bare library; also checks what everybody counts."""
    assert isinstance(port, Port)
    for volleys in told.values():
        for one in itertools.chain(*volleys):
            words = len(port.engine.tokenize(one.text))
            assert abs(words - one.tokens) <= 3, f"{one.tokens} tokens are said to be {words} tokens of text: {one}"
    found = {}
    for name in dict.fromkeys(name for name, _ in told):
        mine, bare = (list(itertools.chain(*told[who, level])) for who in (name, BARE.get(name, XLLAMA)))
        assert all(a.prompt_tokens in (0, b.prompt_tokens) for a, b in zip(mine, bare, strict=True)), "other prompts"
        same = [a.text.strip() == b.text.strip() for a, b in zip(mine, bare, strict=True)]
        found[name] = float(np.mean(same))
    return found


def _writing(one: Told) -> float:
    """Tokens per second after the first: reading the prompt is another kind of work."""
    return (one.tokens - 1) / (one.end_s - one.first_s)


def show(report: dict[str, Any]) -> None:
    """The tables."""
    print("\ntokens per second, median of the rounds (time to the first token in ms, median of the requests)")
    levels = [key for key in report if key.startswith("c=")]
    print(f"{'':18}" + "".join(f"{level:>20}" for level in levels) + f"{'same text':>12}")
    for name in report[levels[0]]:
        cells = [(report[level][name]["tokens_per_s"], report[level][name]["first_ms"]) for level in levels]
        texts = [f"{speed['median']:.1f} ({first['median']:.0f})" for speed, first in cells]
        print(f"{name:18}" + "".join(f"{text:>20}" for text in texts) + f"{report['same_text'][name]:>12.0%}")
    for (who, whom), level, least in AIMS:
        if (key := f"c={level}") in report:
            found = report[key][who]["ratio"][whom]
            verdict = "reached" if found["median"] >= least else "MISSED"
            print(f"at {level}: {who} against {whom} {shown(found, 3)}, aim {least}: {verdict}")
    speed = report["bandwidth"]
    note = "" if speed["valid"] else " NOT VALID: its time does not follow its work"
    print(
        f"memory is read at {speed['bytes_per_s'] / 1e9:.1f} GB/s ({speed['loop']}; twice the bytes took "
        f"{speed['doubled']:.2f} times as long{note}); a token reads {report['weight_bytes'] / 1e6:.1f} MB of weights"
    )
    for name, share in report["roofline"].items():
        print(f"    {name}: {shown(share)} of what that allows, at one request")


def main() -> None:
    """Print the tables and, as the last line, JSON."""
    asked = arguments(__doc__, rounds=12, tokens=64, threads=1)
    report: dict[str, Any] = {}
    rounds, tokens, levels = (2, 16, (1, 8)) if asked.quick else (asked.rounds, asked.tokens, LEVELS)
    asyncio.run(measure(report, rounds, tokens, asked.threads, levels))
    show(report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
