"""Every setting, its environment variable and its help."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from traitlets import Bool, Dict, Enum, Float, Int, List, TraitError, TraitType, Unicode, validate
from traitlets.config import Config, Configurable

from uia_lab import config_files
from uia_lab.domain.errors import NotAllowed, suggestion

log = logging.getLogger(__name__)


class ConfigError(TraitError, ValueError):
    """A setting that does not exist, or a value it does not take; the message names both."""


class InferenceServiceConfig(Configurable):
    """Settings of the service, by keyword, Jupyter config file, command line or environment.

    In rising order a value comes from its default, its environment variable, a Jupyter config file
    (``c.InferenceServiceConfig.x = ...``), the command line, a keyword argument. What the administrator of
    the system locked (``locked_settings``) stays as it is, whoever says otherwise.

    Raises:
        ConfigError: An unknown setting or a bad value, with what is allowed.
    """

    enable_backend_manager = Bool(
        True, help="The manager that every door answers through. It cannot be switched off."
    ).tag(config=True)
    enable_hf_server = Bool(True, help="Serve the models of this machine, and HTTP when standalone.").tag(
        config=True
    )
    enable_websocket = Bool(True, help="Open the WebSocket door `ws/{client_id}`.").tag(config=True)
    enable_libp2p = Bool(False, help="Join a libp2p network of peers.").tag(config=True, env="LIBP2P_ENABLE")
    enable_api_backends = Bool(True, help="Discover remote APIs.").tag(config=True)
    enable_cli_backends = Bool(True, help="Discover command-line tools, and run those that were added.").tag(
        config=True, env="UIA_ENABLE_CLI_BACKENDS"
    )
    enable_mcp = Bool(True, help="Open the MCP door `mcp`, and take MCP servers as backends.").tag(
        config=True
    )

    backend_health_checks = Bool(True, help="Probe backends in the background.").tag(config=True)
    backend_health_check_interval = Float(
        60.0, min=0.1, help="Upper bound in seconds between two probes of a backend."
    ).tag(config=True, env="BACKEND_HEALTH_CHECK_INTERVAL")
    load_balancing_strategy = Unicode(
        "best_performance", help="round_robin, least_loaded, best_performance or an installed one."
    ).tag(config=True, env="LOAD_BALANCING_STRATEGY")
    external_policy = Enum(
        ["never", "named", "any"],
        "named",
        help="When a backend that leaves the machine, costs money or runs code may be chosen: never, "
        "only when the request names its model, id or type, or always.",
    ).tag(config=True, env="UIA_EXTERNAL_POLICY")
    queue_size = Int(100, min=0, help="Requests that may wait for one model.").tag(config=True)
    queue_timeout = Float(30.0, min=0, help="Seconds a request may wait for a free backend.").tag(config=True)
    request_timeout = Float(600.0, min=0.001, help="Seconds for a whole request.").tag(config=True)
    max_concurrent_requests = Int(
        512, min=1, help="Requests at once, whoever asks and those that wait included; more get a 503."
    ).tag(config=True)
    max_attempts = Int(3, min=1, help="Backends tried for one request at most.").tag(config=True)

    hf_server_host = Unicode("127.0.0.1", help="Address `serve` listens at.").tag(
        config=True, env="HF_SERVER_HOST"
    )
    hf_server_port = Int(
        8000, min=0, max=65535, help="Port `serve` listens at; 0 takes a free one. Inside Jupyter unused."
    ).tag(config=True, env="HF_SERVER_PORT")
    hf_auto_discover_skills = Bool(
        True,
        help="Offer every model of the catalogue, and list those in the hub's cache and in model_folders.",
    ).tag(config=True, env="HF_AUTO_DISCOVER")
    hf_enable_hardware_detection = Bool(
        True, help="Look at cores and memory at start, and size the engine by them."
    ).tag(config=True, env="HF_ENABLE_HARDWARE_DETECTION")
    default_model = Unicode(
        "SmolLM2-135M-Instruct", help="Model of a text generation request that names none."
    ).tag(config=True, env="UIA_DEFAULT_MODEL")
    default_embedding_model = Unicode(
        "all-MiniLM-L6-v2", help="Model of an embedding request that names none."
    ).tag(config=True, env="UIA_DEFAULT_EMBEDDING_MODEL")
    max_loaded_models = Int(
        3, min=1, help="Local models in memory at once; the idle one not used for longest makes room."
    ).tag(config=True)
    model_folders = List(
        Unicode(),
        help="Folders whose models (folders, GGUF files) are listed as loadable, with the hub's cache.",
    ).tag(config=True)
    model_keep_alive = Float(
        1800.0, help="Seconds an idle local model stays loaded; 0 keeps it for ever."
    ).tag(config=True)

    store_path = Unicode(
        "",
        help="SQLite file of the request log and the aliases; empty takes uia_lab/uia.sqlite3 in Jupyter's "
        "data folder, `:memory:` keeps nothing.",
    ).tag(config=True, env="UIA_STORE_PATH")
    log_prompts = Bool(
        False, help="Keep prompts and answers in the request log; otherwise only sizes and hashes."
    ).tag(config=True)
    log_retention_days = Float(30.0, min=0.001, help="Days a request stays in the log.").tag(config=True)
    log_max_rows = Int(1_000_000, min=1, help="Requests the log keeps at most.").tag(config=True)

    p2p_mode = Enum(
        ["off", "private", "open"],
        "private",
        help="Who may connect: nobody, peers trusted by id or by an invite, or anybody of the network.",
    ).tag(config=True, env="LIBP2P_MODE")
    p2p_network = Unicode("default", help="Name of the network; peers of another one are refused.").tag(
        config=True, env="LIBP2P_NETWORK"
    )
    p2p_listen = List(
        Unicode(),
        ["/ip4/127.0.0.1/tcp/0"],
        help="Multiaddrs to listen at; port 0 takes a free one. Other machines reach this one only at an "
        "address of their network; /ip4/0.0.0.0/tcp/4001 is every address.",
    ).tag(config=True, env="LIBP2P_LISTEN")
    p2p_key_path = Unicode(
        "",
        help="File of the key that peers know this node by; empty takes uia_lab/p2p.key in Jupyter's data "
        "folder.",
    ).tag(config=True, env="LIBP2P_KEY_PATH")
    p2p_shared_models = List(
        Unicode(),
        ["*"],
        help="Models that peers may ask for, by name or pattern, as far as they run on this machine; empty "
        "lends nothing.",
    ).tag(config=True)
    p2p_shared_tasks = List(Unicode(), help="Tasks that peers may ask for; empty takes all.").tag(config=True)
    p2p_lent_backends = List(
        Unicode(),
        help="Ids of backends that are lent to peers although they leave the machine, cost money, are called "
        "with a key or run code; no other such backend ever is.",
    ).tag(config=True)
    libp2p_bootstrap_peers = List(
        Unicode(), help="Multiaddrs of peers to dial first, each with /p2p/<peer id>."
    ).tag(config=True, env="LIBP2P_BOOTSTRAP_PEERS")
    libp2p_enable_mdns = Bool(
        True, help="Look for peers on the local network, and be found there; not where only loopback listens."
    ).tag(config=True, env="LIBP2P_ENABLE_MDNS")
    libp2p_discovery_interval = Float(
        60.0, min=0.1, max=86_399.0, help="Upper bound in seconds between two rounds of looking for peers."
    ).tag(config=True, env="LIBP2P_DISCOVERY_INTERVAL")
    api_backends = List(Unicode(), help="APIs to discover; empty takes all.").tag(config=True)
    discovery_ports = List(
        Int(),
        [1234, 3000, 8000, 8080, 11434],
        help="Ports of this machine where inference servers are looked for (LM Studio, TGI, vLLM, llama.cpp, "
        "Ollama); empty looks at none.",
    ).tag(config=True, env="UIA_DISCOVERY_PORTS")
    cli_backends = List(
        Unicode(), help="Tools to discover: claude, codex, gemini, llm, ollama ...; empty takes all."
    ).tag(config=True)
    backends = List(
        Dict(),
        help="Backends to register at each start, each with the fields of POST /backends: APIs, WebSockets, "
        "command-line tools of one's own, hybrids.",
    ).tag(config=True)
    api_key_files = Dict(
        Unicode(),
        help="Files that hold the keys backends are called with, by the key's name; what is not here is "
        "looked for in the environment and in the system's keyring (service `uia_lab`). Not the keys "
        "themselves: Jupyter writes its configuration into its debug log.",
    ).tag(config=True)
    api_key_variables = List(
        Unicode(),
        help="Variables of the environment that may hold keys of backends, beside the providers' own and "
        "those that end in `_API_KEY`.",
    ).tag(config=True)
    locked_settings = List(
        Unicode(), help="Settings nobody may change; counts in the config files of the whole system only."
    ).tag(config=True)
    allowed_endpoint_hosts = List(
        Unicode(), help="Link-local or metadata hosts that backends may be at all the same."
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        settings = self.class_traits(config=True)
        unknown = [
            name for name in kwargs if name not in settings and name not in ("config", "parent", "log")
        ]
        if unknown:
            raise ConfigError(f"unknown setting {unknown[0]!r}.{suggestion(unknown[0], settings)}")
        self._locks: Mapping[str, Any] = {}
        for name, trait in settings.items():
            variable = trait.metadata.get("env")
            if variable and variable in os.environ:
                self._set_from_environment(name, trait, variable)
        try:
            super().__init__(**kwargs)
        except ConfigError:
            raise
        except TraitError as error:
            raise ConfigError(str(error)) from error
        self._lock()

    @classmethod
    def from_files(cls, **kwargs: Any) -> "InferenceServiceConfig":
        """The settings that a server of this user's has: Jupyter's config files count.

        Args:
            **kwargs: Settings that count before the files.

        Raises:
            ConfigError: An unknown setting or a bad value.
        """
        return cls(config=config_files.of_jupyter(), **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        locks = self.__dict__.get("_locks", {})
        if name in locks and value != locks[name]:
            raise ConfigError(f"{name} is locked by the administrator of this system at {locks[name]!r}")
        super().__setattr__(name, value)

    def require_unlocked(self, name: str) -> None:
        """Passes when a setting may be changed while a server runs.

        Raises:
            NotAllowed: The administrator of the system locked it.
        """
        if name in self._locks:
            raise NotAllowed(
                f"{name} is locked by the administrator of this system at {self._locks[name]!r}", param=name
            )

    def _lock(self) -> None:
        try:
            locks = config_files.locked()
        except RuntimeError as error:
            raise ConfigError(str(error)) from error
        traits = self.class_traits(config=True)
        values = {}
        for name, given in locks.items():
            if name not in traits:
                raise ConfigError(f"locked_settings: unknown setting {name!r}")
            value = values[name] = traits[name].default() if given is config_files.DEFAULT else given
            if getattr(self, name) != value:
                log.warning("%s: locked by the administrator of this system at %r", name, value)
                setattr(self, name, value)
        self._locks = values

    def _set_from_environment(self, name: str, trait: TraitType[Any, Any], variable: str) -> None:
        text = os.environ[variable]
        try:
            if isinstance(trait, List):
                value: Any = [item.strip() for item in text.split(",") if item.strip()]
                if isinstance(trait._trait, Int):  # noqa: SLF001 - the kind of its items has no other name
                    value = [int(item) for item in value]
            elif isinstance(trait, Float):
                value = float(text)
            else:
                value = trait.from_string(text)
            setattr(self, name, value)
        except (TraitError, ValueError) as error:
            raise ConfigError(f"{variable}={text!r} (setting {name}): {error}") from error

    def _load_config(
        self, cfg: Config, section_names: list[str] | None = None, traits: dict[str, Any] | None = None
    ) -> None:
        known = self.class_traits(config=True)
        for name in cfg.get(type(self).__name__, {}):
            if name not in known:
                raise ConfigError(f"unknown setting {type(self).__name__}.{name}.{suggestion(name, known)}")
        super()._load_config(cfg, section_names, traits)

    @validate("enable_backend_manager")
    def _manager_is_needed(self, proposal: Mapping[str, Any]) -> bool:
        if not proposal["value"]:
            raise ConfigError("enable_backend_manager=False is not possible: every door answers through it")
        return True
