"""Errors for the log: a vendor's exception may quote the text that it could not take."""

from __future__ import annotations

import traceback

from operators.privacy.mask import mask
from operators.privacy.masker import FAILED


def masked_traceback(error: BaseException) -> str:
    """The traceback of ``error``, with all that led to it, masked; without its words if they can't be masked."""
    try:
        return mask("".join(traceback.format_exception(error))).text
    except Exception:
        return f"{type(error).__name__}: {FAILED}"
