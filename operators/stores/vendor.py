"""What the embedded stores' errors mean for us. Both report trouble as text, so text is what there is to go by."""

from __future__ import annotations

from operators.errors import Retry, Stop

_FATAL = (
    "no space left",
    "quota exceeded",
    "permission denied",
    "read-only file system",
    "not a directory",
    "file exists",
)


def translate(who: str, error: Exception, path: object) -> Retry | Stop:
    """``Stop`` for a place that can't be used or a full disk, ``Retry`` for all else that storage may report."""
    text = str(error)
    if any(words in text.lower() for words in _FATAL):
        return Stop(who, f"{path} can't be used: {text}", "free space there, or give a place it may write")
    return Retry(who, f"{path} failed: {text}", "try again; if it stays, restart the process that owns the memory")
