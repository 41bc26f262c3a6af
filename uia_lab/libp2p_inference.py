"""LibP2PInferenceNode: the specification's face of the peer-to-peer network."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from uia_lab.backends.peer_backends import PeerBackends
from uia_lab.config import ConfigError, InferenceServiceConfig
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, BackendType, Probe, member
from uia_lab.domain.errors import BadRequest, InferenceError, NoBackendAvailable, suggestion
from uia_lab.domain.events import Attempted, Chunk, Event, Finished, Result, Started, Switched, Text
from uia_lab.domain.peers import Load, Offer, PeerInfo
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.domain.tasks import TEXT_GENERATION, canonical_task
from uia_lab.inference_backend_manager import BackendManager, get_backend_manager
from uia_lab.lending import Lending
from uia_lab.p2p.node import P2PNode
from uia_lab.p2p.settings import LISTEN, P2PConfig
from uia_lab.p2p.trust import MemoryTrust

__all__ = ["InferenceChunk", "InferenceResponse", "LibP2PInferenceNode", "PeerCapability"]

_KEYS = (
    "bootstrap_peers", "enable_mdns", "discovery_interval", "request_timeout", "mode", "listen", "key_path",
    "network",
)  # fmt: skip
_LOCAL = "local:"


class PeerCapability(StrEnum):
    """A task that a node lends."""

    TEXT_GENERATION = "text-generation"
    TEXT_EMBEDDING = "text-embedding"
    IMAGE_GENERATION = "image-generation"
    IMAGE_CLASSIFICATION = "image-classification"
    AUDIO_TRANSCRIPTION = "audio-transcription"
    TRANSLATION = "translation"
    SUMMARIZATION = "summarization"


class InferenceResponse(msgspec.Struct, frozen=True, kw_only=True):
    """How a request ended.

    Args:
        request_id: Its id.
        result: The whole answer; None where there is none.
        peer_id: Who answered; the node's own id where it did so itself, empty where nobody did.
        latency_ms: From the call to the end.
        success: Whether it was answered.
        error: Why not.
        attempts: Every attempt, in order.
    """

    request_id: str
    result: Any = None
    peer_id: str = ""
    latency_ms: float = 0.0
    success: bool = False
    error: str | None = None
    attempts: tuple[Attempted, ...] = ()


class InferenceChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer.

    Args:
        text: What it adds; empty where the task gives no text.
        index: Position in the whole answer, from 0, without a gap, whoever sends it.
        peer_id: Who sent it.
        result: What it adds where the task gives no text.
    """

    text: str
    index: int
    peer_id: str
    result: Any = None


