"""``ruvllm`` with an engine that answers at once: what is left is everything but the model's own time.

Run as a program (``python -m tests.bench.mocked serve …``) it is the command line, with every engine of this process,
and of the Ray workers it starts, replaced. Only benchmarks do this.
"""

from __future__ import annotations

import functools
from typing import Any

PIECES = [" the", " lamp", " was", " lit", " in", " the", " winter", " of", " the", " year", " by", " a", " farmer"]
"""What it says, a piece a token."""


def install() -> None:
    """Replace the engines of this process. The judge's stays: it is in a process of its own."""
    from operators import generate
    from tests.scripted import Scripted

    class Mock(Scripted):
        """A word is a token: characters would overrun the windows that real tokenizers fill by words."""

        context_tokens = 2048

        def tokenize(self, text: str, *, special: bool = False) -> list[int]:
            return list(range(len(text.split())))

        def queue(self) -> int:
            return 0

    generate.make_engine = lambda *args, **window: Mock(PIECES)  # type: ignore[assignment, return-value, attr-defined]


def _also_in_workers() -> None:
    """Ray's own switch for what every worker of a job does first."""
    from pipeline import raylocal

    start = raylocal.start

    def with_hook(settings: Any) -> str:
        import ray

        ray.init = functools.partial(ray.init, runtime_env={"worker_process_setup_hook": "tests.bench.mocked.install"})
        return start(settings)

    raylocal.start = with_hook


if __name__ == "__main__":
    from pipeline.cli import main

    install()
    _also_in_workers()
    main()
