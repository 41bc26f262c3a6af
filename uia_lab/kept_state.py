"""What people decided while a server ran, in force in the manager and kept for the next start."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from uia_lab.access.keys import KeyRing
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.errors import BadRequest, InferenceError
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.kept_backends import KeptBackends
from uia_lab.store.database import MEMORY, default_path
from uia_lab.store.store import Store

log = logging.getLogger(__name__)

SYNC_S = 1.0
LAST_RECORDS_S = 1.0
# A store that another process has locked must not keep this one from ending.
LAST_KEYS_S = 3.0
STRATEGY = "strategy"


class KeptState:
    """Aliases, strategy, keys, backends and the request log: restored at start, written when they change.

    Without an open store everything is in force, and forgotten at the end.

    Args:
        config: Settings.
        manager: Where it is in force.
        keys: Who may come in.
        backends: Those that people register by their address.

    Attributes:
        store: The store; None while it is not open.
    """

    def __init__(
        self,
        config: InferenceServiceConfig,
        manager: BackendManager,
        keys: KeyRing,
        backends: KeptBackends,
    ) -> None:
        self.store: Store | None = None
        self._backends = backends
        self._config = config
        self._manager = manager
        self._keys = keys
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        # What is looked at and then changed must not change in between.
        self._turn = asyncio.Lock()
        keys.on_end.append(self._end_requests)

    async def open(self, *, in_memory: bool) -> str:
        """Opens the store and puts what it holds in force.

        Args:
            in_memory: Whether nothing is to outlive the process.

        Returns:
            Where it is, in words.

        Raises:
            StoreError: It cannot be used; the message says why.
        """
        config = self._config
        path = MEMORY if in_memory else config.store_path or default_path()
        store = await Store.open(path, config.log_retention_days, config.log_max_rows)
        try:
            await self._restore(store)
        except BaseException:
            self._keys.table = self._backends.table = None
            await store.close()
            raise
        self.store = store
        self._manager.log_prompts = config.log_prompts
        self._manager.on_record = store.request_log.record
        self._closing.clear()
        self._task = asyncio.create_task(self._sync_keys(), name="uia-keys")
        return store.where

    async def close(self) -> None:
        """Writes what is not written yet, and closes the store."""
        store, self.store = self.store, None
        if store is None:
            return
        # Not cancelled: a write that is under way is waited for, so that nothing is charged twice.
        self._closing.set()
        try:
            with contextlib.suppress(TimeoutError, InferenceError):
                async with asyncio.timeout(LAST_KEYS_S):
                    if self._task is not None:
                        await asyncio.gather(self._task, return_exceptions=True)
            await self._write_last_records(store)
            with contextlib.suppress(TimeoutError, InferenceError):
                async with asyncio.timeout(LAST_KEYS_S):
                    await self._keys.sync()
        finally:
            self._keys.table = self._backends.table = None
            await store.close()

    async def set_alias(self, name: str, targets: Sequence[str]) -> None:
        """Defines or replaces an alias; what cannot be kept is not in force either.

        Raises:
            BadRequest: A bad name or target.
            StoreError: It could not be written.
        """
        async with self._turn:
            before = self._manager.aliases.get(name)
            self._manager.set_alias(name, targets)
            if self.store is None:
                return
            try:
                await self.store.aliases.put(name, tuple(targets))
            except BaseException:
                if before is None:
                    self._manager.delete_alias(name)
                else:
                    self._manager.set_alias(name, before)
                raise

    async def delete_alias(self, name: str) -> bool:
        """Forgets an alias; False if there was none.

        Raises:
            StoreError: It could not be written.
        """
        async with self._turn:
            if self.store is not None:
                await self.store.aliases.delete(name)
            return self._manager.delete_alias(name)

    async def set_strategy(self, name: str) -> None:
        """Changes the strategy, for the next start too.

        It counts until somebody configures another one than is configured now: what was said last counts.

        Raises:
            BadRequest: Unknown; the message lists the known ones.
            NotAllowed: The administrator of the system locked it.
            StoreError: It could not be written; the strategy is as before.
        """
        self._config.require_unlocked("load_balancing_strategy")
        async with self._turn:
            before = self._manager.strategy_name
            self._manager.set_strategy(name)
            if self.store is None:
                return
            configured = self._config.load_balancing_strategy
            try:
                await self.store.settings.put(STRATEGY, {"name": name, "configured": configured})
            except BaseException:
                self._manager.set_strategy(before)
                raise

    async def _restore(self, store: Store) -> None:
        for name, targets in (await store.aliases.load()).items():
            try:
                self._manager.set_alias(name, targets)
            except BadRequest as error:
                log.warning("the alias %r is kept but not in force: %s", name, error)
        chosen = (await store.settings.load()).get(STRATEGY, {})
        if chosen and chosen.get("configured") == self._config.load_balancing_strategy:
            try:
                self._manager.set_strategy(str(chosen.get("name")))
            except BadRequest as error:
                log.warning("the strategy that was chosen last is not in force: %s", error)
        self._keys.table = store.keys
        await self._keys.sync()
        await self._backends.restore(store.backends)

    def _end_requests(self, principal: str) -> None:
        for run in list(self._manager.running.values()):
            if run.request.principal == principal:
                self._manager.cancel(run.request.id)

    async def _sync_keys(self) -> None:
        failing = False
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SYNC_S):
                    await self._closing.wait()
            try:
                await self._keys.sync()
                failing = False
            except InferenceError as error:
                # Said once: a full disk stays full for a while, and the next round tries again.
                if not failing:
                    log.warning("the keys cannot be brought up to date: %s", error.message)
                failing = True
            except Exception:
                log.exception("the keys cannot be brought up to date")

    async def _write_last_records(self, store: Store) -> None:
        manager = self._manager
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_RECORDS_S):
                while manager.running:  # noqa: ASYNC110 - it ends with whoever reads the answers
                    await asyncio.sleep(0.01)
        manager.on_record = None
        # An answer that nobody reads any more notices its end only when it is dropped.
        for run in list(manager.running.values()):
            store.request_log.record(
                run.record(
                    manager.instance_id, "cancelled", None, manager.clock(), with_prompts=manager.log_prompts
                )
            )