class LibP2PInferenceNode:
    """A node that borrows and lends models, balancing its peers with a BackendManager of its own.

    Peers serve its requests, and its own models where no peer can. What peers ask for is served by its own
    models only. Belongs to the loop of :meth:`start`; it may be started again.

    Args:
        config: Any of ``bootstrap_peers`` (multiaddrs), ``enable_mdns`` (True), ``discovery_interval``
            (60 s), ``request_timeout`` (600 s), ``mode`` (``off``, ``private`` or ``open``; private),
            ``listen`` (multiaddrs of TCP; a free port of loopback), ``key_path`` (a key that ends with the
            node when absent), ``network`` (``default``).

    Raises:
        ConfigError: An unknown key, or a bad value.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        given = dict(config or {})
        for name in given:
            if name not in _KEYS:
                raise ConfigError(f"LibP2PInferenceNode has no setting {name!r}.{suggestion(name, _KEYS)}")
        timeout = given.pop("request_timeout", None)
        self._config = _node_config(given)
        # Whoever asks this node wants its peers, and need not name one; no model is the default of others.
        self._settings = {"external_policy": "any", "default_model": "", "default_embedding_model": ""}
        if timeout is not None:
            self._settings["request_timeout"] = timeout
        self._manager = BackendManager(self._settings)
        self._lending = Lending(self._manager, InferenceServiceConfig())
        self._node = P2PNode(
            self._config,
            serve=self._serve,
            trust=MemoryTrust(),
            capabilities=self._offer,
            load=self._load,
            instance_id=self._manager.instance_id,
        )
        self._peers: PeerBackends | None = None
        self._turning = asyncio.Lock()
        self._tasks: set[str] = set()
        self._looks: set[asyncio.Task[None]] = set()
        self._models: dict[str, tuple[Any, str | None]] = {}

    def __repr__(self) -> str:
        return f"<LibP2PInferenceNode {self._config.mode} {self._config.network!r} {self._node.peer_id}>"

    @property
    def node(self) -> P2PNode:
        """The node of the network below, for trust and invitations."""
        return self._node

    @property
    def manager(self) -> BackendManager:
        """The manager that balances the peers."""
        return self._manager

    @property
    def addresses(self) -> list[str]:
        """Full multiaddrs, with ``/p2p/<id>``, at which it listens; empty while it is stopped."""
        return self._node.addresses

    @property
    def peers(self) -> list[PeerInfo]:
        """Every peer it knows of."""
        return self._node.peers

    async def start(self) -> None:
        """Joins the network.

        Raises:
            BackendFailed: It cannot; the message says why and what to do.
        """
        async with self._turning:
            if self._peers is not None:
                return
            if self._manager.closed:
                self._renew()
            for model_id in list(self._models):
                await self._manager.probe(_LOCAL + model_id)
            await self._node.start()
            self._peers = PeerBackends(self._node, self._manager)
            await self._peers.start()

    async def stop(self) -> None:
        """Leaves the network, and ends every request; models stay registered for the next start."""
        async with self._turning:
            peers, self._peers = self._peers, None
            if peers is not None:
                await peers.stop()
            for look in self._looks:
                look.cancel()
            await asyncio.gather(*self._looks, return_exceptions=True)
            try:
                await self._node.stop()
            finally:
                await self._manager.aclose()

    def register_capability(self, capability: PeerCapability | str) -> None:
        """Lends a task, for every registered model.

        Raises:
            BadRequest: No such capability.
        """
        self._tasks.add(member(PeerCapability, capability, "capability").value)
        for model_id in self._models:
            self._register(model_id)

    def register_model(
        self, model_id: str, handler: Callable[..., Any] | None = None, *, digest: str | None = None
    ) -> None:
        """Lends a model, for the registered capabilities (text generation where there are none).

        Args:
            model_id: Its name.
            handler: Function, generator, async function or async generator that serves it, called with those
                of ``request, task, model, inputs, parameters`` it accepts. Without one the manager of this
                process (``get_backend_manager()``) serves it, once it can.
            digest: Digest of the weights behind a handler that continues exactly behind
                ``request.resumed.text``: then a broken answer goes on at another node with the same digest.

        Raises:
            BadRequest: No name, or a handler that cannot be called.
        """
        if not isinstance(model_id, str) or not model_id:
            raise BadRequest(f"model_id must be a non-empty string, not {model_id!r}", param="model_id")
        if handler is None:
            instance: Any = _SharedModel(model_id)
        elif callable(handler):
            instance = handler
        else:
            raise BadRequest(f"handler must be callable, not {handler!r}", param="handler")
        self._models[model_id] = instance, digest
        self._register(model_id)

    async def find_peers_for_task(
        self, task: str, model: str | None = None, max_peers: int = 5
    ) -> list[PeerInfo]:
        """Connected peers that could serve a request now, the best one first.

        Args:
            task: Task name or alias.
            model: Model name; None for any.
            max_peers: How many at most.

        Raises:
            BadRequest: No such task.
        """
        task = canonical_task(task)
        able = [info for info in self.peers if info.connected and _offers(info, task, model)]
        # Whole answers and streams are measured apart; a kind that was not asked for yet is alike for all.
        scores: defaultdict[str, float] = defaultdict(float)
        for stream in (False, True):
            decision = self._manager.explain(task, model, [BackendType.P2P], stream=stream)
            for item in decision.candidates:
                if item.kept and item.score is not None:
                    scores[item.backend_id] += item.score if decision.lower_is_better else -item.score
        ids = {peer_id: backend_id for backend_id, peer_id in self._peer_ids().items()}
        able.sort(key=lambda info: scores.get(ids.get(info.peer_id, ""), float("inf")))
        return able[: max(0, max_peers)]

    async def submit_inference_request(
        self,
        task: str,
        model: str | None,
        inputs: Any,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is the specification's
    ) -> InferenceResponse:
        """Has a request answered by a peer; by the next one where one fails.

        Args:
            task: Task name or alias.
            model: Model name; None for any.
            inputs: Task inputs.
            parameters: Sampling and task parameters under their OpenAI names.
            timeout: Seconds for everything.

        Raises:
            BadRequest: A bad argument. How the request itself ends is in the response.
        """
        request = self._request(task, model, inputs, parameters, timeout, stream=False)
        began = time.monotonic()
        answered_by, pieces, end = "", [], None
        error: InferenceError | None = None
        try:
            async with aclosing(self._events(request)) as events:
                async for event in events:
                    if isinstance(event, Started):
                        answered_by = event.backend_id
                    elif isinstance(event, Switched):
                        answered_by = event.to_id
                    elif isinstance(event, Chunk):
                        pieces.append(event)
                    elif isinstance(event, Finished):
                        end = event
        except InferenceError as caught:
            error = caught
        return InferenceResponse(
            request_id=request.id,
            result=end.result if end is not None else None,
            peer_id=self._peer_of(answered_by) if end is not None else "",
            latency_ms=(time.monotonic() - began) * 1000,
            success=end is not None,
            error=None if error is None else error.message,
            attempts=end.attempts if end is not None else (),
        )

    async def stream_inference_request(
        self,
        task: str,
        model: str | None,
        inputs: Any,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncGenerator[InferenceChunk, None]:
        """The answer as it comes; arguments as for :meth:`submit_inference_request`.

        Raises:
            InferenceError: How the request failed.
        """
        request = self._request(task, model, inputs, parameters, timeout, stream=True)
        peer_id = ""
        async with aclosing(self._events(request)) as events:
            async for event in events:
                if isinstance(event, Started):
                    peer_id = self._peer_of(event.backend_id)
                elif isinstance(event, Switched):
                    peer_id = self._peer_of(event.to_id)
                elif isinstance(event, Chunk):
                    delta = event.delta
                    yield InferenceChunk(
                        text=delta.text if isinstance(delta, Text) else "",
                        index=event.index,
                        peer_id=peer_id,
                        result=delta.value if isinstance(delta, Result) else None,
                    )

    def _renew(self) -> None:
        """A manager of no more use is followed by one of the same identity."""
        manager = BackendManager(self._settings)
        manager.instance_id = self._manager.instance_id
        self._manager = manager
        self._lending = Lending(manager, InferenceServiceConfig())
        for model_id in self._models:
            self._register(model_id)

    def _register(self, model_id: str) -> None:
        if self._manager.closed:
            return
        instance, digest = self._models[model_id]
        capabilities = BackendCapabilities(
            supported_tasks=self._tasks or {TEXT_GENERATION},
            supported_models={model_id},
            supports_streaming=True,
            resume=digest is not None,
            external=False,
            model_digest={model_id: digest} if digest is not None else {},
        )
        self._manager.register_backend(
            _LOCAL + model_id, BackendType.GPU, model_id, instance, capabilities=capabilities
        )
        if self._peers is not None:
            # It is lent once somebody has looked at it, and nobody else may have used this manager yet.
            look = asyncio.create_task(self._look(_LOCAL + model_id), name="uia-p2p-look")
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)

    async def _look(self, backend_id: str) -> None:
        with contextlib.suppress(InferenceError):
            # It may be replaced while it is looked at.
            await self._manager.probe(backend_id)

    def _request(
        self,
        task: str,
        model: str | None,
        inputs: Any,
        parameters: Mapping[str, Any] | None,
        timeout: float | None,
        *,
        stream: bool,
    ) -> InferenceRequest:
        return InferenceRequest(
            task,
            model,
            inputs,
            parameters=dict(parameters or {}),
            stream=stream,
            routing=RoutingHints(preferred_types=(BackendType.P2P,), deadline_s=timeout),
        )

    async def _events(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        if self._peers is None:
            raise NoBackendAvailable("the node is not started; await node.start() first")
        async with aclosing(self._manager.open(request)) as events:
            async for event in events:
                yield event

    def _serve(self, request: InferenceRequest) -> AsyncIterator[Event]:
        return self._lending.serve(request)

    def _offer(self) -> Offer:
        return self._lending.offer()

    def _load(self) -> Load:
        return self._lending.load()

    def _peer_ids(self) -> dict[str, str]:
        """The peer ids of the backends that are peers."""
        return {
            item.backend_id: str(item.metadata.get("peer_id", ""))
            for item in self._manager.list_backends(BackendType.P2P)
        }

    def _peer_of(self, backend_id: str) -> str:
        if backend_id.startswith(_LOCAL):
            return self._node.peer_id
        return self._peer_ids().get(backend_id, "")


class _SharedModel:
    """A model of the manager of this process, which lends what it would lend anyway."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._lent_by: tuple[BackendManager, Lending] | None = None

    async def start(self) -> None:
        """Nothing to get ready."""

    async def stop(self) -> None:
        """Nothing to close: the manager is the process's."""

    async def probe(self) -> Probe:
        """Whether the manager can serve the model, and would lend it."""
        manager = get_backend_manager()
        for backend in manager.list_backends():
            if self._model_id in backend.models and backend.status is BackendStatus.UNKNOWN:
                # Nobody has used that manager yet, and so nobody has looked.
                await manager.probe(backend.backend_id)
        offered = {model.name: model for model in self._lent().offer().models}.get(self._model_id)
        if offered is None:
            reason = "no backend of this process's manager serves it, or none that is lent"
            return Probe(BackendStatus.UNHEALTHY, reason, frozenset())
        digest = {offered.name: offered.digest} if offered.resume and offered.digest else {}
        capabilities = BackendCapabilities(
            supported_tasks=frozenset(offered.tasks),
            supported_models={offered.name},
            supports_streaming=True,
            features=frozenset(offered.features),
            context_length=offered.context_length,
            resume=bool(digest),
            external=False,
            model_digest=digest,
        )
        return Probe(BackendStatus.HEALTHY, "served by this process", frozenset({offered.name}), capabilities)

    def infer(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """The manager's answer."""
        return self._lent().serve(request)

    def _lent(self) -> Lending:
        manager = get_backend_manager()
        if self._lent_by is None or self._lent_by[0] is not manager:
            self._lent_by = manager, Lending(manager, InferenceServiceConfig())
        return self._lent_by[1]


def _offers(info: PeerInfo, task: str, model: str | None) -> bool:
    offer = info.offer
    if offer is None:
        return False
    if task in offer.tasks:
        return True
    return any(task in one.tasks and model in (None, one.name) for one in offer.models)


def _node_config(given: Mapping[str, Any]) -> P2PConfig:
    """The settings of the node.

    Raises:
        ConfigError: A bad value.
    """
    values = {"listen": LISTEN, **{name: value for name, value in given.items() if value is not None}}
    for name in ("listen", "bootstrap_peers"):
        items = values.get(name, ())
        if isinstance(items, str) or not all(isinstance(item, str) for item in items):
            raise ConfigError(f"{name} must be a list of multiaddrs, not {items!r:.200}")
        values[name] = tuple(items)
    if "key_path" in values:
        values["key_path"] = Path(values["key_path"]).expanduser()
    try:
        return P2PConfig(**values)
    except (BadRequest, TypeError) as error:
        raise ConfigError(str(error)) from None
