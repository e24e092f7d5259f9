"""Which weights decide: the active ones, in a share of the sessions a canary; a shadow only says what it would do."""

from __future__ import annotations

import dataclasses
import hashlib

from operators.networks.fastgrnn import Snapshot
from operators.networks.prior import prior


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Active:
    """Everything a decision reads of the weights, so that it reads one reference and all of it belongs together.

    ``canary`` decides for ``share`` of the sessions, in [0, 1]; ``shadow`` decides nothing.
    """

    snapshot: Snapshot
    shadow: Snapshot | None = None
    canary: Snapshot | None = None
    share: float = 0.0

    def deciding(self, tenant: str, session: str) -> Snapshot:
        """The weights that decide for this session, the same for all its turns."""
        if self.canary is not None and place(self.canary.checkpoint, tenant, session) < self.share:
            return self.canary
        return self.snapshot


def place(canary: str, tenant: str, session: str) -> float:
    """A number in [0, 1) for this session and canary: 53 bits of a BLAKE2b hash.

    With another canary it is another number, so it is not always the same sessions that try what is new; and it has
    nothing to do with the draw of the route, which hashes the interaction.
    """
    digest = hashlib.blake2b(f"canary|{canary}|{tenant}|{session}".encode(errors="surrogatepass"), digest_size=8)
    return (int.from_bytes(digest.digest(), "big") >> 11) * 2.0**-53


def starting(path: str, *, tied: bool = True) -> Snapshot:
    """The weights before anything was promoted: the checkpoint at ``path``, or the prior if that is empty.

    Raises ``Stop`` if the checkpoint is missing or unfit.
    """
    return Snapshot.load(path) if path else prior(tied=tied)
