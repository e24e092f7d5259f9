"""Where the tenants' databases lie: directories on a disk, or prefixes of a bucket in S3-compatible storage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from operators.errors import Stop


class Place:
    """``root``: a path, or ``s3://bucket/prefix``. ``options``: how to reach a bucket, in LanceDB's words
    (``aws_access_key_id``, ``aws_secret_access_key``, ``aws_region``, ``aws_endpoint``, ``allow_http``); what is
    missing comes from the environment or the machine's role. The bucket has to exist.

    Commits to a bucket need conditional writes (``If-None-Match``): a store that ignores them loses rows when two
    processes write.
    """

    def __init__(self, root: str | Path, options: Mapping[str, str] | None = None) -> None:
        self.root, self.options = str(root), dict(options or {})
        self.remote = "://" in self.root
        if self.remote and not self.root.startswith("s3://"):
            raise Stop("memory", f"vectors at {self.root}", "give a path, or s3://bucket/prefix")

    def __str__(self) -> str:
        return self.root

    def prepare(self) -> None:
        """Make the directory, or look whether the bucket is there. Raises ``OSError``."""
        if not self.remote:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(f"Permission denied: {self.root}")
            return
        from pyarrow.fs import FileType

        files, path = self._files()
        bucket = path.split("/", 1)[0]
        if files.get_file_info(bucket).type == FileType.NotFound:
            raise FileNotFoundError(f"no bucket {bucket!r}")

    def of(self, tenant: str) -> str:
        """The tenant's database, as LanceDB takes it."""
        return f"{self.root.rstrip('/')}/{tenant}"

    def tenants(self, table: str) -> list[str]:
        """Names that have such a table, sorted."""
        files, path = self._files()
        names = sorted(found.base_name for found in files.get_file_info(_selector(path)))
        return [name for name in names if self.holds(name, table)]

    def holds(self, tenant: str, table: str) -> bool:
        """Whether the tenant's table was ever committed; a crash while making it may leave a directory without."""
        files, path = self._files()
        inside = files.get_file_info(_selector(f"{path}/{tenant}/{table}.lance/_versions"))
        return any(found.path.endswith(".manifest") for found in inside)

    def remove(self, tenant: str, table: str) -> None:
        """Remove the tenant's directory with all that is in it; what a crash leaves of it is no table any more."""
        if not self.remote:
            folder = Path(self.root) / tenant
            if (folder / f"{table}.lance" / "_versions").exists():  # in one step
                os.rename(folder / f"{table}.lance" / "_versions", folder / f"{table}.lance" / "dropped")
            if folder.exists():
                shutil.rmtree(folder)
            return
        from pyarrow.fs import FileType

        files, path = self._files()
        for prefix in (f"{path}/{tenant}/{table}.lance/_versions", f"{path}/{tenant}"):
            if files.get_file_info(prefix).type != FileType.NotFound:
                files.delete_dir(prefix)

    def _files(self) -> tuple[Any, str]:
        """The file system, and the root's path in it."""
        from pyarrow import fs

        if not self.remote:
            return fs.LocalFileSystem(), self.root
        options, where = self.options, urlsplit(self.options.get("aws_endpoint", ""))
        named = {
            "access_key": options.get("aws_access_key_id"),
            "secret_key": options.get("aws_secret_access_key"),
            "session_token": options.get("aws_session_token"),
            "region": options.get("aws_region"),
            "endpoint_override": where.netloc or None,
            "scheme": where.scheme or None,
        }
        return fs.S3FileSystem(**{k: v for k, v in named.items() if v}), self.root.removeprefix("s3://").rstrip("/")


def _selector(path: str) -> Any:
    from pyarrow.fs import FileSelector

    return FileSelector(path, allow_not_found=True)
