"""The other side of the permuted digits: Avalanche's own plugins on the data and the weights that we were given.

    python jobs/continual/peer.py FOLDER       or --probe, which only says Avalanche's version

Needs numpy, torch and avalanche-lib, nothing of ours: Avalanche brings packages that we don't want among ours, so it is
looked for in ``PEERS``, where ``make peers`` puts it, after all others. FOLDER holds ``protocol.json`` and ``SEED.npz``
for each seed, as ``jobs.continual.digits.data`` makes them; ``accuracies.json`` is written there: line → [seed][after
task][on task].

Same weights, batches, order of examples and optimiser as ours; only what is replayed is drawn by each. Avalanche would
shuffle its memory with the data or neither, so the memory is shuffled here, as it is stored.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parents[2] / "build" / "peers"
kept: list[Any] = []
"""What must not be collected."""


def find() -> None:
    """Import Avalanche, and torchvision before it, which Avalanche wants though nothing here does."""
    sys.path.append(str(PEERS))
    if importlib.util.find_spec("avalanche") is None:
        raise ModuleNotFoundError("No module named 'avalanche'")
    import torch

    try:
        import torchvision  # type: ignore[import-not-found]  # noqa: F401
    except RuntimeError:
        # Its wheel is made for CUDA. Beside a CPU torch its operators are missing, which only a declaration minds.
        sys.modules.pop("torchvision", None)
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        kept.append(library)
    import avalanche.training  # type: ignore[import-not-found]  # noqa: F401


def strategy(line: dict[str, Any], model: Any, protocol: dict[str, Any]) -> Any:
    """One of Avalanche's: its EWC and replay as ``line`` says, else plain fine-tuning."""
    import torch
    from avalanche.training.plugins import EWCPlugin, ReplayPlugin  # type: ignore[import-not-found]
    from avalanche.training.storage_policy import ExperienceBalancedBuffer  # type: ignore[import-not-found]
    from avalanche.training.supervised import Naive  # type: ignore[import-not-found]

    class Shuffled(ExperienceBalancedBuffer):  # type: ignore[misc]
        """Its memory in random order, so that a batch mixes tasks as with shuffled loading."""

        @property
        def buffer(self) -> Any:
            kept = super().buffer
            return kept.subset(torch.randperm(len(kept)).tolist()) if len(kept) else kept

    plugins = []
    if line["replay"]:
        policy = Shuffled(max_size=line["replay"], adaptive_size=True)
        plugins.append(ReplayPlugin(mem_size=line["replay"], storage_policy=policy))
    if line["strength"]:
        mode = {"mode": "separate"} if line["separate"] else {"mode": "online", "decay_factor": line["gamma"]}
        plugins.append(EWCPlugin(ewc_lambda=line["strength"], **mode))
    return Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=protocol["rate"]),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=protocol["batch"],
        train_epochs=protocol["passes"],
        eval_mb_size=protocol["test"],
        plugins=plugins,
        evaluator=None,
    )


def network(given: Any) -> Any:
    """The weights in ``given`` as a network."""
    import torch
    from torch import nn

    hidden, pixels = given["w1"].shape
    model = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, len(given["b2"])))
    with torch.no_grad():
        for p, name in zip(model.parameters(), ("w1", "b1", "w2", "b2"), strict=True):
            p.copy_(torch.from_numpy(given[name]))
    return model


def run(line: dict[str, Any], given: Any, protocol: dict[str, Any], seed: int) -> list[list[float]]:
    """Task after task; the accuracy on every task after each."""
    import torch
    from avalanche.benchmarks import benchmark_from_datasets  # type: ignore[import-not-found]
    from avalanche.benchmarks.utils import make_avalanche_dataset  # type: ignore[import-not-found]
    from avalanche.benchmarks.utils.data_attribute import DataAttribute  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    model = network(given)
    learner = strategy(line, model, protocol)
    x, y, x_test = (torch.from_numpy(given[name]) for name in ("x_train", "y_train", "x_test"))
    tasks = [
        make_avalanche_dataset(
            torch.utils.data.TensorDataset(x[t], y[t]), data_attributes=[DataAttribute(y[t].tolist(), "targets")]
        )
        for t in range(len(x))
    ]
    rows = []
    for experience in benchmark_from_datasets(train=tasks).train_stream:
        learner.train(experience, shuffle=False)
        with torch.no_grad():
            found = model(x_test).argmax(-1).numpy()
        rows.append((found == given["y_test"]).mean(1).tolist())
    return rows


def main() -> None:
    """The command line at the top of this file."""
    find()
    print(f"avalanche-lib {version('avalanche-lib')}, torch {version('torch')}")
    if sys.argv[1] == "--probe":
        return
    import numpy as np
    import torch

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "protocol.json").read_text())
    found: dict[str, list[list[list[float]]]] = {name: [] for name in asked["lines"]}
    for seed in asked["seeds"]:
        with np.load(folder / f"{seed}.npz") as file:
            given = dict(file)
        for name, line in asked["lines"].items():
            print(f"Avalanche, {name}, seed {seed}", file=sys.stderr, flush=True)
            found[name].append(run(line, given, asked["protocol"], seed))
    (folder / "accuracies.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
