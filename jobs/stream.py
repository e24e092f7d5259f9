"""Stream mode: requests from a topic are answered by the service, the responses go to another topic.

    ruvllm.requests.v1 ─ Request ─► the service's door: the same graph as over HTTP ─ Response ─► ruvllm.responses.v1

Every partition is worked on by itself, one request after the other, so the requests of one session (one key, one
partition) are answered in their order. While the service is away or full they wait (``Retry``): lag, never loss. What
it refuses gets a response that says why, and so does what is past its deadline or fails again and again. What is no
``Request`` becomes a dead letter, for nobody knows whom to answer.

Ids follow from the request's, so after a crash a request may be answered again, under the same ids: who reads the
responses drops repeats. The tenant is taken from the event: whoever may write to the topic may ask for any tenant.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conf.schema import Settings
from conf.stream import StreamJob
from jobs.consumer import Consumer, Out, Seen, read_record, wait
from jobs.door import ServiceDoor
from jobs.process import main
from operators.documents import NAMESPACE
from operators.errors import Reject, Retry, Stop
from operators.records import Citation, Decision, Refusal, Request, Response, encode
from operators.stores.make import open_log
from operators.stores.ports import Event, EventLog
from operators.stores.topics import REQUESTS, RESPONSES, event_headers, session_key

SOURCE = "/ruvllm/stream"
ANSWER = "/v1/admin/answer"
PATIENCE_S = 30.0
"""How much longer than the service gives a request we wait to hear of it."""


class Answerer:
    """Handles requests, several at a time; ``handle`` is for a ``Consumer``.

    Args:
        ask: asks the service, and raises ``Retry``, ``Reject`` or ``Stop``; called on ``config.concurrent`` threads at
            most, so the rest waits here and in the log.
        timeout_s: how long the service works on a request before it gives up.
    """

    def __init__(
        self,
        ask: Callable[[Any], Any],
        config: StreamJob,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._config, self._timeout_s = ask, config, timeout_s
        self._clock, self._monotonic = clock, monotonic
        self._pool = ThreadPoolExecutor(config.concurrent, thread_name_prefix="ask")
        self._seen = Seen()
        self._failures: Counter[str] = Counter()

    async def handle(self, event: Event) -> Sequence[Out]:
        """The response to the request in ``event``."""
        request = read_record(Request, event)
        ours = interaction_id(request)
        if ours in self._seen:
            return []
        response = await self._response(request, ours)
        self._seen.add(ours)  # only now: after a Retry the same event comes again
        del self._failures[ours]
        headers = event_headers(
            response.event_id, RESPONSES, SOURCE, self._clock(), event.headers.get("traceparent", "")
        )
        headers |= {"src.topic": event.topic, "src.partition": str(event.partition), "src.offset": str(event.offset)}
        key = session_key(response.tenant, response.session)
        return [Out(topic=RESPONSES, key=key, value=encode(response), headers=headers)]

    def close(self) -> None:
        """End the threads, after what they are at."""
        self._pool.shutdown()

    async def _response(self, request: Request, ours: str) -> Response:
        make = functools.partial(
            Response,
            event_id=str(uuid.uuid5(NAMESPACE, f"response {ours}")),
            request_id=request.event_id,
            interaction_id=ours,
            tenant=request.tenant,
            session=request.session or ours,
        )
        refused: Refusal | None = None
        if request.deadline is not None and self._clock() > request.deadline:
            late = f"its deadline passed {self._clock() - request.deadline:.1f} s before it was its turn"
            refused = Refusal(kind="Reject", message=late, remedy="give it more time", param="deadline")
        else:
            try:
                said = await self._asked(body_of(request, ours), ours)
            except Reject as error:
                refused = Refusal(
                    kind="Reject", message=error.got, remedy=error.remedy, param=_field(error.param or "")
                )
            except _GivenUp as error:
                why = error.why
                refused = Refusal(
                    kind="Retry" if isinstance(why, Retry) else "Stop", message=why.got, remedy=why.remedy
                )
        if refused is not None:
            return make(created_at=self._clock(), error=refused)
        return make(created_at=self._clock(), **answer_of(said))

    async def _asked(self, body: dict[str, Any], ours: str) -> Any:
        """What the service answers. Raises ``Reject`` for what is the request's fault, ``_GivenUp`` after too many
        failures, and ``Stop`` for what is ours."""
        loop = asyncio.get_running_loop()
        began = 0.0

        def ask() -> Any:
            nonlocal began
            began = self._monotonic()
            return self._ask(body)

        try:
            return await loop.run_in_executor(self._pool, ask)
        except Retry as error:
            if self._monotonic() - began < self._timeout_s:
                raise  # it is away or full, whatever the request
            self._failed(ours, error)
            raise
        except Reject as error:
            if error.status in (401, 403, 405) or (error.status == 404 and error.code != "model_not_found"):
                raise Stop("stream", str(error), "use service and job of one version and data_dir") from error
            raise
        except Stop as error:
            if not error.who.startswith("service ("):  # no answer of the service: there is none, or no key
                raise
            self._failed(ours, error)
            raise Retry(error.who, error.got, error.remedy) from error

    def _failed(self, ours: str, error: Retry | Stop) -> None:
        self._failures[ours] += 1
        if self._failures[ours] >= self._config.attempts:
            raise _GivenUp(error) from error


class _GivenUp(Exception):
    """A request failed too often."""

    def __init__(self, why: Retry | Stop) -> None:
        super().__init__(why)
        self.why = why


def interaction_id(request: Request) -> str:
    """The id of the interaction that ``request`` becomes, the same whenever it is asked."""
    return str(uuid.uuid5(NAMESPACE, f"request {request.tenant} {request.event_id}"))


def body_of(request: Request, ours: str) -> dict[str, Any]:
    """What the service is asked."""
    sampling = request.sampling
    last = [{"role": "user", "content": request.text}] if request.text else []
    return {
        "tenant": request.tenant,
        "session": request.session or ours,
        "interaction_id": ours,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages] + last,
        "model": sampling.tier or "auto",
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "user": request.user or None,
        "ruvllm": {"k": request.k, "mode": request.mode, "quality_bias": request.quality_bias},
    }


def answer_of(said: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ``Response`` from a chat completion."""
    choice, usage, ours = said["choices"][0], said["usage"], said["ruvllm"]
    return {
        "answer": choice["message"]["content"],
        "finish_reason": choice["finish_reason"],
        "tier": said["model"],
        "route": Decision(**{name: ours["route"][name] for name in Decision.__dataclass_fields__}),
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "cached_tokens": usage["prompt_tokens_details"].get("cached_tokens", 0),
        "citations": tuple(Citation(**each) for each in ours["citations"]),
        "degraded": tuple(ours["degraded"]),
    }


