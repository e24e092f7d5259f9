"""Who is asking: the tenant of a request comes from its API key, and from nothing else the request says.

The administrator's key is another matter: jobs and ``ruvllm memory`` act with it for any tenant. It is made at the
first start and kept in the data directory, readable by its owner alone; ``RUVLLM_ADMIN_KEY`` takes its place.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import SecretStr

from operators.errors import Reject, Stop

DEFAULT_TENANT = "default"


class Guard:
    """Maps ``Authorization: Bearer KEY`` to a tenant. Without any key configured everyone is tenant ``default``."""

    def __init__(self, keys: Mapping[SecretStr, str], admin_key: str) -> None:
        """``keys``: API key → tenant. ``admin_key`` opens what acts for any tenant."""
        self._admin = admin_key.encode()
        self._keys = [(key.get_secret_value().encode(), tenant) for key, tenant in keys.items()]

    def tenant(self, authorization: str | None) -> str:
        """The tenant of a request with this ``Authorization`` header. Raises ``Reject`` (401)."""
        if not self._keys:
            return DEFAULT_TENANT
        scheme, _, given = (authorization or "").partition(" ")
        found: str | None = None
        # Every key is compared, in constant time, so that the time taken tells nothing about any of them.
        for key, tenant in self._keys:
            if hmac.compare_digest(key, given.strip().encode()):
                found = tenant
        if scheme.lower() != "bearer" or found is None:
            raise Reject(
                "guard",
                "no valid API key",
                "send 'Authorization: Bearer KEY' with a key from http.api_keys",
                401,
                code="invalid_api_key",
            )
        return found

    def admin(self, authorization: str | None) -> None:
        """Raise ``Reject`` (401) unless this ``Authorization`` header has the administrator's key."""
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(self._admin, given.strip().encode()):
            remedy = (
                f"send 'Authorization: Bearer KEY' with the key in the file {KEY_FILE} of the service's data_dir"
                f" (ruvllm looks there, by --profile and --set data_dir, or takes {KEY_VARIABLE})"
            )
            raise Reject("guard", "no valid administrator's key", remedy, 401, code="invalid_admin_key")


KEY_FILE, KEY_VARIABLE = "admin-key", "RUVLLM_ADMIN_KEY"


def admin_key(data_dir: Path) -> str:
    """The administrator's key: the environment's, else the one in ``data_dir``, made if there is none."""
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        return key
    path = data_dir / KEY_FILE
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=data_dir) as file:  # mode 600
            file.write(secrets.token_urlsafe(32))
            file.flush()
            with contextlib.suppress(FileExistsError):  # several gateways start at once: one key, there whole or not
                os.link(file.name, path)
    key = path.read_text().strip()
    if not key:
        raise Stop("guard", f"{path} is empty", "remove it: the next start makes a new key")
    return key


async def _tenant(request: Request, authorization: Annotated[str | None, Header()] = None) -> str:
    guard: Guard = request.app.state.guard
    return guard.tenant(authorization)


async def _admin(request: Request, authorization: Annotated[str | None, Header()] = None) -> None:
    guard: Guard = request.app.state.guard
    guard.admin(authorization)


Tenant = Annotated[str, Depends(_tenant)]
"""A parameter of an endpoint: the tenant that asks."""
Admin = Annotated[None, Depends(_admin)]
"""A parameter of an endpoint for the administrator alone."""
Session = Annotated[str | None, Header(alias="x-session-id", max_length=200)]
"""A parameter of an endpoint: the conversation that the caller named."""
