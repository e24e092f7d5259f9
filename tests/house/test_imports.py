"""Importing any module of ours loads nothing heavy, and the stages know nothing of Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("torch", "ray", "lancedb", "kuzu", "llama_cpp", "xllamacpp", "onnxruntime", "pyarrow", "tokenizers", "pypdf"),
    *("phonenumbers", "stdnum", "faiss", "kafka", "river", "sklearn", "matplotlib", "executorch"),
)
KNOWS_RAY = {"pipeline.serve", "pipeline.serve_backend", "pipeline.ray_errors"}
KNOWS_TORCH = {
    "operators.networks.attention_torch",
    "operators.networks.bert_torch",
    "operators.networks.exporting_torch",
    "operators.networks.fastgrnn_torch",
    "operators.learning.fit",
    "operators.learning.learner",
    "operators.learning.objective",
    "operators.learning.sessions",
}


def modules():
    for package in ("operators", "conf", "pipeline", "jobs"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_module_loads_anything_heavy_on_import():
    # A job that learns or evaluates is a process of its own; nothing else imports it.
    alone = ("jobs.learn", "jobs.evaluate_", "jobs.continual", "jobs.routing")
    light = [name for name in modules() if name not in KNOWS_RAY | KNOWS_TORCH and not name.startswith(alone)]
    assert len(light) > 40
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    found = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    assert not found, f'{name} loads {found}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(KNOWS_RAY))
def test_the_exceptions_are_still_needed(name):
    lines = (ROOT / (name.replace(".", "/") + ".py")).read_text().splitlines()
    assert any(line.startswith(("import ray", "from ray")) for line in lines)
