"""Personal data through the HTTP door: what is remembered and what is logged has none of it. Stages are stand-ins."""

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from conf.load import load
from operators.engines.ports import Encoded
from operators.errors import Stop
from operators.ingest import Document, Nodes, document_nodes
from operators.privacy.masker import Masker
from operators.records import FEATURES, HIDDEN, Answer, Context, Interaction, Passage, Piece, Route, TierLoad, decode
from operators.stores.memory import Added
from operators.stores.topics import INTERACTIONS
from pipeline.cli import app
from pipeline.graph import Step
from pipeline.host import open_emitter
from pipeline.ingress import create_app
from pipeline.service import Service

DEADLINE_S = 20.0
SPOKEN = "Write to bob@example.org or ring (212) 736-5000."


class Encoder:
    id, dim = "counting", 4

    async def texts(self, texts, *, query):
        vectors = np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]
        return Encoded(vectors=vectors, tokens=np.ones(len(texts), np.int32), truncated=(False,) * len(texts))

    def count_tokens(self, text):
        return len(text.split())


class Backend:
    """Remembers nodes in a list, and answers with what ``SPOKEN`` says."""

    def __init__(self, settings):
        self.settings, self.kept = settings, []

    async def nodes(self, tenant, documents):
        masker = Masker(self.settings.privacy)
        config = self.settings.documents
        nodes = [await document_nodes(tenant, one, Encoder(), config, masker, 1.0) for one in documents]
        return Nodes(nodes=nodes, masked=dict(masker.found))

    async def add(self, tenant, nodes):
        new = tuple(node.node_id for node in nodes if node.node_id not in {one.node_id for one in self.kept})
        self.kept += [node for node in nodes if node.node_id in new]
        return Added(new=new, duplicate=tuple(n.node_id for n in nodes if n.node_id not in new), edges=0)

    async def manage(self, call, *args):
        raise AssertionError(f"{call} is no part of this")

    async def load(self):
        return (TierLoad(tier="270M"),)

    async def prepare(self, records):
        route = Route(
            tier="270M",
            context_tokens=256,
            temperature=0.0,
            top_p=1.0,
            confidence=1.0,
            probabilities={},
            propensity=1.0,
            propensities={},
            checkpoint="",
            reason="router",
            hidden=np.zeros(HIDDEN, np.float32),
            features=np.zeros(FEATURES, np.float32),
        )
        passage = Passage(node_id="n", source="s", text=SPOKEN, tokens=9, score=1.0)
        return Step(written=(route, Context(passages=(passage,), tokens=9, ranking="similarity")), timings={})

    async def stream(self, item):
        answer = Answer(
            text=SPOKEN,
            tier="270M",
            model="m",
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
            used=("n",),
        )
        yield Piece(text=SPOKEN)
        yield Piece(text="", answer=answer)


def settings(tmp_path, *more):
    return load("test", overrides=[f"data_dir={tmp_path}", *more], env={}).settings


@pytest.fixture
def served(tmp_path):
    made = settings(tmp_path)
    service = Service(made, Backend(made), open_emitter(made))
    with TestClient(create_app(service)) as client:
        yield client, service


async def test_a_question_and_its_answer_reach_the_log_masked_and_the_user_unmasked(served):
    client, service = served
    body = {"messages": [{"role": "user", "content": "Is ada@example.org at 203.0.113.77?"}]}
    said = client.post("/v1/chat/completions", json=body)
    assert said.json()["choices"][0]["message"]["content"] == SPOKEN
    assert await service.emitter.close(DEADLINE_S) == 0
    log = service.emitter._log
    events = [event.value for p in range(log.topics()[INTERACTIONS]) for event in log.read(INTERACTIONS, p, 0, 9)]
    (event,) = [decode(Interaction, value) for value in events]
    assert event.query == "Is [EMAIL] at [IP]?"
    assert event.answer == event.context[0].text == "Write to [EMAIL] or ring [PHONE]."
    for value in (b"ada@", b"203.0", b"bob@", b"736-5000"):
        assert value not in events[0]


async def test_documents_are_remembered_masked_and_the_answer_counts_what_was(served):
    client, service = served
    card = "4111 1111 1111 1111"
    document = {
        "text": f"Ada pays with {card}.\n\nBob is bob@example.org, Cem is cem@example.org.",
        "source": "people.txt",
        "metadata": {"author": "ada@example.org"},
    }
    said = client.post("/v1/documents", json={"documents": [document]}).json()
    assert said["masked"] == {"CARD": 1, "EMAIL": 3}
    texts = " ".join(node.text for node in service.backend.kept)
    assert "[CARD]" in texts
    assert "Bob is [EMAIL_1], Cem is [EMAIL_2]." in texts
    assert card not in texts
    assert {node.metadata["author"] for node in service.backend.kept} == {"[EMAIL]"}
    again = client.post("/v1/documents", json={"documents": [document]}).json()
    assert (again["added"], again["duplicates"]) == (0, said["added"])
    plain = client.post("/v1/documents", json={"documents": [{"text": "The mill grinds oats."}]}).json()
    assert plain["masked"] == {}
    await service.emitter.close(DEADLINE_S)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("privacy.documents=false", "ada@example.org, 10.1.2.3"),
        ('privacy.kinds=["IP"]', "ada@example.org, [IP]"),
        ("privacy.kinds=[]", "ada@example.org, 10.1.2.3"),
    ],
)
async def test_the_settings_decide_what_is_masked(tmp_path, setting, text):
    backend = Backend(settings(tmp_path, setting))
    made = await backend.nodes("default", [Document(text="ada@example.org, 10.1.2.3")])
    assert [node.text for node in made.nodes[0]] == [text]


def test_an_unknown_country_is_refused_by_name(tmp_path):
    assert settings(tmp_path, 'privacy.regions=["JP"]').privacy.regions == ("JP",)
    with pytest.raises(Stop, match=r"no countries XX; use two capitals of ISO 3166"):
        settings(tmp_path, 'privacy.regions=["DE", "XX"]')


async def test_the_log_of_an_unforeseen_error_has_no_personal_data(served, caplog):
    client, service = served

    async def broken(tenant, documents):
        raise RuntimeError(f"no room for {documents[0].text}")

    service.backend.nodes = broken
    quiet = TestClient(client.app, raise_server_exceptions=False)
    said = quiet.post("/v1/documents", json={"documents": [{"text": "Ada is ada@example.org."}]})
    assert said.status_code == 500
    assert "RuntimeError: no room for Ada is [EMAIL]." in caplog.text
    assert "ada@" not in caplog.text + said.text
    await service.emitter.close(DEADLINE_S)


def test_ingest_says_what_was_masked(tmp_path, monkeypatch):
    answer = {"added": 1, "duplicates": 0, "edges": 0, "masked": {"EMAIL": 1}}
    answers = [answer, {**answer, "masked": {"PHONE": 1, "EMAIL": 1}}, {**answer, "masked": {}}]
    monkeypatch.setattr("pipeline.client.Client.post", lambda *_: answers.pop(0))
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    for file in files:
        file.write_text("text")

    def said(*paths):
        options = ["--url", "http://127.0.0.1:1", "--profile", "test", "--set", f"data_dir={tmp_path}", "--no-job"]
        done = CliRunner().invoke(app, ["ingest", *map(str, paths), *options])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()[1:]

    assert said(*files[:2]) == ["3 personal values masked: EMAIL 2, PHONE 1"]
    assert said(files[2]) == []
