"""A service of one's own for an evaluation: started as a child process, asked over HTTP, watched through its log."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from conf.load import load
from conf.schema import Settings
from jobs.door import URL_FILE, ServiceDoor
from operators.documents import NAMESPACE
from operators.errors import Reject, Retry, Stop
from operators.records import Verdict, decode
from operators.stores.make import open_log
from operators.stores.ports import EventLog
from operators.stores.topics import JUDGEMENTS

WHO = "evaluate live"
READY_S, END_S, POLL_S = 300.0, 90.0, 0.2
TENANT = "default"
DOCUMENTS = 100
"""Documents of one request."""
Answer: TypeAlias = dict[str, Any]
"""A chat completion as the service gives it, with ``seconds``, how long it took."""
T = TypeVar("T")


class LiveService:
    """``ruvllm serve`` in ``data_dir`` with the settings ``sets`` (``KEY=VALUE`` each); a context manager.

    What it prints goes to ``service.log`` beside the stores. Raises ``Stop`` if it ends or is not ready in time.

    Args:
        patience_s: how long ``until`` waits while nothing changes.
    """

    def __init__(self, profile: str | None, sets: Sequence[str], data_dir: Path, patience_s: float = 300.0) -> None:
        self.sets = (*sets, f"data_dir={data_dir}")
        self.settings: Settings = load(profile, overrides=self.sets).settings
        self._profile, self._patience_s = profile, patience_s
        self._door = ServiceDoor(self.settings)

    def __enter__(self) -> LiveService:
        folder = self.settings.data_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / URL_FILE).unlink(missing_ok=True)  # the address of the one before
        words = [sys.executable, "-m", "pipeline.cli", "serve", "--json"]
        words += ["--profile", self._profile] if self._profile else []
        words += [word for item in self.sets for word in ("--set", item)]
        with (folder / "service.log").open("ab") as out:
            self._process = subprocess.Popen(words, stdout=out, stderr=out)  # noqa: S603 - our own module, no shell
        try:
            self.until(self._ready, lambda found: found, "a service that is ready", READY_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._door.close()
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its jobs end with it
            self._process.wait()

    def _ready(self) -> bool:
        with contextlib.suppress(Retry):
            return bool(self._door.get_json("/readyz")["status"] == "ok")
        return False

    def until(self, look: Callable[[], T], done: Callable[[T], bool], what: str, patience_s: float | None = None) -> T:
        """What ``look`` gives once that is ``done``. Raises ``Stop`` when it has not changed for ``patience_s``."""
        patience_s = self._patience_s if patience_s is None else patience_s
        found, changed = look(), time.monotonic()
        while not done(found):
            if self._process.poll() is not None:
                raise Stop(WHO, f"the service ended with {self._process.returncode}", f"see {self._log_path}")
            if time.monotonic() - changed > patience_s:
                remedy = f"see {self._log_path}; give a busy machine more --patience"
                raise Stop(WHO, f"no {what}: nothing new for {patience_s:g} s", remedy)
            time.sleep(POLL_S)
            now = look()
            if now != found:
                found, changed = now, time.monotonic()
        return found

    @property
    def _log_path(self) -> Path:
        return self.settings.data_dir / "service.log"

    # ------------------------------------------------------------------------------------------------- what it is asked

    def remember(self, facts: Sequence[str]) -> None:
        """Put ``facts`` into the memory, each a document."""
        for at in range(0, len(facts), DOCUMENTS):
            some = [{"text": fact, "source": f"fact-{at + i}"} for i, fact in enumerate(facts[at : at + DOCUMENTS])]
            self._door.post_json("/v1/documents", {"documents": some})

    def ask(self, question: str, tier: str, max_tokens: int, name: str) -> Answer:
        """One question at temperature 0, in a session of its own. ``tier``: its name, or ``auto``. ``name``: unique for
        this asking; what the router draws and what the learner holds out follow from it."""
        messages = [{"role": "user", "content": question}]
        body = {"model": tier, "messages": messages, "temperature": 0, "max_tokens": max_tokens, "tenant": TENANT}
        body |= {"session": name, "interaction_id": str(uuid.uuid5(NAMESPACE, name))}
        while True:
            began = time.perf_counter()
            try:
                said: Answer = self._door.post_json("/v1/admin/answer", body)
            except Retry as busy:
                if self._process.poll() is not None:
                    raise Stop(WHO, f"the service ended: {busy.got}", f"see {self._log_path}") from busy
                time.sleep(busy.retry_after_s)
                continue
            return {**said, "seconds": time.perf_counter() - began}

    def rate(self, answer: Answer, right: bool) -> None:
        """Say as a user whether ``answer`` was right."""
        about = answer["ruvllm"]
        body = {"interaction_id": about["interaction_id"], "session": about["session"], "score": float(right)}
        self._door.post_json("/v1/feedback", body)

    def router(self) -> dict[str, Any]:
        """The checkpoints and which of them act, as ``ruvllm router list`` has them."""
        found: dict[str, Any] = self._door.get_json("/v1/admin/router")
        return found

    def checkpoint(self, version: str) -> dict[str, Any]:
        """The manifest of one."""
        manifest: dict[str, Any] = self._door.get_json(f"/v1/admin/router/{version}")["manifest"]
        return manifest

    def let_decide(self, version: str, *, force: bool = False) -> None:
        """Promote ``version`` and wait until it decides."""
        if self.router()["rollout"]["active"] != version:
            body = {"version": version, "force": force, "reason": "to be evaluated"}
            self._door.post_json("/v1/admin/router/promote", body)
        ask = {"messages": [{"role": "user", "content": "Who decides?"}]}

        def decides() -> str:
            return str(self._door.post_json("/v1/route", ask)["route"]["checkpoint"])

        self.until(decides, lambda found: found == version, f"decision by {version}")

    # ---------------------------------------------------------------------------------------------- what its log holds

    @contextlib.contextmanager
    def log(self) -> Iterator[EventLog]:
        """Its event log, to be read."""
        with contextlib.closing(open_log(self.settings.events)) as log:
            yield log

    def verdicts(self, log: EventLog) -> dict[str, dict[str, Verdict]]:
        """Interaction → by whom (``model``, ``user``) → the verdict."""
        found: dict[str, dict[str, Verdict]] = {}
        for partition in range(log.topics()[JUDGEMENTS]):
            at = 0
            while events := log.read(JUDGEMENTS, partition, at, 1000):
                at = events[-1].offset + 1
                for verdict in (decode(Verdict, event.value) for event in events):
                    found.setdefault(verdict.interaction_id, {})[verdict.by] = verdict
        return found

    def unlearned(self, log: EventLog, group: str) -> list[int]:
        """For each partition of judgements: how many ``group`` has not dealt with."""
        topics = range(log.topics()[JUDGEMENTS])
        return [log.end(JUDGEMENTS, one) - log.committed(group, JUDGEMENTS, one) for one in topics]


def new_folder(path: Path | None, scratch: Path) -> Path:
    """``path``, or a folder in ``scratch``. Raises ``Reject`` if something is in it: the memory must be the facts'."""
    if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise Reject(WHO, f"{path} is not an empty folder", "name a new one as --data-dir")
    return scratch / "data" if path is None else path.absolute()
