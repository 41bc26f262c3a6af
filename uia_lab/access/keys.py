"""Scoped keys, known only by their hash."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable

from uia_lab.access.principals import Principal, known_scopes

PREFIX = "uia-"


class KeyRing:
    """The keys that open the doors, held in memory as SHA-256 digests.

    A key has 256 bits of randomness, so a plain digest cannot be searched and needs no salt.
    """

    def __init__(self) -> None:
        self._principals: dict[bytes, Principal] = {}

    def create(self, name: str, scopes: Iterable[str]) -> str:
        """Makes a key.

        Args:
            name: Name of the principal it stands for; a name may have several keys.
            scopes: Out of ``infer``, ``read`` and ``admin``.

        Returns:
            The key; this is the only time it can be seen.

        Raises:
            BadRequest: No scope, or an unknown one.
        """
        key = PREFIX + secrets.token_urlsafe(32)
        self.add(key, Principal(name, known_scopes(scopes)))
        return key

    def add(self, key: str, principal: Principal) -> None:
        """Accepts a key that was chosen elsewhere.

        Args:
            key: The key, at least 16 characters.
            principal: Who it stands for.

        Raises:
            ValueError: Too short to be a secret; the message does not repeat it.
        """
        if len(key) < 16:
            raise ValueError("a key has at least 16 characters")
        self._principals[_digest(key)] = principal

    def verify(self, key: str) -> Principal | None:
        """The principal of a key, or None when it is not one of ours."""
        presented = _digest(key)
        found = None
        # Every key is compared, whichever matches: how long this takes tells nothing about any of them.
        for digest, principal in self._principals.items():
            if hmac.compare_digest(digest, presented):
                found = principal
        return found

    def revoke(self, name: str) -> bool:
        """Forgets every key of a name.

        Returns:
            Whether there was one.
        """
        kept = {digest: principal for digest, principal in self._principals.items() if principal.name != name}
        removed = len(kept) < len(self._principals)
        self._principals = kept
        return removed

    def __len__(self) -> int:
        return len(self._principals)

    def __repr__(self) -> str:
        names = sorted({principal.name for principal in self._principals.values()})
        return f"<KeyRing of {len(self._principals)} keys: {', '.join(names)}>"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
