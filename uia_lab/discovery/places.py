"""Where APIs are looked for: the environment, and ports of this machine."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from uia_lab.access.secrets import Secrets
from uia_lab.backends.providers import PROVIDERS, Provider

OLLAMA_PORT = 11434


@dataclass(frozen=True, slots=True)
class Place:
    """One place where an API may be.

    Args:
        endpoint: Its address.
        source: What led there: a variable of the environment, or ``port 11434``.
        provider: Who is there, where that is known before anybody is asked.
        key: Name of the key it is called with; only ever for a host that the provider table or the
            environment names.
    """

    endpoint: str
    source: str
    provider: Provider | None = None
    key: str | None = None

    @property
    def guessed(self) -> bool:
        """Whether nobody named it: whoever listens at that port."""
        return self.source.startswith("port ")

    @property
    def shown(self) -> str:
        """The address as anybody may read it: without credentials, query and fragment."""
        try:
            parts = urlsplit(self.endpoint)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
            parts = urlsplit("")
        # An @ behind the host, as in a password with a slash, says that what stands before is none.
        if not host or "@" in parts.path + parts.query + parts.fragment:
            return f"the value of {self.source}, which is no address of a server"
        host = f"[{host}]" if ":" in host else host
        return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"


def places(
    providers: Iterable[Provider],
    secrets: Secrets,
    environ: Mapping[str, str],
    ports: Iterable[int],
) -> list[Place]:
    """Every place worth a look, each once. May read files of secrets: not on an event loop.

    Args:
        providers: Those that are wanted.
        secrets: Where keys are found.
        environ: The environment.
        ports: Ports of this machine.
    """
    wanted = {provider.name: provider for provider in providers}
    found: dict[str, Place] = {}
    for place in (*_of_providers(wanted.values(), secrets, environ), *_of_ollama(wanted, environ)):
        found.setdefault(place.endpoint, place)
    if any(provider.base_url is None for provider in wanted.values()):
        taken = {_authority(place.endpoint) for place in found.values()}
        for port in dict.fromkeys(ports):
            if ("127.0.0.1", port) not in taken:
                place = Place(f"http://127.0.0.1:{port}", f"port {port}")
                found.setdefault(place.endpoint, place)
    return list(found.values())


def _of_providers(
    wanted: Iterable[Provider], secrets: Secrets, environ: Mapping[str, str]
) -> Iterator[Place]:
    for provider in wanted:
        key = next((name for name in provider.keys if secrets.given(name) is not None), None)
        elsewhere = environ.get(provider.base_url_variable, "").strip()
        if elsewhere:
            own = provider.base_url is not None and _host(elsewhere) == _host(provider.base_url)
            # Behind another address there may be any server: who it is shows when it is asked.
            known = provider if own or not provider.keys else None
            yield Place(elsewhere.rstrip("/"), provider.base_url_variable, known, key)
        elif key is not None and provider.base_url is not None:
            yield Place(provider.base_url, key, provider, key)


def _of_ollama(wanted: Mapping[str, Provider], environ: Mapping[str, str]) -> Iterator[Place]:
    text = environ.get("OLLAMA_HOST", "").strip()
    if text and "ollama" in wanted and (endpoint := ollama_endpoint(text)) is not None:
        yield Place(endpoint, "OLLAMA_HOST", PROVIDERS["ollama"])


def ollama_endpoint(text: str) -> str | None:
    """The address that ``OLLAMA_HOST`` stands for; None where it is none.

    It has every form Ollama itself takes: ``host``, ``host:port``, ``:port`` or an address. ``0.0.0.0``,
    which tells a server to listen everywhere, is this machine for whoever calls it.
    """
    scheme, mark, _ = text.partition("://")
    try:
        parts = urlsplit(text if mark else f"http://{text}")
        port = parts.port
    except ValueError:
        return None
    if port is None and not mark:
        port = OLLAMA_PORT
    host = parts.hostname or "127.0.0.1"
    if host in ("0.0.0.0", "::"):  # noqa: S104 - where it is called, not where anything listens
        host = "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    return f"{scheme if mark else 'http'}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def _host(endpoint: str) -> str | None:
    try:
        return urlsplit(endpoint).hostname
    except ValueError:
        return None


def _authority(endpoint: str) -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(endpoint)
        return "127.0.0.1" if parts.hostname == "localhost" else parts.hostname, parts.port
    except ValueError:
        return None, None
