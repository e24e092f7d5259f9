"""vLLM's own server as a child of ours: which files it may read, how it is called, and why it didn't start.

vLLM is imported nowhere in this project: it pins its own torch, so it lives in an environment of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from operators.engines.files.models import resolve
from operators.engines.native import spare_threads
from operators.engines.vllm.config import VllmConfig
from operators.engines.vllm.leash import Leashed
from operators.errors import Stop
from operators.tiers import ModelFile

SUMS = "SHA256SUMS"
"""A model's file of that name stands for its whole directory: each of its lines is a checksum and a file beside it."""
ERROR = re.compile(
    r"\b((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt): .+|.*\berror: .+|.*No module named .+)"
)
"""What a line of a Python traceback, or of a wrong option, ends in."""


def directory(model: ModelFile, cache_dir: Path) -> Path:
    """Where the model's files are, checked. Raises ``Stop`` if one is missing, differs, or is not in ``SHA256SUMS``.

    A profile names one file of the directory with its checksum: the weights, or better a ``SHA256SUMS`` that covers all
    of them.
    """
    path = resolve(model, cache_dir)
    who, home = f"model {model.id}", path.parent
    if path.name == SUMS:
        listed = dict(line.split(maxsplit=1)[::-1] for line in path.read_text().splitlines() if line.strip())
        sums = {name.lstrip("*"): digest for name, digest in listed.items()}
        for name, digest in sums.items():
            if Path(name).name != name:
                raise Stop(who, f"{SUMS} names {name!r}", "list only files of its own directory")
            resolve(ModelFile(id=model.id, path=str(home / name), sha256=digest), cache_dir)
        loose = [p.name for p in home.iterdir() if p.suffix in (".safetensors", ".json") and p.name not in sums]
        if loose:
            raise Stop(who, f"{sorted(loose)} are not in {SUMS}", "list them, or remove them")
    if not (home / "config.json").is_file():
        raise Stop(
            who, f"no config.json beside {path}", "vLLM needs the model's directory, as safetensors with its JSON"
        )
    return home


def command(config: VllmConfig, home: Path, name: str, context_tokens: int, parallel: int, socket: Path) -> list[str]:
    """How the server is called. Nothing of the model is run as code, and no pickle is read."""
    return [
        *(config.python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(home), "--served-model-name", name, "--uds", str(socket)),
        *("--max-model-len", str(context_tokens), "--max-num-seqs", str(parallel)),
        *("--enable-prefix-caching", "--enable-prompt-tokens-details", "--load-format", "safetensors"),
        # The model's own defaults for sampling are not used, and log-probabilities are those before temperature.
        *("--generation-config", "vllm", "--logprobs-mode", "raw_logprobs", "--disable-uvicorn-access-log"),
        *(("--enable-sleep-mode",) if config.sleep else ()),
        *(("--kv-cache-memory-bytes", str(config.kv_bytes)) if config.kv_bytes else ()),
        *config.extra_args,
    ]


def environment(config: VllmConfig, threads: int, ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Our environment without our settings, which hold secrets, and without our Python's; nothing is reported home."""
    kept = {k: v for k, v in ours.items() if not k.startswith(("RUVLLM_", "PYTHON", "VIRTUAL_ENV", "VLLM_API_KEY"))}
    return kept | {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_SERVER_DEV_MODE": str(int(config.sleep)),  # /sleep and /wake_up; nobody but us reaches the socket
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads that are bound collapse beside other busy processes
        "OMP_NUM_THREADS": str(spare_threads(threads)),
    }


class Launched:
    """A server that we started, on a Unix socket in a directory that only this user may enter."""

    def __init__(self, who: str, call: Callable[[Path], list[str]], env: Mapping[str, str]) -> None:
        self._who = who
        self._private = Path(tempfile.mkdtemp(prefix="ruvllm-"))
        self.socket = self._private / "vllm.sock"
        self.child = Leashed(call(self.socket), env)

    def ended(self) -> str:
        """Why it has ended; empty while it runs."""
        return "" if self.child.running else f"vLLM's server ended: {reason(self.child.lines)}"

    def end(self) -> None:
        """End it and remove its directory. Blocks for seconds; safe to call twice."""
        self.child.end()
        shutil.rmtree(self._private, ignore_errors=True)


def reason(lines: Sequence[str]) -> str:
    """Why it ended: the first and the last error it printed, or its last lines if none looks like one."""
    lines = [line for line in lines if " WARNING " not in line and " INFO " not in line]
    found = []
    for at, line in enumerate(lines):
        if match := ERROR.search(line):
            more = lines[at + 1 : at + 2] if "validation error" in line else []  # pydantic says what below
            found.append(" ".join(part.partition(" [type=")[0].strip()[:300] for part in (match[1], *more)))
    # The first is the cause: what follows it says that something else could not be done then.
    told = list(dict.fromkeys([found[0], found[-1]])) if found else list(lines[-4:])
    return "; ".join(told)[-1500:] or "it said nothing"