def _field(param: str) -> str:
    """The field of a ``Request`` that the service's field ``param`` comes from."""
    return {"model": "sampling.tier"}.get(param, param.removeprefix("ruvllm."))


async def stream(
    log: EventLog,
    answerer: Answerer,
    stop: asyncio.Event,
    *,
    idle_s: float = 0.2,
    before_commit: Callable[[], None] = lambda: None,
) -> list[Consumer]:
    """Answer until ``stop`` is set; returns the partitions' consumers, for their counts. ``log`` is open."""
    partitions = await _partitions(log, stop)
    consumers = [
        # One request a step: an answer takes far longer than a commit, and a crash should cost one answer, not a batch.
        Consumer(
            log,
            REQUESTS,
            "stream",
            answerer.handle,
            partitions=[partition],
            batch=1,
            idle_s=idle_s,
            before_commit=before_commit,
        )
        for partition in range(partitions)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            for consumer in consumers:
                group.create_task(consumer.run(stop))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return consumers


async def _partitions(log: EventLog, stop: asyncio.Event) -> int:
    """How many there are; 0 when stopped before the log could say it."""
    while not stop.is_set():
        try:
            return (await asyncio.to_thread(log.topics))[REQUESTS]
        except Retry as error:
            await wait(stop, error.retry_after_s)
        except KeyError:
            raise Stop("stream", f"no topic {REQUESTS}", "create the topics before the job starts") from None
    return 0


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """The job of a profile, until ``stop``."""
    config, timeout_s = settings.stream, settings.http.request_timeout_s
    door = ServiceDoor(settings, timeout_s=timeout_s + PATIENCE_S)
    with contextlib.closing(open_log(settings.events)) as log, contextlib.closing(door):
        ask = functools.partial(door.post_json, ANSWER)
        with contextlib.closing(Answerer(ask, config, timeout_s)) as answerer:
            await stream(log, answerer, stop, idle_s=config.poll_s)


if __name__ == "__main__":
    main("stream", serve)
