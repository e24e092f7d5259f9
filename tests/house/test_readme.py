"""What the documents say is run: README's examples against a real service, and every path they name exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", "DECISIONS.md"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("bash"), ids=lambda code: re.search(r"/v1/[\w/]+", code)[0])
def test_curl_examples(inproc, code):
    code = code.replace("http://127.0.0.1:8000", inproc.url).replace(
        "curl -s", "curl -sS --fail-with-body --noproxy '*'"
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    # What a small model says when it is sampled is chance; what it was given to read is not.
    assert re.search(r'"added":|"source":\s*"vell\.txt"|"event_id":', done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples(inproc, code):
    code = code.replace("http://127.0.0.1:8000", inproc.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 1, done.stdout  # what a sampled model says is chance, that it says something not


def test_there_are_six_api_examples():
    assert len(blocks("bash")) + len(blocks("python")) == 6


@pytest.mark.parametrize("page", PAGES)
def test_every_path_named_exists(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`((?:operators|pipeline|jobs|conf|tests|docs|requirements)/[\w./]*)`", text))
    named |= set(re.findall(r"\]\((?!http)([\w./]+)\)", text))
    placeholders = {name for name in named if re.search(r"\b[A-Z]+\b", name)}  # operators/NAME.py
    missing = [name for name in named - placeholders if not (ROOT / name).exists()]
    assert not missing
    assert named


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?\bmake (\w+)`?", README))))
def test_every_make_target_named_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
