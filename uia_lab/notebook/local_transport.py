"""A Lab without a server: the same service, in this process."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec
import numpy as np

from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BadRequest, InferenceError, StoreError
from uia_lab.domain.events import Event
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_EMBEDDING, TEXT_GENERATION
from uia_lab.notebook.finding import HERE
from uia_lab.notebook.transport import CLOSED, EventStream, Publication
from uia_lab.routing.strategies import known_strategies
from uia_lab.worker import ServedFunction

if TYPE_CHECKING:
    from uia_lab.inference_backend_manager import BackendManager
    from uia_lab.peer_network import Terms
    from uia_lab.store.request_log import RequestLog
    from uia_lab.unified_inference_service import UnifiedInferenceService


_NO_KEYS = (
    "keys open a server's doors, and in local mode none is there; start one with `python -m uia_lab serve` "
    "or open this notebook in Jupyter with uia_lab_server enabled"
)


class InProcessTransport:
    """Runs a :class:`UnifiedInferenceService` on the Lab's event loop; nothing listens anywhere.

    Args:
        service: A service to use and to stop at the end; a default one is built at first use.
        why: Why a server that is there was not taken.
    """

    where: str = HERE
    kind: Literal["server", "local"] = "local"

    def __init__(self, service: "UnifiedInferenceService | None" = None, *, why: str = "") -> None:
        if why:
            self.where = f"{self.where}; {why}"
        self._service = service
        self._starting: asyncio.Task[UnifiedInferenceService] | None = None
        self._closed = False

    async def service(self) -> "UnifiedInferenceService":
        """The running service, which is started at first use.

        Raises:
            RuntimeError: The transport was closed.
        """
        if self._closed:
            raise RuntimeError(CLOSED)
        starting = self._starting
        if starting is None or (starting.done() and (starting.cancelled() or starting.exception())):
            # A task of its own: whoever waits for it may leave, and the others still have it.
            starting = self._starting = asyncio.create_task(self._start(), name="uia-local-start")
            starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            here = asyncio.current_task()
            if here is not None and here.cancelling():
                raise
            raise RuntimeError(CLOSED) from None

    async def _start(self) -> "UnifiedInferenceService":
        if self._service is None:
            from uia_lab.config import InferenceServiceConfig
            from uia_lab.unified_inference_service import UnifiedInferenceService

            self._service = UnifiedInferenceService(InferenceServiceConfig.from_files())
        await self._service.start(listen=False, store=False)
        return self._service

    async def manager(self) -> "BackendManager":
        """The manager of the running service."""
        manager: BackendManager = (await self.service()).get_backend_manager()
        return manager

    async def status(self) -> dict[str, Any]:
        """The status report of the manager."""
        report: dict[str, Any] = (await self.manager()).get_backend_status_report()
        return report

    async def models(self) -> list[str]:
        """Names of the models that some backend lists."""
        manager = await self.manager()
        return sorted({name for backend in manager.list_backends() for name in backend.models})

    def stream(self, request: InferenceRequest) -> EventStream:
        """Starts a request at the manager."""
        return _LocalStream(self, request)

    async def embed(self, texts: Sequence[str], model: str | None) -> np.ndarray:
        """Embeddings by the manager."""
        manager = await self.manager()
        result = await manager.run(InferenceRequest(TEXT_EMBEDDING, model, list(texts)))
        return np.asarray(result.result, np.float32)

    async def cancel(self, request_id: str) -> None:
        """Cancels a request; one that has ended meanwhile is fine."""
        (await self.manager()).cancel(request_id)

    def publish(
        self, function: ServedFunction, backend_id: str, name: str, max_concurrency: int
    ) -> Publication:
        """A backend of the manager in this process."""
        return _LocalPublication(self, function, backend_id, name, max_concurrency)

    async def hardware(self) -> dict[str, Any]:
        """What this machine has."""
        await self.manager()
        assert self._service is not None
        report: dict[str, Any] = (await self._service.models.hardware()).to_dict()
        return report

    async def local_models(self) -> list[dict[str, Any]]:
        """The models of this machine."""
        listed: list[dict[str, Any]] = await (await self.service()).models.listed()
        return listed

    async def load_model(
        self, fields: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Loads a model into a worker of this process."""
        from uia_lab.local_models import LoadOptions

        models = (await self.service()).models
        options = LoadOptions(**(fields.get("options") or {}))
        loaded: dict[str, Any] = await models.load(fields["model_id"], fields.get("device"), options, tell)
        return loaded

    async def unload_model(self, model_id: str) -> dict[str, Any]:
        """Gives a model's memory back."""
        answer: dict[str, Any] = await (await self.service()).models.unload(model_id)
        return answer

    async def keys(self) -> list[dict[str, Any]]:
        """The scoped keys; in this process they open nothing, since nothing listens."""
        raise BadRequest(_NO_KEYS)

    async def create_key(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Refuses to make a key that would open nothing."""
        del fields
        raise BadRequest(_NO_KEYS)

    async def revoke_key(self, key_id: str) -> None:
        """There is none."""
        del key_id
        raise BadRequest(_NO_KEYS)

    async def backends(self) -> dict[str, Any]:
        """The backends of this process, and what was found besides."""
        service = await self.service()
        return {
            "backends": [item.to_dict() for item in service.get_backend_manager().list_backends()],
            "found": [item.to_dict() for item in service.found()],
        }

    async def add_backend(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Registers a backend until this process ends."""
        try:
            description = msgspec.convert({"id": "", **fields}, BackendDescription)
        except msgspec.ValidationError as error:
            raise BadRequest(str(error)) from None
        return (await (await self.service()).backends.add(description)).to_dict()

    async def change_backend(self, backend_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Changes a backend."""
        changes = dict(fields)
        if (draining := changes.pop("draining", None)) is not None:
            changes["enabled"] = not draining
        return (await (await self.service()).backends.change(backend_id, **changes)).to_dict()

    async def probe_backend(self, backend_id: str) -> dict[str, Any]:
        """Looks at a backend now."""
        return (await (await self.manager()).probe(backend_id)).to_dict()

    async def remove_backend(self, backend_id: str) -> None:
        """Takes a backend out."""
        if not await (await self.service()).backends.remove(backend_id):
            raise BadRequest(f"there is no backend {backend_id!r}", param="id")

    async def peers(self) -> dict[str, Any]:
        """The network of peers of this process."""
        return (await self.service()).peers.report()

    async def invite_peer(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Makes an invite."""
        terms, others = _terms(fields, "expires_in")
        return await (await self.service()).peers.invite(terms, **others)

    async def withdraw_invite(self, invite_id: str) -> None:
        """Takes an invite back; one that is used meanwhile is fine."""
        await (await self.service()).peers.withdraw(invite_id)

    async def accept_invite(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Uses an invite."""
        return await (await self.service()).peers.accept(**fields)

    async def trust_peer(self, peer_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Trusts a peer."""
        terms, others = _terms(fields, "addresses")
        return await (await self.service()).peers.trust(peer_id, terms, **others)

    async def revoke_peer(self, peer_id: str) -> None:
        """Trusts a peer no more; one that is gone meanwhile is fine."""
        await (await self.service()).peers.revoke(peer_id)

    async def backend(self, backend_id: str) -> dict[str, Any]:
        """A backend with what went wrong there lately."""
        manager = await self.manager()
        troubles = manager.troubles(backend_id)
        found = manager.get_backend(backend_id)
        assert found is not None
        return found.to_dict() | troubles

    async def history(self, after: int = 0, limit: int = 900) -> dict[str, Any]:
        """The last quarter of an hour."""
        return (await self.service()).history.read(after, limit)

    async def strategies(self) -> dict[str, Any]:
        """How backends are chosen, and how they might be."""
        return {"strategy": (await self.manager()).strategy_name, "known": known_strategies()}

    async def set_strategy(self, name: str) -> dict[str, Any]:
        """Changes how backends are chosen, until this process ends."""
        manager = await self.manager()
        manager.set_strategy(name)
        return {"strategy": manager.strategy_name}

    async def explain(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A decision that nothing comes of."""
        return (await self.manager()).explain(**{"task": TEXT_GENERATION, **fields}).to_dict()

    async def request(self, request_id: str) -> dict[str, Any]:
        """One request."""
        from uia_lab.seen_requests import one_request

        found = await one_request(await self.manager(), await self._log(), request_id)
        if found is None:
            raise BadRequest("no such request is known", param="id")
        return found

    async def requests(self, limit: int = 100, **filters: Any) -> dict[str, Any]:
        """The last requests of this process."""
        from uia_lab.seen_requests import list_requests

        log = await self._log()
        return {"requests": await list_requests(await self.manager(), log, limit=limit, **filters)}

    async def replay(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Past requests under another strategy."""
        return await (await self.service()).replay.run(await self._log(), **fields)

    async def aliases(self) -> list[dict[str, Any]]:
        """The aliases of this process."""
        return [
            {"name": name, "targets": list(targets)}
            for name, targets in (await self.manager()).aliases.items()
        ]

    async def set_alias(self, name: str, targets: Sequence[str]) -> dict[str, Any]:
        """Sets an alias until this process ends."""
        await (await self.service()).kept.set_alias(name, targets)
        return {"name": name, "targets": list((await self.manager()).aliases[name])}

    async def delete_alias(self, name: str) -> None:
        """Forgets an alias."""
        await (await self.service()).kept.delete_alias(name)

    async def _log(self) -> "RequestLog":
        log = (await self.service()).request_log
        if log is None:
            raise StoreError("the request log of this process is not open")
        return log

    async def aclose(self) -> None:
        """Stops the service, one that is still starting too."""
        self._closed = True
        starting, self._starting = self._starting, None
        if starting is None:
            return
        starting.cancel()
        await asyncio.wait({starting})
        # Of a start that was cut some parts run already.
        service, self._service = self._service, None
        if service is not None:
            await service.stop()


def _terms(fields: Mapping[str, Any], *others: str) -> "tuple[Terms, dict[str, Any]]":
    """What is agreed with a peer, and the other fields beside it."""
    from uia_lab.peer_network import Terms

    return Terms.of(fields), {name: fields[name] for name in others if name in fields}


class _LocalStream:
    """A response stream of the manager, opened at the first ``anext``."""

    def __init__(self, transport: InProcessTransport, request: InferenceRequest) -> None:
        self.request_id: str | None = request.id
        self._transport = transport
        self._request = request
        self._answer: Any = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._answer is None:
            self._answer = (await self._transport.manager()).open(self._request)
        event: Event = await anext(self._answer)
        return event

    async def aclose(self) -> None:
        if self._answer is not None:
            await self._answer.aclose()


class _LocalPublication:
    """A function among the manager's backends."""

    def __init__(
        self,
        transport: InProcessTransport,
        function: ServedFunction,
        backend_id: str,
        name: str,
        max_concurrency: int,
    ) -> None:
        self._transport = transport
        self._function = function
        self._backend_id = backend_id
        self._name = name
        self._max_concurrency = max_concurrency
        self._ready = asyncio.Event()
        self._refused: InferenceError | None = None
        self.connected = False

    async def run(self) -> None:
        try:
            await self._serve()
        except InferenceError as error:
            self._refused = error
            raise
        finally:
            self.connected = False
            self._ready.set()

    async def ready(self) -> None:
        await self._ready.wait()
        if self._refused is not None:
            raise self._refused

    async def _serve(self) -> None:
        manager = await self._transport.manager()
        manager.register_backend(
            self._backend_id,
            "gpu",
            self._name,
            self._function,
            max_concurrency=self._max_concurrency,
            metadata={"served_by": "this kernel"},
        )
        try:
            await manager.probe(self._backend_id)
            self.connected = True
            self._ready.set()
            await asyncio.Event().wait()
        finally:
            there = manager.get_backend(self._backend_id)
            if there is not None and there.instance is self._function:
                manager.unregister_backend(self._backend_id)
