"""Graph attention: one query attends over the n nodes of its neighbourhood; numpy, for serving.

Layer l of L, head h of H, head size e = d/H; q₀ is the query's vector, xᵢ node i's (both L2-normalised):

    sᵢ = (W_q q)ₕ · (W_k xᵢ)ₕ / √e + bᵢ               scaled dot product: Vaswani et al. 2017, eq. 1
    bᵢ = r[relᵢ] + w·weightᵢ − δ·hopᵢ                 edge features as a bias: Graphormer, Ying et al. 2021, eq. 7;
                                                      decay linear in distance, δ ≥ 0: ALiBi, Press et al. 2022
    α  = softmax(s) over the nodes                    attention over graph neighbours: GAT, Veličković 2018, eq. 3
    q' = LayerNorm(q + W_o concatₕ Σᵢ αᵢ (W_v xᵢ)ₕ)   residual and LayerNorm: Vaswani et al. 2017, §3.1

``attend`` returns all α; their mean over layers and heads ranks the nodes. It is a distribution, so −log of it at the
node that supported a good answer is the InfoNCE loss (van den Oord et al. 2018) that a trainer lowers. Nothing reads
what the last layer would hand on, so W_v, W_o and LayerNorm exist for the first L − 1 layers only. A key bias would
cancel in the softmax, so there is none.

Absorbed: keys and values are never projected per node, since (W_k x)ₕ·a = x·(W_kₕᵀ a) and Σ α W_v x = W_v (Σ α x).
A layer costs 4d² + 2ndH multiplications instead of 2d² + 2nd² + 2nd: for n = 100, d = 384, H = 8 that is 1.2 M instead
of 29.9 M. The same identity serves the multi-head latent attention of DeepSeek-V2 (2024, §2.1.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.errors import Stop
from operators.records import RELATIONS

Floats = npt.NDArray[np.floating[Any]]

HIT = len(RELATIONS)
"""Pseudo-relation of nodes that are hits themselves."""
LOOSE = HIT + 1
"""Pseudo-relation of nodes whose edges were all cut off by a cap."""
FORMAT = "ruvllm.attention.v1"
"""What a checkpoint's metadata calls the layout of its arrays."""
_ABOUT = ("trained", "encoder")
"""Fields of ``AttentionWeights`` that are no arrays."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionWeights:
    """Weights of L layers, H heads, size d; all of one float dtype, read-only.

    ``query``, ``key`` [L, d, d] and ``value``, ``output`` [L−1, d, d] act as W @ x; row block h of the first three is
    head h. ``relation`` [L, H, 7] (RELATIONS, HIT, LOOSE), ``weight`` and ``decay`` [L, H] make bᵢ, with
    δ = softplus(decay). ``gain``, ``shift`` [L−1, d]: LayerNorm. ``trained``: a trainer found them better than
    every untrained ranking. ``encoder``: whose vectors they were trained on, empty if unknown.
    """

    query: Floats
    key: Floats
    value: Floats
    output: Floats
    relation: Floats
    weight: Floats
    decay: Floats
    gain: Floats
    shift: Floats
    trained: bool = False
    encoder: str = ""

    def __post_init__(self) -> None:
        for array in self.arrays().values():
            array.flags.writeable = False

    @property
    def layers(self) -> int:
        """L."""
        return int(self.query.shape[0])

    @property
    def heads(self) -> int:
        """H."""
        return int(self.weight.shape[1])

    @property
    def dim(self) -> int:
        """d."""
        return int(self.query.shape[1])

    def arrays(self) -> dict[str, Floats]:
        """Name → array, the layout of the checkpoint."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _ABOUT}

    def astype(self, dtype: npt.DTypeLike) -> AttentionWeights:
        """A copy in ``dtype``."""
        arrays: dict[str, Any] = {name: array.astype(dtype) for name, array in self.arrays().items()}
        return dataclasses.replace(self, **arrays)


