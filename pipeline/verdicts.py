"""Follows the judgements, so that the router knows how a session's last turn was rated.

Every gateway looks for itself, from the topic's end at its start on: what a session does not know any more teaches
nobody. A verdict that comes when the next turn has begun is too late, and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from operators.errors import RuvError
from operators.records import Verdict, decode
from operators.stores.ports import EventLog
from operators.stores.topics import JUDGEMENTS
from pipeline.sessions import Sessions

MOST = 256
"""Verdicts of one partition that are read at once."""
_log = logging.getLogger("ruvllm.sessions")


class Verdicts:
    """Tells ``sessions`` of the verdicts that are written to ``log`` from now on."""

    def __init__(self, log: EventLog, sessions: Sessions) -> None:
        self._log, self._sessions = log, sessions
        self._positions: dict[int, int] = {}

    async def run(self, poll_s: float) -> None:
        """Look every ``poll_s`` seconds until cancelled; never, if that is 0. While the log is away nothing is told."""
        while poll_s:
            try:
                for verdict in await asyncio.to_thread(self.read):
                    self.tell(verdict)
            except RuvError as error:
                _log.debug("verdicts: %s", error)
            except Exception:  # a follower that ends would tell nothing ever again
                _log.exception("verdicts: could not read them")
            await asyncio.sleep(poll_s)

    def read(self) -> Sequence[Verdict]:
        """The verdicts since the last look; none at the first. Blocks."""
        if not self._positions:
            partitions = range(self._log.topics()[JUDGEMENTS])
            self._positions = {partition: self._log.end(JUDGEMENTS, partition) for partition in partitions}
        found = []
        for partition, position in self._positions.items():
            for event in self._log.read(JUDGEMENTS, partition, position, MOST):
                self._positions[partition] = event.offset + 1
                try:
                    found.append(decode(Verdict, event.value))
                except (RuvError, ValueError):
                    continue  # its readers put it aside
        return found

    def tell(self, verdict: Verdict) -> None:
        """On the event loop that the sessions belong to."""
        if verdict.status == "judged" and verdict.score is not None:
            self._sessions.judged(verdict.tenant, verdict.session, verdict.interaction_id, verdict.score)
