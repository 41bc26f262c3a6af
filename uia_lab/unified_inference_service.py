"""UnifiedInferenceService: builds, starts and stops all of the house; nothing else does."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.keys import KeyRing
from uia_lab.access.limits import Limiter
from uia_lab.backends.cli.maker import CliMaker
from uia_lab.backends.cli.surroundings import House
from uia_lab.backends.factory import BackendFactory, secrets_of
from uia_lab.backends.mcp_maker import McpMaker
from uia_lab.config import InferenceServiceConfig
from uia_lab.discovery.apis import ApiDiscovery, Found
from uia_lab.discovery.tools import ToolDiscovery
from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BadRequest, NoBackendAvailable
from uia_lab.doors.application import HttpServer
from uia_lab.doors.mcp import INSTALL as MCP_INSTALL
from uia_lab.doors.mcp import is_installed as mcp_is_installed
from uia_lab.engine.catalogue import Catalogue, model_cache_dir
from uia_lab.engine.hardware import detect
from uia_lab.inference_backend_manager import BackendManager, get_backend_manager
from uia_lab.kept_backends import KeptBackends
from uia_lab.kept_state import KeptState
from uia_lab.local_models import LocalModels
from uia_lab.manager.history import History
from uia_lab.p2p.node import P2PNode
from uia_lab.peer_network import PeerNetwork
from uia_lab.store.request_log import RequestLog
from uia_lab.traffic_replay import TrafficReplay

__all__ = ["InferenceServiceConfig", "UnifiedInferenceService", "start_unified_service"]

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Part:
    """State of one part of the service.

    Args:
        state: ``running``, ``off`` (by configuration), ``unavailable`` (not in this version) or ``failed``.
        reason: Why, in words.
    """

    state: str
    reason: str


class UnifiedInferenceService:
    """The manager with its backends and doors, as one thing that starts and stops.

    A part that cannot start is reported in :attr:`parts` and the rest runs. Use it as an asynchronous
    context manager, or :meth:`start` and :meth:`stop` it, within a running loop.

    Args:
        config: Settings; the defaults when absent.
        manager: A manager to use; the process-wide one when absent.

    Attributes:
        keys: Who may come in by a key.
        limits: What those who came in may take.
        backends: Those that people register by their address.
        apis: What finds APIs; None while it is off.
        tools: What finds command-line tools; None while it is off.
        door_url: Where somebody else's server carries the doors, for processes of this machine.
        kept: What outlives it.
        models: The models of this machine.
        replay: Past traffic under another strategy.
        history: The last quarter of an hour of traffic.
        peers: The network of peers.
    """

    def __init__(
        self, config: InferenceServiceConfig | None = None, *, manager: BackendManager | None = None
    ) -> None:
        self.config = config if config is not None else InferenceServiceConfig()
        self._manager = manager if manager is not None else get_backend_manager(self.config)
        self.keys = KeyRing()
        self.limits = Limiter(
            self.keys,
            self.config.max_concurrent_requests,
            self._default_model,
            self._manager.clock,
        )
        self._factory = BackendFactory(
            secrets_of(self.config),
            EndpointPolicy(self.config.allowed_endpoint_hosts),
            self._manager.instance_id,
        )
        self.door_url: str | None = None
        self._tools = CliMaker(
            self._factory.secrets,
            House(self._manager.instance_id, self.keys, self._url_of_doors),
            enabled=self.config.enable_cli_backends,
        )
        self._factory.makers[BackendType.CLI] = self._tools
        self._factory.makers[BackendType.MCP] = McpMaker(
            self._factory.secrets,
            self._factory.endpoints,
            self._factory.session,
            self._manager.instance_id,
            enabled=self.config.enable_mcp,
        )
        self.backends = KeptBackends(self._manager, self._factory)
        self.apis: ApiDiscovery | None = None
        self.tools: ToolDiscovery | None = None
        self.kept = KeptState(self.config, self._manager, self.keys, self.backends)
        self.models = LocalModels(self._manager, self.config, Catalogue(model_cache_dir()))
        self.replay = TrafficReplay(self._manager)
        self.history = History(self._manager, self._manager.loops.call)
        self.peers = PeerNetwork(self.config, self._manager)
        self._server: HttpServer | None = None
        self._parts: dict[str, Part] = {}
        self._starting: asyncio.Task[None] | None = None
        self._ready = False

    def __repr__(self) -> str:
        return f"<UnifiedInferenceService {self.instance_id}: {'ready' if self._ready else 'stopped'}>"

    @property
    def instance_id(self) -> str:
        """The name of this service wherever it shows itself."""
        return self._manager.instance_id

    @property
    def ready(self) -> bool:
        """Whether it has started and not been stopped."""
        return self._ready

    @property
    def parts(self) -> dict[str, dict[str, str]]:
        """State and reason of every part, by name."""
        return {name: asdict(part) for name, part in self._parts.items()}

    @property
    def request_log(self) -> RequestLog | None:
        """What became of every request; None while the store is not open."""
        store = self.kept.store
        return None if store is None else store.request_log

    def found(self) -> list[Found]:
        """What discovery found, used or not, each with its reason."""
        return [item for finder in (self.apis, self.tools) if finder is not None for item in finder.found()]

    def get_backend_manager(self) -> BackendManager:
        """The manager."""
        return self._manager

    def get_hf_server(self) -> HttpServer | None:
        """The HTTP server, or None where none listens (switched off, or inside Jupyter)."""
        return self._server

    def get_p2p_node(self) -> P2PNode | None:
        """The libp2p node, or None where it is off or could not start."""
        return self.peers.node

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self, *, listen: bool = True, store: bool = True) -> None:
        """Starts every part that is switched on.

        Args:
            listen: False where somebody else's server carries the doors.
            store: False to keep everything in memory only.

        Raises:
            NoBackendAvailable: It was stopped, before or meanwhile.
        """
        if self._manager.closed:
            raise NoBackendAvailable("this service was stopped; build a new one to start again")
        # A task of its own, which a stop that comes meanwhile can end.
        starting = self._starting = asyncio.create_task(self._start(listen, store), name="uia-start")
        try:
            await starting
        except asyncio.CancelledError:
            here = asyncio.current_task()
            if here is not None and here.cancelling():
                raise
            raise NoBackendAvailable("this service was stopped while it started") from None

    async def _start(self, listen: bool, store: bool) -> None:
        config = self.config
        self._manager.admit = self.limits.admit
        self.history.start()
        self._parts["backend_manager"] = Part("running", f"strategy {self._manager.strategy_name}")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._part("store", True, lambda: self.kept.open(in_memory=not store)))
            await self._part("hardware", config.hf_enable_hardware_detection, self._look_at_hardware)
            await self._part("local_models", config.enable_hf_server, self._offer_local_models)
        self._parts["websocket"] = (
            Part("running", "ws/{client_id}") if config.enable_websocket else Part("off", "enable_websocket")
        )
        self._parts["mcp"] = self._mcp()
        if listen:
            await self._part("http_server", config.enable_hf_server, self._listen)
        await self._part("backends", bool(config.backends), self._register_backends, "none is configured")
        # After the store, whose backends come first, and the server, whose own port is not looked at.
        await self._part("api_backends", config.enable_api_backends, self._discover_apis)
        await self._part("cli_backends", config.enable_cli_backends, self._discover_tools)
        await self._part("libp2p", config.enable_libp2p and config.p2p_mode != "off", self._join_peers)
        self._ready = True

    async def stop(self) -> None:
        """Ends every request and closes every part; nothing of it is left behind."""
        self._ready = False
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            await self._within(asyncio.wait({starting}), "the start")
        if self.apis is not None:
            apis, self.apis, self.backends.added = self.apis, None, None
            await self._within(apis.stop(), "the discovery of APIs")
        if self.tools is not None:
            tools, self.tools = self.tools, None
            await self._within(tools.stop(), "the discovery of command-line tools")
        if self._server is not None:
            server, self._server = self._server, None
            await self._within(server.stop(), "the HTTP server")
        await self._within(self.history.stop(), "the history")
        await self._within(self.peers.stop(), "the network of peers")
        await self._within(self._manager.aclose(), "the manager")
        await self._within(self.models.close(), "the local models")
        await self._within(self.backends.close(), "the connections to backends")
        # The last one: those that the manager has just cancelled are to be in the log.
        await self._within(self.kept.close(), "the store")

    async def _part(
        self,
        name: str,
        wanted: bool,
        start: Callable[[], Awaitable[str]],
        why_off: str = "switched off by configuration",
    ) -> None:
        if not wanted:
            self._parts[name] = Part("off", why_off)
            return
        try:
            self._parts[name] = Part("running", await start())
        except Exception as error:  # noqa: BLE001
            # Whatever keeps one part from starting, the others are of use without it.
            log.warning("%s did not start: %s", name, error)
            self._parts[name] = Part("failed", str(error))

    def _mcp(self) -> Part:
        if not self.config.enable_mcp:
            return Part("off", "enable_mcp")
        return Part("running", "mcp") if mcp_is_installed() else Part("unavailable", MCP_INSTALL)

    def _default_model(self, task: str) -> str | None:
        return self._manager.router.eligibility.default_models.get(task)

    async def _look_at_hardware(self) -> str:
        # Without the accelerators: asking torch takes seconds, and is done when somebody needs to know.
        return str(await asyncio.to_thread(detect))

    async def _offer_local_models(self) -> str:
        return ", ".join(self.models.offer())

    async def _discover_apis(self) -> str:
        config = self.config
        self.apis = ApiDiscovery(
            self._manager, self._factory, config.api_backends, config.discovery_ports, self._own_ports
        )
        self.backends.added = self.apis.give_way
        self.apis.start()
        ports = ", ".join(map(str, config.discovery_ports)) or "none"
        return f"looks at keys and addresses in the environment and at ports of this machine ({ports})"

    async def _discover_tools(self) -> str:
        self.tools = ToolDiscovery(self._manager, self._tools, self.config.cli_backends)
        self.tools.start()
        return f"looks for {', '.join(self.config.cli_backends) or 'all known tools'} on PATH"

    async def _register_backends(self) -> str:
        registered, refused = await self.backends.configure(self.config.backends)
        if refused:
            also = f" (registered: {', '.join(registered)})" if registered else ""
            raise BadRequest("; ".join(refused) + also)
        return ", ".join(registered)

    def _url_of_doors(self) -> str | None:
        return self.door_url or (self._server.url if self._server is not None else None)

    async def _join_peers(self) -> str:
        store = self.kept.store
        return await self.peers.start(
            None if store is None else store.peers, lasting=store is not None and store.lasting
        )

    def _own_ports(self) -> set[int]:
        port = urlsplit(self._server.url).port if self._server is not None else None
        return set() if port is None else {port}

    async def _listen(self) -> str:
        config = self.config
        if config.hf_server_host not in ("localhost", "::1") and not config.hf_server_host.startswith("127."):
            log.warning(
                "hf_server_host=%s is reachable from other machines: keys are all that protects the models",
                config.hf_server_host,
            )
        server = HttpServer(self, config.hf_server_host, config.hf_server_port)
        await server.start()
        self._server = server
        return server.url

    async def _within(self, closing: Awaitable[Any], what: str) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await closing
        except TimeoutError:
            log.error("%s did not close within %.0f s", what, STOP_TIMEOUT_S)  # noqa: TRY400


async def start_unified_service(config: InferenceServiceConfig | None = None) -> UnifiedInferenceService:
    """Builds the service and starts it.

    Args:
        config: Settings; the defaults when absent.

    Returns:
        The running service; ``await service.stop()`` ends it.
    """
    service = UnifiedInferenceService(config)
    await service.start()
    return service
