"""Every error says who met it, what they got, and what to do about it.

    RuvError
    ├── Retry    the same call may succeed later              → 503 (429: ours is full) + Retry-After
    ├── Reject   the caller's fault, trying again is useless  → 4xx
    ├── Skip     this event is bad, the stream goes on        → dead letter
    └── Stop     the process can't go on as configured        → start-up fails, or the replica ends

A class is an instruction to whoever catches it, so there are four and no finer tree: the words carry the rest.
All fields go through ``Exception.__init__``; without that an error raised in a Ray worker fails to unpickle.
"""

from __future__ import annotations


class RuvError(Exception):
    """Base of all errors raised on purpose.

    Args:
        who: the part that met the problem, e.g. ``"route"`` or ``"conf/local.yaml"``.
        got: what happened, with the offending value.
        remedy: what the reader can do about it.
    """

    def __init__(self, who: str, got: str, remedy: str, *rest: object) -> None:
        super().__init__(who, got, remedy, *rest)
        self.who = who
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.who}: {self.got}; {self.remedy}"


def happened(error: Exception) -> str:
    """What went wrong, without the remedy: for an error that names its own."""
    return f"{error.who}: {error.got}" if isinstance(error, RuvError) else f"{type(error).__name__}: {error}"


class Retry(RuvError):
    """The same call may succeed later.

    Args:
        retry_after_s: seconds until it is worth trying again.
        status: HTTP status to answer with: 503 (something is away) or 429 (we are full).
    """

    def __init__(self, who: str, got: str, remedy: str, retry_after_s: float = 1.0, status: int = 503) -> None:
        super().__init__(who, got, remedy, retry_after_s, status)
        self.retry_after_s = retry_after_s
        self.status = status


class Reject(RuvError):
    """The caller's fault: the same input will never succeed.

    Args:
        status: HTTP status, 400 to 499.
        param: name of the offending request field, if there is one.
        code: a short machine-readable word, e.g. ``"model_not_found"``.
    """

    def __init__(
        self,
        who: str,
        got: str,
        remedy: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(who, got, remedy, status, param, code)
        self.status = status
        self.param = param
        self.code = code


class Skip(RuvError):
    """This event can't be used; put it aside as a dead letter and go on with the next."""


class Stop(RuvError):
    """This process can't go on: bad configuration, missing or corrupt weights, a full disk."""
