"""What an administrator does to a tenant's memory: through the running service, else on the data directory itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conf.schema import Settings, is_loopback
from operators.errors import Stop
from operators.stores.backups import Backup
from operators.stores.consistency import Consistency
from operators.stores.portable import Manifest
from operators.stores.tenants import check_tenant
from pipeline.client import Client
from pipeline.guard import KEY_FILE, KEY_VARIABLE

ADMIN = "/v1/admin/memory"
DOORS = {
    "check": ("POST", "check"),
    "maintain": ("POST", "maintain"),
    "export": ("POST", "export"),
    "import": ("POST", "import"),
    "backups": ("GET", "backups"),
    "back_up": ("POST", "backups"),
    "restore_backup": ("POST", "backups/restore"),
    "remove_backup": ("POST", "backups/delete"),
}
"""Name in ``management.CALLS`` → method and path of the service's endpoint."""


def administer(settings: Settings, url: str | None, call: str, tenant: str, fields: Mapping[str, Any]) -> Any:
    """Do ``call`` with ``fields`` for ``tenant``; returns the JSON that the service's endpoint answers.

    A service at ``url``, or at the settings' address, is asked. Without ``url`` and with no service there, the memory
    is opened here. Raises ``Stop`` if a service has it open that can't be asked, or if there is no memory.
    """
    check_tenant("--tenant", tenant)
    address = settings.http.url() if url is None else url
    with contextlib.closing(Client(address, admin_key(settings.data_dir, url))) as client:
        if url is not None or client.alive():
            method, path = DOORS[call]
            body = {"tenant": tenant, **fields}
            sent: dict[str, Any] = {"params": body} if method == "GET" else {"body": body}
            return client.call(method, f"{ADMIN}/{path}", **sent)
    return _here(settings, call, tenant, fields)


def _here(settings: Settings, call: str, tenant: str, fields: Mapping[str, Any]) -> Any:
    from pipeline.host import make_memory
    from pipeline.launch import owned
    from pipeline.management import CALLS

    if not (settings.data_dir / "memory").is_dir():
        got = f"no service listens at {settings.http.url()}, and there is no memory in {settings.data_dir}"
        raise Stop("memory", got, "start the service, or name its --profile, --set data_dir or --url")
    encoder = (settings.embed.model.id,) if call in _ENCODED else ()
    given = list(fields.values())
    with owned(settings.data_dir):
        memory = make_memory(settings)
        memory.open()
        try:
            return _answer(CALLS[call](memory, tenant, *given[:1], *encoder, *given[1:]), fields)
        finally:
            memory.close()


def _answer(result: Any, fields: Mapping[str, Any]) -> Any:
    """``result`` as the service's endpoint answers it."""
    from pipeline import memory_schema as api
    from pipeline.admin_api import manifest_out
    from pipeline.memory_api import fields_of

    if isinstance(result, list):
        return [_answer(one, fields) for one in result]
    if isinstance(result, Consistency):
        return api.ConsistencyOut(**fields_of(result), sound=result.sound).model_dump()
    if isinstance(result, Manifest):
        return manifest_out(result).model_dump()
    if isinstance(result, Backup):
        return manifest_out(result.manifest, result.name).model_dump()
    return {"removed": fields["name"]} if result is None else result


_ENCODED = ("export", "import", "back_up", "restore_backup")


def admin_key(data_dir: Path, url: str | None) -> str | None:
    """The administrator's key: the environment's, else the service's own; ``None`` lets the service say it's needed."""
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        return key
    if url is not None and not is_loopback(urlsplit(url).hostname or ""):  # the file is the key of the service here
        return None
    try:
        return (data_dir / KEY_FILE).read_text().strip() or None
    except OSError:
        return None
