"""The state of a learner as bytes: safetensors, so that reading it runs nobody's code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from operators.errors import Stop

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


def to_bytes(state: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """``state`` as safetensors; equal states give equal bytes."""
    data: bytes = safetensors.numpy.save({name: np.array(state[name], order="C") for name in sorted(state)})
    return data


def from_bytes(data: bytes) -> Arrays:
    """What ``to_bytes`` wrote. Raises ``Stop`` for anything else."""
    try:
        return dict(safetensors.numpy.load(data))
    except (safetensors.SafetensorError, ValueError) as error:
        raise Stop("learner", f"{len(data)} bytes that are no state ({error})", "give a checkpoint's file") from error
