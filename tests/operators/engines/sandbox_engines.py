"""A process that runs both llama.cpp engines in its sandbox: ``python sandbox_engines.py MODEL SCRATCH [locked]``.

``MODEL`` is a ``ModelFile`` as JSON. With ``locked``, the sandbox is entered before anything is loaded, too. The last
line it prints is JSON: the texts before and after the last ``enter``, the scores, and what was in force.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from operators.engines.child import sandbox
from operators.engines.files.models import open_model
from operators.engines.make import make_here
from operators.engines.ports import Engine, Generation
from operators.tiers import ModelFile

PROMPT = "The capital of the sea is in a"


async def text(engine: Engine, prompt: str = PROMPT) -> str:
    tokens = (*engine.bos(), *engine.tokenize(prompt))
    wanted = Generation(prompt=tokens, max_tokens=24, temperature=0.0, top_p=1.0)
    return "".join([piece.text async for piece in engine.generate(wanted)])


def refused(act: Any) -> str:
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def in_all_threads(scratch: Path) -> dict[str, str]:
    """What a new thread may: native threads were made by the engines."""
    found: dict[str, str] = {}

    def run() -> None:
        found["socket"] = refused(socket.socket)
        found["write"] = refused(lambda: (scratch / "new").write_text("new"))
        found["read"] = refused(lambda: Path("/etc/passwd").read_text())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


async def main() -> None:
    model, scratch, locked = ModelFile(**json.loads(sys.argv[1])), Path(sys.argv[2]), "locked" in sys.argv
    said: dict[str, Any] = {"entered": []}
    if locked:
        entered = sandbox.enter(readable=[Path(model.path)], writable=scratch, listen=True, memory_bytes=4 << 30)
        said["entered"].append(dataclasses.asdict(entered))
    with open_model(model, scratch) as opened:
        engines = [
            make_here(kind, opened, scratch, context_tokens=256, threads=2, parallel=2)
            for kind in ("llama_cpp", "llama_server")
        ]
        for engine in engines:
            await engine.start()
    said["before"] = [await text(engine) for engine in engines]
    threads = len(list(Path("/proc/self/task").iterdir()))
    said["entered"].append(dataclasses.asdict(sandbox.enter(memory_bytes=4 << 30)))
    said["after"] = [await text(engine) for engine in engines]
    said["other"] = [len(await text(engine, "Once upon a time the")) for engine in engines]
    said["scores"] = [(await engine.score([1, 5, 6], ["a", "b"])).tolist() for engine in engines]
    said |= {"threads": threads, "refused": in_all_threads(scratch)}
    for engine in engines:
        await engine.check()
        await engine.close()
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