def shapes(layers: int, heads: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every array."""
    inner = layers - 1
    return {
        "query": (layers, dim, dim),
        "key": (layers, dim, dim),
        "value": (inner, dim, dim),
        "output": (inner, dim, dim),
        "relation": (layers, heads, LOOSE + 1),
        "weight": (layers, heads),
        "decay": (layers, heads),
        "gain": (inner, dim),
        "shift": (inner, dim),
    }


def init(dim: int, *, heads: int = 8, layers: int = 3, seed: int = 0) -> AttentionWeights:
    """Untrained float32 weights that begin near plain similarity, so that training starts from it and not from noise.

    W_k is a random rotation and W_q = 8H√e·W_k, so the mean of the heads' scores is 8 × cosine. W_v and W_o are a
    rotation and a tenth of its transpose: the state moves a little towards what was attended. LayerNorm's gain 1/√d
    keeps the state at length 1, like the nodes.
    """
    if layers < 1 or dim % heads:
        raise Stop("attention", f"{layers} layers, size {dim}, {heads} heads", "use ≥ 1 layer and a multiple of heads")
    random = np.random.default_rng(seed)

    def rotations(n: int) -> Floats:
        return np.stack([np.linalg.qr(random.standard_normal((dim, dim)))[0] for _ in range(n)])

    key = rotations(layers)
    value = rotations(layers - 1) if layers > 1 else np.zeros((0, dim, dim))
    made = {
        **{name: np.zeros(shape) for name, shape in shapes(layers, heads, dim).items()},
        "query": 8 * heads * (dim / heads) ** 0.5 * key,
        "key": key,
        "value": value,
        "output": 0.1 * value.transpose(0, 2, 1),
        "gain": np.full((layers - 1, dim), dim**-0.5),
    }
    arrays: dict[str, Any] = {name: np.array(array, np.float32, order="C") for name, array in made.items()}
    return AttentionWeights(**arrays)


def by_score(dim: int, *, heads: int = 8, layers: int = 3, seed: int = 0, sharpness: float = 16.0) -> AttentionWeights:
    """Untrained float32 weights that order nodes as search did, so that training has only to learn a correction.

    W_q = 0, so vectors say nothing yet (its gradient is not 0, for W_k is a rotation). A hit's score is ``sharpness``
    times its fused score (at most ``sharpness``, at least 0); every other node's is below 0: minus ``sharpness``, plus
    ``sharpness`` times its edge's weight (at most 1), minus its hops · softplus(0).
    """
    made = init(dim, heads=heads, layers=layers, seed=seed)
    relation = np.full_like(made.relation, -sharpness)
    relation[:, :, HIT] = 0
    return dataclasses.replace(
        made, query=np.zeros_like(made.query), relation=relation, weight=np.full_like(made.weight, sharpness)
    )


def attend(
    weights: AttentionWeights,
    query: Floats,
    nodes: Floats,
    relation: npt.NDArray[np.integer[Any]],
    weight: Floats,
    hop: npt.NDArray[np.integer[Any]],
) -> Floats:
    """All attention weights α: float[L, H, n], each row sums to 1.

    Args:
        weights: the network.
        query: float[d], L2-normalised.
        nodes: float[n, d], L2-normalised, n ≥ 1.
        relation: int[n], index into RELATIONS, or HIT, or LOOSE.
        weight: float[n], weight of that edge.
        hop: int[n], distance from the hits, 0 for hits.
    """
    layers, heads, dim = weights.layers, weights.heads, weights.dim
    size = dim // heads
    dtype = weights.query.dtype
    nodes = np.asarray(nodes, dtype)
    state = np.asarray(query, dtype)
    bias = edge_bias(weights, relation, weight, hop)
    alphas = np.empty((layers, heads, len(nodes)), dtype)
    scale = dtype.type(size**-0.5)
    for layer in range(layers):
        asked = (weights.query[layer] @ state).reshape(heads, 1, size) * scale
        absorbed = (asked @ weights.key[layer].reshape(heads, size, dim))[:, 0]
        alpha = softmax(absorbed @ nodes.T + bias[layer])
        alphas[layer] = alpha
        if layer + 1 < layers:
            pooled = (alpha @ nodes)[:, :, None]
            read = (weights.value[layer].reshape(heads, size, dim) @ pooled).reshape(dim)
            state = layer_norm(state + weights.output[layer] @ read, weights.gain[layer], weights.shift[layer])
    return alphas


def edge_bias(
    weights: AttentionWeights, relation: npt.NDArray[np.integer[Any]], weight: Floats, hop: npt.NDArray[np.integer[Any]]
) -> Floats:
    """bᵢ of every layer and head: float[L, H, n]."""
    dtype = weights.query.dtype
    decay = np.logaddexp(weights.decay, dtype.type(0))[:, :, None]
    slope = weights.weight[:, :, None] * np.asarray(weight, dtype) - decay * np.asarray(hop, dtype)
    return np.asarray(weights.relation[:, :, relation] + slope)


def softmax(scores: Floats) -> Floats:
    """Softmax over the last axis."""
    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def layer_norm(x: Floats, gain: Floats, shift: Floats) -> Floats:
    """Layer normalisation (Ba et al. 2016) with ε = 1e-6; x is float[d]."""
    centred = x - x.mean()
    return np.asarray(centred / np.sqrt(centred @ centred / x.dtype.type(x.size) + x.dtype.type(1e-6)) * gain + shift)


def save(weights: AttentionWeights, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write ``weights`` as safetensors, with ``about`` beside what ``load`` reads in the metadata.

    The caller makes it atomic (temporary name, fsync, rename).
    """
    from safetensors.numpy import save_file

    known = {"format": FORMAT, "trained": str(weights.trained).lower(), "encoder": weights.encoder}
    save_file(weights.arrays(), path, {**(about or {}), **known})


def load(path: Path) -> AttentionWeights:
    """Weights from a checkpoint. Raises ``Stop`` if it is missing, of another format or shape, or not finite."""
    from safetensors import SafetensorError, safe_open

    who = f"attention checkpoint {path}"
    remedy = "give the path of a checkpoint from the trainer, or leave it empty to rank by similarity"
    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise Stop(who, f"can't be read ({e})", remedy) from e
    if about.get("format") != FORMAT:
        raise Stop(who, f"format {about.get('format')!r}, expected {FORMAT!r}", remedy)
    _check(arrays, who, remedy)
    return AttentionWeights(**arrays, trained=about.get("trained") == "true", encoder=about.get("encoder", ""))


def _check(arrays: dict[str, Any], who: str, remedy: str) -> None:
    if {"query", "weight"} - arrays.keys() or arrays["query"].ndim != 3 or arrays["weight"].ndim != 2:
        raise Stop(who, f"arrays {sorted(arrays)} without a usable query or weight", remedy)
    layers, dim = arrays["query"].shape[:2]
    heads = arrays["weight"].shape[1]
    expected = shapes(layers, heads, dim)
    got = {name: array.shape for name, array in arrays.items()}
    if got != expected or not heads or dim % heads:
        wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        detail = ", ".join(f"{name} {got.get(name)} instead of {expected.get(name)}" for name in wrong)
        raise Stop(who, detail or f"size {dim} with {heads} heads", remedy)
    kinds = {array.dtype for array in arrays.values()}
    if len(kinds) != 1 or kinds.pop() not in (np.float32, np.float64):
        raise Stop(who, f"dtypes {sorted({str(a.dtype) for a in arrays.values()})}, expected float32 alone", remedy)
    broken = sorted(name for name, array in arrays.items() if not np.isfinite(array).all())
    if broken:
        raise Stop(who, f"values that are not finite in {', '.join(broken)}", remedy)
