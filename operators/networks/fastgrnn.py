"""The router's network for serving: a FastGRNN cell and five heads as one immutable numpy snapshot (design §9).

FastGRNN (Kusupati et al. 2018, arXiv:1901.02358), W and U shared by gate and candidate, or own ones (untied)::

    z  = σ(W x + U h + b_z)                    U = U1 U2ᵀ, rank 8
    c  = tanh(W x + U h + b_h)
    h' = (σ(ζ)(1 − z) + σ(ν)) · c + z · h      ζ and ν are kept before the σ that holds them in (0, 1), as in the paper

The forward pass is one product of [x; h] with a [192, 128] matrix (U folded, gate half scaled by ½ because
σ(a) = ½ + ½ tanh(a/2)), one tanh, and one product for all heads: about 10 µs. Multiplying the 90 % zeros costs less
than gathering around them at this size.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from operators.errors import Stop
from operators.networks.exemplars import AT, Exemplars
from operators.networks.features import LAYOUT, TIERS
from operators.records import FEATURES, HIDDEN

Vector = npt.NDArray[np.float32]

RANK = 8
CONTEXT_TOKENS = (256, 512, 1024, 2048, 4096)
"""The context sizes, in tokens, that the context head chooses from."""
SHARPNESS = 16.0
"""Logits that a learned difference of 1 in quality is worth to the policy."""
HEADS = {"tier": TIERS, "context": len(CONTEXT_TOKENS), "temperature": 1, "top_p": 1, "confidence": 1}
"""Head → number of outputs, in the order in which they are stacked."""
_SQUASHED = np.array([1.0, 0.5, 0.5], np.float32)
"""temperature, top-p, confidence from 1 + tanh(a/2) = 2σ(a)."""


def shapes(tied: bool) -> dict[str, tuple[int, ...]]:
    """Parameter → shape; all float32. The first axis of ``w``, ``u1``, ``u2`` is 1 if tied, else (gate, candidate)."""
    own = 1 if tied else 2
    cell: dict[str, tuple[int, ...]] = {
        "w": (own, HIDDEN, FEATURES),
        "u1": (own, HIDDEN, RANK),
        "u2": (own, HIDDEN, RANK),
        "b_z": (HIDDEN,),
        "b_h": (HIDDEN,),
        "zeta": (),
        "nu": (),
    }
    return cell | {f"{h}_w": (n, HIDDEN) for h, n in HEADS.items()} | {f"{h}_b": (n,) for h, n in HEADS.items()}


class Outputs(NamedTuple):
    """One step. Leading axes as the input's: ``tier`` [..., 4] and ``context`` [..., 5] are logits, ``temperature`` (in
    (0, 2)), ``top_p`` and ``confidence`` (in (0, 1)) are [...], ``hidden`` [..., 64]; all float32."""

    tier: Vector
    context: Vector
    temperature: Vector
    top_p: Vector
    confidence: Vector
    hidden: Vector


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Weights that never change, ready to serve. ``params`` as ``shapes`` says; ``checkpoint`` names them in routes.

    ``learned``: the tier head gives the logits of each slot's quality, and no longer a preference that was written by
    hand. ``exemplars``: the learned turns that new ones are compared with.

    Raises ``Stop`` for a missing, unknown, misshapen or non-finite parameter. Pickles as its safetensors bytes.
    """

    params: Mapping[str, Vector]
    checkpoint: str
    exemplars: Exemplars | None = None
    learned: bool = False
    _mix: Vector = dataclasses.field(init=False, repr=False)
    _bias: Vector = dataclasses.field(init=False, repr=False)
    _heads: Vector = dataclasses.field(init=False, repr=False)
    _heads_bias: Vector = dataclasses.field(init=False, repr=False)
    _zeta: np.float32 = dataclasses.field(init=False, repr=False)
    _nu: np.float32 = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        params = {name: np.array(value, order="C") for name, value in self.params.items()}
        _check(params, self.checkpoint)
        for value in params.values():
            value.setflags(write=False)
        wide = {name: value.astype(np.float64) for name, value in params.items()}
        u = wide["u1"] @ wide["u2"].swapaxes(1, 2)
        rows = np.broadcast_to(np.concatenate((wide["w"], u), axis=2), (2, HIDDEN, FEATURES + HIDDEN))
        half = np.array([0.5, 1.0])[:, None, None]
        biases = np.stack((0.5 * wide["b_z"], wide["b_h"])).ravel()
        # σ(a) = ½ + ½ tanh(a/2) again: the last three heads get half their logits
        halves = np.repeat([1.0, 0.5], (TIERS + len(CONTEXT_TOKENS), 3))
        heads = np.concatenate([wide[f"{head}_w"] for head in HEADS]) * halves[:, None]
        derived: dict[str, Any] = {
            "params": params,
            "_mix": np.ascontiguousarray((rows * half).reshape(2 * HIDDEN, -1).T, np.float32),
            "_bias": biases.astype(np.float32),
            "_heads": np.ascontiguousarray(heads.T, np.float32),
            "_heads_bias": np.float32(np.concatenate([wide[f"{head}_b"] for head in HEADS]) * halves),
            "_zeta": np.float32(_sigmoid(wide["zeta"])),
            "_nu": np.float32(_sigmoid(wide["nu"])),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def tied(self) -> bool:
        """Whether gate and candidate share W and U."""
        return len(self.params["w"]) == 1

    def forward(self, x: Vector, h: Vector) -> Outputs:
        """One step: ``x`` float32[..., 128], ``h`` float32[..., 64] with the same leading axes. Changes neither."""
        y: Vector = np.concatenate((x, h), axis=-1) @ self._mix
        y += self._bias
        np.tanh(y, out=y)
        z = y[..., :HIDDEN]
        z *= 0.5
        z += 0.5
        write: Vector = self._zeta * (1.0 - z)
        write += self._nu
        write *= y[..., HIDDEN:]
        z *= h
        write += z
        out: Vector = write @ self._heads
        out += self._heads_bias
        end = TIERS + len(CONTEXT_TOKENS)
        squashed = out[..., end:]
        np.tanh(squashed, out=squashed)
        squashed += 1.0
        squashed *= _SQUASHED
        return Outputs(
            out[..., :TIERS], out[..., TIERS:end], squashed[..., 0], squashed[..., 1], squashed[..., 2], write
        )

    def recall(self, x: Vector) -> Vector:
        """``x`` float32[128] with what the exemplars say of that turn; ``x`` itself where there are none."""
        if self.exemplars is None:
            return x
        seen = x.copy()
        seen[AT] = self.exemplars.recall(x)
        return seen

    def preference(self, tier: Vector) -> list[float]:
        """What the policy's softmax reads, from the tier head's ``tier`` float32[4]: larger is better.

        A learned head is taken as qualities, times ``SHARPNESS``: with cost in the same unit that is the utility of
        design §9, and a difference of 1 / SHARPNESS in quality weighs as much as a logit.
        """
        return (SHARPNESS * _sigmoid(tier)).tolist() if self.learned else tier.tolist()  # type: ignore[no-any-return]

    def to_bytes(self) -> bytes:
        """The checkpoint as safetensors; equal weights give equal bytes."""
        # One metadata key only: safetensors writes several in random order, and checksums would differ.
        about = json.dumps({"checkpoint": self.checkpoint, "layout": LAYOUT, "learned": self.learned}, sort_keys=True)
        arrays = dict(self.params)
        if self.exemplars is not None:
            arrays |= {"exemplar_keys": self.exemplars.keys, "exemplar_quality": self.exemplars.quality}
        data: bytes = safetensors.numpy.save(arrays, {"router": about})
        return data

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "bytes") -> Snapshot:
        """Read what ``to_bytes`` wrote. Raises ``Stop`` naming ``where`` if it is anything else."""
        remedy = "give a router checkpoint of this version, or none to start from the prior"
        try:
            params = safetensors.numpy.load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            about = json.loads(header["__metadata__"]["router"])
            checkpoint, layout, learned = str(about["checkpoint"]), str(about["layout"]), bool(about["learned"])
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as e:
            raise Stop("route", f"{where} is no router checkpoint ({type(e).__name__}: {e})", remedy) from e
        if layout != LAYOUT:
            raise Stop("route", f"{where} reads feature layout {layout}, this version has {LAYOUT}", remedy)
        keys, quality = params.pop("exemplar_keys", None), params.pop("exemplar_quality", None)
        exemplars = None if keys is None or quality is None else Exemplars(keys, quality)
        return cls(params, checkpoint, exemplars, learned)

    def save(self, path: str | Path) -> None:
        """Write the checkpoint to ``path`` durably: temporary file, fsync, rename."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            file.write(self.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> Snapshot:
        """Read a checkpoint file. Raises ``Stop`` if it is missing or unfit."""
        try:
            data = Path(path).read_bytes()
        except OSError as e:
            raise Stop("route", f"can't read checkpoint {path} ({e.strerror})", "give an existing file, or none") from e
        return cls.from_bytes(data, str(path))

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return Snapshot.from_bytes, (self.to_bytes(),)


def _sigmoid(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """σ through tanh, which can't overflow."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * a))


def _check(params: Mapping[str, npt.NDArray[Any]], checkpoint: str) -> None:
    """Refuse parameters that are not exactly those of a tied or an untied network."""
    remedy = "keep the active checkpoint and publish this one again"
    tied = "w" in params and params["w"].shape[:1] == (1,)
    expected = shapes(tied)
    if odd := sorted(params.keys() ^ expected.keys()):
        raise Stop("route", f"checkpoint {checkpoint} lacks or adds parameters {odd}", remedy)
    for name, shape in expected.items():
        value = params[name]
        if value.shape != shape or value.dtype != np.float32:
            got = f"{value.dtype}{list(value.shape)}, expected float32{list(shape)}"
            raise Stop("route", f"checkpoint {checkpoint}: {name} is {got}", remedy)
        if not np.isfinite(value).all():
            raise Stop("route", f"checkpoint {checkpoint}: {name} has NaN or infinite values", remedy)
