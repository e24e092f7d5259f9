"""Says when a stream of losses has risen for good: ADWIN (Bifet and Gavaldà 2007), as river has it.

Why ADWIN: measured on losses around 0.2 (coins, and beta with 12 pseudo-counts), 20 streams of 10,000 values before
the change, it raised no false alarm with river's own settings and saw a rise of 0.1 after 127 (beta) to 367 (coins).
Page-Hinkley at its default threshold needed 351 to 507; at a threshold quick enough for one kind of loss (10) it raised
13 false alarms a stream on the other. ADWIN reads the noise off the stream, so nothing need be set.

river's detector can be taken out only by pickle. So what is kept is the values it has seen since it last began, and a
restart feeds them to a new one, which is then in exactly the same state. A stream that never changes would make them
many, so at ``window`` values the older half is let go and the detector begins anew with the rest, restart or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from operators.errors import Skip, Stop

Array: TypeAlias = npt.NDArray[Any]

WHO = "drift"


class Drift:
    """Watches a stream of losses, best in [0, 1] for ADWIN's bound.

    Args:
        delta: how likely a false alarm may be at each look, by ADWIN's bound.
        window: values kept at most. With less than 512 the bound is too wide to see a rise of 0.15.
    """

    def __init__(self, delta: float = 0.002, window: int = 4096) -> None:
        if not 0 < delta < 1 or window < 512:
            raise Stop(WHO, f"delta {delta}, window {window}", "give a delta in (0, 1), a window of at least 512")
        self.delta = delta
        self.window = window
        self._begin()

    def update(self, value: float) -> bool:
        """Whether, with this value, the loss is seen to have risen. A fall is learning, not drift: it begins anew, too.

        Raises ``Skip``, leaving everything as it was, if ``value`` is not finite.
        """
        if not math.isfinite(value):
            raise Skip(WHO, f"a loss of {value}", "leave it out")
        if self._rose(float(value)):
            return True
        if len(self._values) < self.window:
            return False
        newer = self._values[self.window // 2 :]
        self._begin()
        return sum(self._rose(some) for some in newer) > 0  # not any(): every value is fed

    def state(self) -> dict[str, Array]:
        """``values`` float64[n] and the two settings; a copy."""
        return {
            "values": np.array(self._values, np.float64),
            "settings": np.array([self.delta, self.window], np.float64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Array], delta: float = 0.002, window: int = 4096) -> Drift:
        """The detector as it was. Raises ``Stop`` for other settings, or anything that ``state`` did not give."""
        made = cls(delta, window)
        remedy = "use the settings it was made with, or start a new detector"
        if odd := sorted(state.keys() ^ made.state().keys()):
            raise Stop(WHO, f"a state that lacks or adds {odd}", remedy)
        if not np.array_equal(state["settings"], made.state()["settings"]):
            raise Stop(WHO, f"a state with settings {state['settings']}, expected {made.state()['settings']}", remedy)
        values = state["values"]
        if values.dtype != np.float64 or values.ndim != 1 or len(values) >= window or not np.isfinite(values).all():
            raise Stop(WHO, f"values {values.dtype}{list(values.shape)} that can't be", remedy)
        if sum(made._rose(value) for value in values.tolist()) or len(made._values) != len(values):
            raise Stop(WHO, "values in which there is a change", remedy)
        return made

    def _begin(self) -> None:
        """A new detector that has seen nothing."""
        from river.drift import ADWIN

        self._detector: Any = ADWIN(delta=self.delta)
        self._values: list[float] = []

    def _rose(self, value: float) -> bool:
        """Feed one value. Begins anew after a change; only a rise is told."""
        before = float(self._detector.estimation)
        self._detector.update(value)
        self._values.append(value)
        if not self._detector.drift_detected:
            return False
        rose = float(self._detector.estimation) > before  # by now ADWIN has let go of the older part
        self._begin()
        return rose
