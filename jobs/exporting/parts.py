"""What can be exported from a profile: each network as torch trains it, and as a module that XNNPACK takes.

The router's weights are those that act in the profile; the attention network's those of ``attend.checkpoint``, or
untrained ones if there are none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conf.schema import Settings
from operators.engines.executorch import files
from operators.engines.executorch.runtime import Program
from operators.engines.files.models import resolve
from operators.errors import Reject
from operators.learning.weights import weights
from operators.networks import attention
from operators.networks.acting import starting
from operators.networks.fastgrnn import HEADS, Snapshot
from operators.records import FEATURES, HIDDEN, record
from operators.stores.checkpoints import Registry

if TYPE_CHECKING:
    import torch

TRIALS = 8
"""Random inputs that a program is held against torch on."""
Inputs = tuple[np.ndarray[Any, Any], ...]


@record
class Part:
    """What to export: ``reference`` and ``module`` are the same function in torch, written for training and for export
    (or the same object). ``draw`` makes random inputs, ``varies`` is ``torch.export``'s ``dynamic_shapes``."""

    kind: files.Kind
    source: str
    weights: str
    module: torch.nn.Module
    reference: Callable[..., Sequence[torch.Tensor]]
    draw: Callable[[np.random.Generator], Inputs]
    varies: Any
    inputs: tuple[files.Tensor, ...]
    outputs: tuple[files.Tensor, ...]
    facts: dict[str, Any]


def encoder(settings: Settings) -> Part:
    """The sentence encoder: ids int64[1, length] → float32[1, dim], not normalised."""
    from safetensors.torch import load_file

    from operators.networks.bert_torch import Bert

    config, most = settings.export, settings.embed.max_tokens
    if config.encoder is None:
        raise Reject("export", "this profile names no weights of its encoder to export", "set export.encoder")
    path = resolve(config.encoder, settings.data_dir / "cache")
    pooling = settings.embed.pooling
    module = Bert(load_file(path), heads=config.heads, max_tokens=most, pooling=pooling)
    words = len(module.word)
    return Part(
        kind="encoder",
        source=config.encoder.id,
        weights=hashlib.sha256(path.read_bytes()).hexdigest(),
        module=module,
        reference=lambda ids: [module(ids)],
        draw=lambda random: (random.integers(0, words, (1, int(random.integers(2, most + 1)))),),
        varies=({1: _axis("length", most)},),
        inputs=(files.Tensor(name="ids", dtype="int64", shape=(1, f"2..{most}")),),
        outputs=(files.Tensor(name="vector", dtype="float32", shape=(1, module.dim)),),
        facts={"dim": module.dim, "max_tokens": most, "pooling": pooling},
    )


def router(settings: Settings) -> Part:
    """The router's step: x float32[1, 128], h float32[1, 64] → float32[1, 76], heads and then the new state."""
    import torch

    from operators.networks.exporting_torch import RouterStep
    from operators.networks.fastgrnn_torch import FastGRNN

    snapshot = acting(settings)
    trained, width = FastGRNN(snapshot), sum(HEADS.values()) + HIDDEN

    def reference(x: torch.Tensor, h: torch.Tensor) -> list[torch.Tensor]:
        out = trained(x, h)
        single = [out[name][:, None] for name in ("temperature", "top_p", "confidence")]
        return [torch.cat((out["tier"], out["context"], *single, out["hidden"]), dim=1)]

    return Part(
        kind="router",
        source=snapshot.checkpoint,
        weights=files.fingerprint(snapshot.params),
        module=RouterStep(snapshot),
        reference=reference,
        draw=lambda random: (_floats(random, 1, FEATURES), _floats(random, 1, HIDDEN)),
        varies=None,
        inputs=(
            files.Tensor(name="x", dtype="float32", shape=(1, FEATURES)),
            files.Tensor(name="h", dtype="float32", shape=(1, HIDDEN)),
        ),
        outputs=(files.Tensor(name="heads and state", dtype="float32", shape=(1, width)),),
        facts={"heads": dict(HEADS)},
    )


