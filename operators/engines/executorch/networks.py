"""The router and the attention network in ExecuTorch, in the places where numpy runs them otherwise."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.engines.executorch.files import REMEDY, fingerprint, load
from operators.engines.executorch.runtime import Program
from operators.errors import Stop
from operators.networks.acting import Active
from operators.networks.attention import LOOSE, AttentionWeights, Floats
from operators.networks.fastgrnn import CONTEXT_TOKENS, Outputs, Snapshot, Vector
from operators.networks.features import TIERS
from operators.tiers import ModelFile

_log = logging.getLogger("ruvllm.executorch")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ExecutorchSnapshot(Snapshot):
    """Weights whose single steps ``program`` runs. Many steps at once, as explanations take them, numpy runs."""

    program: Program = dataclasses.field(kw_only=True)

    def forward(self, x: Vector, h: Vector) -> Outputs:
        """One step, as ``Snapshot.forward``."""
        if x.ndim > 1:
            return Snapshot.forward(self, x, h)
        out = self.program.forward(x[None], h[None])[0][0]
        end = TIERS + len(CONTEXT_TOKENS)
        return Outputs(out[:TIERS], out[TIERS:end], out[end], out[end + 1], out[end + 2], out[end + 3 :])


class RouterProgram:
    """An exported router. It runs the weights it was made from, whatever they are called; others stay with numpy."""

    def __init__(self, model: ModelFile, cache_dir: Path) -> None:
        """Raises ``Stop`` if the program is missing, damaged or of another version."""
        self._program, manifest = load(model, "router", cache_dir)
        self._weights = manifest.weights
        self._who = f"model {model.id}"
        self._told = ""

    def serve(self, active: Active) -> Active:
        """``active`` with the program in every place where its weights act."""
        now = {name: self._one(getattr(active, name)) for name in ("snapshot", "shadow", "canary")}
        return dataclasses.replace(active, **now)  # type: ignore[arg-type]

    def tell(self, active: Active) -> None:
        """Say in the log, once of each, that other weights than the program's decide."""
        name = active.snapshot.checkpoint
        if not isinstance(active.snapshot, ExecutorchSnapshot) and name != self._told:
            self._told = name
            _log.warning("%s was not made from %s, so numpy routes; %s", self._who, name, REMEDY)

    def _one(self, snapshot: Snapshot | None) -> Snapshot | None:
        if snapshot is None or fingerprint(snapshot.params) != self._weights:
            return snapshot
        s = snapshot
        return ExecutorchSnapshot(s.params, s.checkpoint, s.exemplars, s.learned, program=self._program)


class AttentionProgram:
    """An exported attention network. Raises ``Stop`` if it is missing, damaged, or not made from ``weights``."""

    def __init__(self, model: ModelFile, cache_dir: Path, weights: AttentionWeights) -> None:
        self._who = f"model {model.id}"
        self._program, manifest = load(model, "attention", cache_dir)
        self._most = int(manifest.facts["max_nodes"])
        if manifest.weights != fingerprint(weights.arrays()):
            raise Stop(self._who, f"it was made from other weights: {manifest.source}", REMEDY)

    def attend(
        self,
        weights: AttentionWeights,
        query: Floats,
        nodes: Floats,
        relation: npt.NDArray[np.integer[Any]],
        weight: Floats,
        hop: npt.NDArray[np.integer[Any]],
    ) -> Floats:
        """As ``attention.attend``. Raises ``Stop`` for more nodes than it was exported for."""
        n = len(nodes)
        if n == 1:  # the export takes two or more, and one gets all the attention
            return np.ones((weights.layers, weights.heads, 1), np.float32)
        if n > self._most:
            remedy = f"lower expand.max_nodes to {self._most}, or {REMEDY}"
            raise Stop(self._who, f"{n} nodes, it was exported for {self._most}", remedy)
        edges = np.zeros((n, LOOSE + 3), np.float32)
        edges[np.arange(n), relation] = 1
        edges[:, LOOSE + 1], edges[:, LOOSE + 2] = weight, hop
        inputs = (np.asarray(query, np.float32)[None], np.asarray(nodes, np.float32), edges)
        return np.stack(self._program.forward(*inputs))
