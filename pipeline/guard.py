"""Who is asking: the tenant of a request comes from its API key, and from nothing else the request says."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from pydantic import SecretStr

from operators.errors import Reject

DEFAULT_TENANT = "default"


class Guard:
    """Maps ``Authorization: Bearer KEY`` to a tenant. Without any key configured everyone is tenant ``default``."""

    def __init__(self, keys: Mapping[SecretStr, str]) -> None:
        """``keys``: API key → tenant."""
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