def acting(settings: Settings) -> Snapshot:
    """The router's weights that act in this profile now. Raises ``Stop`` if they are missing or damaged."""
    start = starting(settings.route.checkpoint, tied=settings.route.tied)
    registry = Registry(settings.data_dir / "checkpoints")
    now = registry.rollouts.current()
    return start if now is None else weights(registry, now.active, start)


def ranking(settings: Settings) -> Part:
    """The attention network: query [1, d], nodes [n, d], edges [n, EDGE] → α float32[H, n] of every layer."""
    from operators.networks.attention_torch import Attention
    from operators.networks.exporting_torch import EDGE, AttentionStep

    config, path = settings.train_attention, settings.attend.checkpoint
    if path:
        made = attention.load(Path(path))
    else:
        dim, sharpness = settings.embed.output_dim, config.sharpness
        made = attention.by_score(dim, heads=config.heads, layers=config.layers, seed=config.seed, sharpness=sharpness)
    most, trained = settings.expand.max_nodes, Attention(made)

    def draw(random: np.random.Generator) -> Inputs:
        n = int(random.integers(2, most + 1))
        relation, hop = random.integers(0, EDGE - 2, n), random.integers(0, 4, n)
        edges = np.concatenate((np.eye(EDGE - 2)[relation], random.random((n, 1)), hop[:, None]), axis=1)
        return _units(random, 1, made.dim), _units(random, n, made.dim), edges.astype(np.float32)

    def reference(query: torch.Tensor, nodes: torch.Tensor, edges: torch.Tensor) -> Sequence[torch.Tensor]:
        import torch

        relation, weight, hop = edges[:, :-2].argmax(1), edges[:, -2], edges[:, -1].long()
        one = (part[None] for part in (nodes, relation, weight, hop, torch.ones(len(nodes), dtype=torch.bool)))
        return list(trained(query, *one)[0])

    return Part(
        kind="attention",
        source=path or f"untrained, seed {config.seed}",
        weights=files.fingerprint(made.arrays()),
        module=AttentionStep(made),
        reference=reference,
        draw=draw,
        varies=(None, {0: (nodes := _axis("nodes", most))}, {0: nodes}),
        inputs=(
            files.Tensor(name="query", dtype="float32", shape=(1, made.dim)),
            files.Tensor(name="nodes", dtype="float32", shape=(f"2..{most}", made.dim)),
            files.Tensor(name="edges", dtype="float32", shape=(f"2..{most}", EDGE)),
        ),
        outputs=tuple(
            files.Tensor(name=f"layer {layer}", dtype="float32", shape=(made.heads, f"2..{most}"))
            for layer in range(made.layers)
        ),
        facts={"max_nodes": most, "layers": made.layers, "heads": made.heads, "encoder": made.encoder},
    )


PARTS: dict[str, Callable[[Settings], Part]] = {"encoder": encoder, "router": router, "attention": ranking}


def differs(part: Part, program: Program, random: np.random.Generator) -> float:
    """The largest difference between the program's numbers and torch's, over ``TRIALS`` random inputs."""
    import torch

    worst = 0.0
    with torch.no_grad():
        for _ in range(TRIALS):
            inputs = part.draw(random)
            expected = part.reference(*map(torch.from_numpy, inputs))
            for got, wanted in zip(program.forward(*inputs), expected, strict=True):
                worst = max(worst, float(np.abs(got - wanted.numpy()).max()))
    return worst


def _axis(name: str, most: int) -> Any:
    import torch

    return torch.export.Dim(name, min=2, max=most)


def _floats(random: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return random.uniform(-1, 1, shape).astype(np.float32)


def _units(random: np.random.Generator, n: int, dim: int) -> np.ndarray[Any, Any]:
    made = random.standard_normal((n, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)  # type: ignore[no-any-return]
