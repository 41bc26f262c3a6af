"""Scoped keys, known only by their hash: those kept in the store, and those of this process alone."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import msgspec

from uia_lab.access.principals import Principal, known_scopes
from uia_lab.domain.errors import BadRequest, StoreError
from uia_lab.domain.keys import GUEST_PRINCIPAL, KEY_ID, Key, Limits

log = logging.getLogger(__name__)

PREFIX = "uia-"
SHORTEST = 16
MOST = 1000
_NAME = re.compile(r"\w[\w.@ +-]{0,63}")


class KeyTable(Protocol):
    """Where keys are kept; other processes may change it too."""

    async def load(self) -> list[Key]:
        """All of them."""

    async def add(self, key: Key) -> None:
        """Keeps a key, whose name must be free."""

    async def delete(self, key_id: str) -> bool:
        """Forgets a key; False if there was none."""

    async def charge(self, uses: Mapping[str, tuple[float, int]]) -> None:
        """Adds to keys, by id, when they were last used and the tokens they were charged."""


class KeyRing:
    """The keys that open the doors.

    A key has 256 bits of randomness, so a plain digest cannot be searched and needs no salt.

    Args:
        clock: Seconds since the epoch.

    Attributes:
        table: Where keys are kept; None while there is no store.
        on_end: Called with the name of a principal whose key was revoked or has expired.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.table: KeyTable | None = None
        self.on_end: list[Callable[[str], None]] = []
        self._clock = clock
        self._own: dict[bytes, Principal] = {}
        self._behind: dict[str, str] = {}
        self._kept: dict[str, Key] = {}
        self._index: dict[bytes, str] = {}
        self._principals: dict[str, str] = {}
        self._revoked: set[str] = set()
        self._used_at: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        # What is read from the table while it is being changed would undo the change.
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._own) + len(self._kept)

    def __repr__(self) -> str:
        names = sorted({principal.name for principal in self._own.values()} | self._principals.keys())
        return f"<KeyRing of {len(self)} keys: {', '.join(names)}>"

    def add(self, key: str, principal: Principal) -> None:
        """Accepts a key of this process alone; it is not kept and not listed.

        Args:
            key: The key, at least 16 characters.
            principal: Who it stands for.

        Raises:
            ValueError: Too short to be a secret; the message does not repeat it.
        """
        if len(key) < SHORTEST:
            raise ValueError(f"a key has at least {SHORTEST} characters")
        self._own[digest(key)] = principal

    @contextmanager
    def lent(self, principal: Principal, behind: str) -> Iterator[str]:
        """A fresh key of this process alone, for as long as the block; what it has under way ends with it.

        Args:
            principal: Who it stands for; its name begins with GUEST_PRINCIPAL and is nobody else's.
            behind: Name of the principal on whose behalf it asks, whose limits are its own.
        """
        key = new_key()
        self.add(key, principal)
        self._behind[principal.name] = behind
        try:
            yield key
        finally:
            del self._own[digest(key)]
            del self._behind[principal.name]
            self._tell(principal.name)

    def forget(self, name: str) -> bool:
        """Ends every key of this process alone that stands for a name; False if there was none."""
        kept = {key: principal for key, principal in self._own.items() if principal.name != name}
        ended = len(kept) < len(self._own)
        self._own = kept
        if ended:
            self._tell(name)
        return ended

    def verify(self, key: str) -> Principal | None:
        """The principal of a key, or None when it opens nothing (any more)."""
        presented = digest(key)
        own = self._own.get(presented)
        if own is not None:
            return own
        found = self._kept.get(self._index.get(presented, ""))
        # Looked up by digest, whose value nobody can choose; what was found is compared in constant time.
        if found is None or not hmac.compare_digest(found.digest, presented):
            return None
        now = self._clock()
        if found.expires_at is not None and found.expires_at <= now:
            return None
        self._used_at[found.id] = now
        return Principal(found.principal, found.scopes, found.id, found.limits)

    def get(self, key_id: str) -> Key | None:
        """A kept key as it stands now, or None."""
        found = self._kept.get(key_id)
        return None if found is None else self._current(found)

    def behind(self, name: str) -> str | None:
        """On whose behalf a principal asks: its own, or that of a call; None of a call that has ended."""
        while name.startswith(GUEST_PRINCIPAL):
            found = self._behind.get(name)
            if found is None:
                return None
            name = found
        return name

    def of_principal(self, name: str) -> Key | None:
        """The kept key whose limits hold for the requests of a principal, or None."""
        key_id = self._principals.get(self.behind(name) or "")
        return None if key_id is None else self.get(key_id)

    def all(self) -> list[Key]:
        """The kept keys as they stand now, by name."""
        return sorted(map(self._current, self._kept.values()), key=lambda key: key.name)

    async def create(
        self,
        name: str,
        scopes: Iterable[str],
        limits: Limits | None = None,
        expires_at: float | None = None,
    ) -> tuple[str, Key]:
        """Makes a key and keeps it.

        Args:
            name: What people call it: 1 to 64 letters, digits, spaces or ``.@+-``.
            scopes: Out of ``infer``, ``read`` and ``admin``.
            limits: What it is limited to.
            expires_at: When it ends, seconds since the epoch.

        Returns:
            The key, which can be seen this once, and what is known of it.

        Raises:
            BadRequest: A bad or taken name, an unknown scope, an empty list, an end in the past.
            StoreError: It could not be kept.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise BadRequest("name must be 1 to 64 letters, digits, spaces or .@+-", param="name")
        now = self._clock()
        if expires_at is not None and expires_at <= now:
            raise BadRequest("expires_at is in the past", param="expires_at")
        for field in ("models", "backend_types"):
            if getattr(limits, field, None) == ():
                raise BadRequest(f"{field} must name at least one, or be absent", param=field)
        secret = new_key()
        key = Key(
            id=KEY_ID + uuid.uuid4().hex[:12],
            name=name,
            digest=digest(secret),
            scopes=known_scopes(scopes),
            created_at=now,
            limits=limits or Limits(),
            expires_at=expires_at,
        )
        async with self._turn:
            if len(self._kept) >= MOST:
                raise BadRequest(f"there are {MOST} keys already; revoke some first", param="name")
            await self._open_table().add(key)
            self._put(key)
        return secret, key

    async def revoke(self, key_id: str) -> bool:
        """Ends a kept key at once, with all it has under way; False if there was none.

        Raises:
            StoreError: The store could not be written; the key is ended here all the same.
        """
        found = self._drop(key_id)
        async with self._turn:
            return await self._open_table().delete(key_id) or found

    def charge(self, key_id: str, tokens: int) -> None:
        """Notes tokens that a key is charged; one that was revoked meanwhile is passed over."""
        if tokens and key_id in self._kept:
            self._tokens[key_id] = self._tokens.get(key_id, 0) + tokens

    async def sync(self) -> None:
        """Writes uses and charges, takes in what other processes changed, and ends what has expired.

        Raises:
            StoreError: The store failed; what was to be written is kept for the next time.
        """
        now = self._clock()
        for key in list(self._kept.values()):
            if key.expires_at is not None and key.expires_at <= now and key.digest in self._index:
                # It stays listed, as what it is, until somebody revokes it.
                del self._index[key.digest]
                self._tell(key.principal)
        async with self._turn:
            table = self._open_table()
            try:
                await self._flush(table)
            finally:
                # A disk that is full must not keep a key alive that was revoked elsewhere.
                await self._load(table)

    async def _load(self, table: KeyTable) -> None:
        found = {key.id: key for key in await table.load()}
        for key_id in self._kept.keys() - found.keys():
            self._drop(key_id)
        for key in found.values():
            self._put(key)

    async def _flush(self, table: KeyTable) -> None:
        used, tokens = self._used_at, self._tokens
        if not used and not tokens:
            return
        self._used_at, self._tokens = {}, {}
        ids = used.keys() | tokens.keys()
        # Counted here at once: no moment sees them neither written nor waiting.
        for key_id in ids:
            self._add(key_id, tokens.get(key_id, 0))
        try:
            await table.charge({key_id: (used.get(key_id, 0.0), tokens.get(key_id, 0)) for key_id in ids})
        except Exception:
            for key_id in ids:
                self._add(key_id, -tokens.get(key_id, 0))
                self.charge(key_id, tokens.get(key_id, 0))
            self._used_at = used | self._used_at
            raise

    def _current(self, key: Key) -> Key:
        return msgspec.structs.replace(
            key,
            last_used_at=self._used_at.get(key.id, key.last_used_at),
            tokens_used=key.tokens_used + self._tokens.get(key.id, 0),
        )

    def _put(self, key: Key) -> None:
        # The table may have been read just before it was revoked there.
        if key.id in self._revoked:
            return
        self._kept[key.id] = key
        self._principals[key.principal] = key.id
        if key.expires_at is None or key.expires_at > self._clock():
            self._index[key.digest] = key.id

    def _add(self, key_id: str, tokens: int) -> None:
        key = self._kept.get(key_id)
        if key is not None and tokens:
            self._kept[key_id] = msgspec.structs.replace(key, tokens_used=key.tokens_used + tokens)

    def _drop(self, key_id: str) -> bool:
        key = self._kept.pop(key_id, None)
        if key is None:
            return False
        self._revoked.add(key_id)
        self._index.pop(key.digest, None)
        if self._principals.get(key.principal) == key_id:
            del self._principals[key.principal]
        self._used_at.pop(key_id, None)
        self._tokens.pop(key_id, None)
        self._tell(key.principal)
        return True

    def _tell(self, principal: str) -> None:
        for listener in self.on_end:
            try:
                listener(principal)
            except Exception:
                log.exception("what %s had under way could not be ended", principal)

    def _open_table(self) -> KeyTable:
        if self.table is None:
            raise StoreError("keys cannot be kept: the store is not open (GET /ready says why)")
        return self.table


def new_key() -> str:
    """A fresh key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> bytes:
    """The SHA-256 digest a key is known by."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
