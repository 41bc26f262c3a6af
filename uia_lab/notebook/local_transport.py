"""A Lab without a server: the same service, in this process."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec
import numpy as np

from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BadRequest, InferenceError
from uia_lab.domain.events import Event
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_EMBEDDING
from uia_lab.notebook.transport import EventStream, Publication
from uia_lab.worker import ServedFunction

if TYPE_CHECKING:
    from uia_lab.inference_backend_manager import BackendManager
    from uia_lab.unified_inference_service import UnifiedInferenceService


_NO_KEYS = (
    "keys open a server's doors, and in local mode none is there; start one with `python -m uia_lab serve` "
    "or open this notebook in Jupyter with uia_lab_server enabled"
)


class InProcessTransport:
    """Runs a :class:`UnifiedInferenceService` on the Lab's event loop; nothing listens anywhere.

    Args:
        service: A service to use and to stop at the end; a default one is built at first use.
    """

    where = "this kernel (local mode)"
    kind: Literal["server", "local"] = "local"

    def __init__(self, service: "UnifiedInferenceService | None" = None) -> None:
        self._service = service
        self._started = False
        self._lock = asyncio.Lock()

    async def service(self) -> "UnifiedInferenceService":
        """The running service, which is started at first use."""
        async with self._lock:
            if self._service is None:
                from uia_lab.config import InferenceServiceConfig
                from uia_lab.unified_inference_service import UnifiedInferenceService

                self._service = UnifiedInferenceService(InferenceServiceConfig.from_files())
            if not self._started:
                await self._service.start(listen=False, store=False)
                self._started = True
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
        found = service.apis.found() if service.apis is not None else []
        return {
            "backends": [item.to_dict() for item in service.get_backend_manager().list_backends()],
            "found": [item.to_dict() for item in found],
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

    async def aclose(self) -> None:
        """Stops the service."""
        service, self._service = self._service, None
        if service is not None and self._started:
            await service.stop()
        self._started = False


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
