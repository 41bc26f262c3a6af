"""A peer of the libp2p network as a backend."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import msgspec

from uia_lab.dialects.upstream_errors import open_to_others
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import InferenceError, ModelNotFound, NotAllowed
from uia_lab.domain.events import Event
from uia_lab.domain.peers import Offer, OfferedModel, PeerInfo
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TASKS
from uia_lab.p2p.node import P2PNode

LARGEST_LOAD = 1_000_000


class P2PBackend:
    """Sends requests to one peer; it decides nothing and sets no deadlines.

    Belongs to the loop of the node.

    Args:
        node: Our node.
        peer_id: Whom it asks.
    """

    def __init__(self, node: P2PNode, peer_id: str) -> None:
        self.peer_id = peer_id
        self._node = node
        self._told = False

    def __repr__(self) -> str:
        return f"<P2PBackend {self.peer_id}>"

    @property
    def capabilities(self) -> BackendCapabilities:
        """What the peer offers, as far as it has said so."""
        return capabilities_of(self._node.peer(self.peer_id))

    async def start(self) -> None:
        """Nothing to get ready: the connection is the node's."""

    async def stop(self) -> None:
        """Nothing to close: the connection is the node's."""

    def told(self) -> None:
        """The node has news of the peer: the next look takes what it knows, and dials nobody."""
        self._told = True

    async def probe(self) -> Probe:
        """What the node knows of the peer while it is connected; otherwise it is dialled.

        Raises:
            InferenceError: It cannot be reached.
        """
        told, self._told = self._told, False
        info = self._node.peer(self.peer_id)
        if (info is None or not info.connected) and not told:
            info = await self._node.refresh(self.peer_id)
        if info is None or not info.connected:
            return Probe(BackendStatus.OFFLINE, info.reason if info is not None else "not known any more")
        if info.offer is None or not (info.offer.models or info.offer.tasks):
            return Probe(BackendStatus.UNHEALTHY, "connected, but it lends nothing")
        away = "" if info.rtt_ms is None else f", {info.rtt_ms:.1f} ms away"
        load = info.load
        return Probe(
            BackendStatus.HEALTHY,
            f"connected{away}",
            frozenset(model.name for model in info.offer.models),
            capabilities_of(info),
            # A hint that the peer gives of itself; what it is made of cannot be checked.
            None if load is None else min(max(0, load.in_flight + load.queued), LARGEST_LOAD),
        )

    async def infer(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """The peer's answer; closing it cancels the request there.

        Raises:
            InferenceError: As the peer gave it. What it refuses us, others may do all the same.
        """
        if request.model is None and (model := self._default(request.task)) is not None:
            request = msgspec.structs.replace(request, model=model)
        answer = self._node.request(self.peer_id, request)
        try:
            async with aclosing(answer):  # type: ignore[type-var]
                async for event in answer:
                    yield event
        except NotAllowed as error:
            # A model that is not lent to us says nothing of the peer's others.
            raise open_to_others(ModelNotFound(error.message, param=error.param)) from None
        except InferenceError as error:
            raise open_to_others(error) from None

    def _default(self, task: str) -> str | None:
        """The first model that the peer lends for a task, since a peer has to be asked for one by name."""
        info = self._node.peer(self.peer_id)
        models = info.offer.models if info is not None and info.offer is not None else ()
        return next((model.name for model in models if task in model.tasks), None)


def capabilities_of(info: PeerInfo | None) -> BackendCapabilities:
    """What a peer can do for us, by its offer.

    Args:
        info: What is known of it.
    """
    offer = info.offer if info is not None and info.offer is not None else Offer()
    models = offer.models
    named = {task for model in models for task in model.tasks}
    return BackendCapabilities(
        supported_tasks=TASKS & (named | set(offer.tasks)),
        supported_models=frozenset(model.name for model in models),
        supports_streaming=True,
        hardware_types=frozenset(offer.hardware_types),
        protocols=frozenset({"libp2p"}),
        features=frozenset().union(*(_common(models, task) for task in named)),
        context_length=min((model.context_length for model in models if model.context_length), default=None),
        resume=any(model.resume for model in models),
        external=not (info is not None and info.trusted and info.ours),
        # Of the others the weights may be the same, and the way they go on is not.
        model_digest={model.name: model.digest for model in models if model.resume and model.digest},
    )


def _common(models: Iterable[OfferedModel], task: str) -> frozenset[str]:
    """Features that every model of a task has: which one will be asked for is not known here."""
    having = [frozenset(model.features) for model in models if task in model.tasks]
    return frozenset.intersection(*having) if having else frozenset()
