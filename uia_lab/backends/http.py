"""A backend behind an HTTP endpoint, in whichever dialect it speaks."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import msgspec

from uia_lab.access.endpoints import is_loopback
from uia_lab.access.secrets import Secret, Secrets, not_set
from uia_lab.backends.bodies import compressed, described, drain, form_of, is_compressed, json_of, read, said
from uia_lab.backends.client_session import SharedSession
from uia_lab.backends.listing import models_in
from uia_lab.backends.pictures import only_data
from uia_lab.backends.providers import Provider
from uia_lab.dialects.hints import instance_ids
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.upstream import Outgoing, Reader, UpstreamDialect
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BackendFailed, BadRequest, InferenceError, Unauthenticated
from uia_lab.domain.events import Event, Finished, Started
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.domain.texts import one_line

if TYPE_CHECKING:
    import aiohttp

MAX_ERROR = 64 << 10
MAX_LISTING = 8 << 20
MAX_ANSWER = 256 << 20
# A provider far away is asked for its models this seldom; its requests tell how it is.
LISTING_S = 600.0
_NO_KEY = b"<key>"
# What translating raises where a request is not of the form that its doors promise.
_UNFIT = (
    ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, msgspec.MsgspecError,
)  # fmt: skip


class _Call(msgspec.Struct, frozen=True):
    """One call, ready to be sent.

    Args:
        url: Where to.
        body: Makes what is sent; a form can be sent only once.
        headers: Beside that of the key.
        reader: Reads the answer.
    """

    url: str
    body: Callable[[], Any]
    headers: Mapping[str, str]
    reader: Reader


class HttpBackend:
    """Asks one endpoint; it decides nothing and sets no deadlines.

    Args:
        description: What it was registered as, with endpoint and dialect.
        provider: Who it is, for paths, headers and names of fields.
        dialect: The dialect it speaks.
        session: The shared client session.
        secrets: Where its key is found by the name in the description.
        instance_id: Our own name, which is added to ``x-uia-via``.
        clock: Seconds, monotonic.

    Attributes:
        models_loaded: How many models the server has in memory, where it says so.

    Raises:
        BadRequest: The description has no endpoint.
    """

    def __init__(
        self,
        description: BackendDescription,
        provider: Provider,
        dialect: UpstreamDialect,
        session: SharedSession,
        secrets: Secrets,
        instance_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if description.endpoint is None:
            raise BadRequest("an API needs an endpoint", param="endpoint")
        self.description = description
        self.provider = provider
        self.dialect = dialect
        self._base = description.endpoint.rstrip("/") + "/"
        self._external = not is_loopback(self._base)
        self._session = session
        self._secrets = secrets
        self._instance_id = instance_id
        self._clock = clock
        self._key: Secret | None = None
        self._open: set[aiohttp.ClientResponse] = set()
        self._asking: set[asyncio.Task[Any]] = set()
        self._stopped: set[asyncio.Task[Any]] = set()
        self._models: list[str] = []
        self.models_loaded: int | None = None
        self._found: Probe | None = None
        self._listed_at = 0.0
        options = description.options
        self._urls: dict[str, str] = {}
        self._headers: dict[str, str] = {**provider.headers, **options.get("headers", {})}
        self._query: dict[str, str] = dict(options.get("query", {}))
        self._fields: Mapping[str, Any] = options.get("body", {})

    def __repr__(self) -> str:
        return f"<HttpBackend {self.description.id}: {self.dialect.name} at {self.description.endpoint}>"

    @property
    def external(self) -> bool:
        """Whether it is beyond this machine."""
        return self._external

    @property
    def capabilities(self) -> BackendCapabilities:
        """What it can do, as far as its kind and its description say."""
        given = self.description.tasks
        tasks = frozenset(given) if given else self.provider.tasks & self.dialect.tasks
        generates = TEXT_GENERATION in tasks
        return BackendCapabilities(
            supported_tasks=tasks,
            supported_models=frozenset(self.description.models or self._models),
            max_batch_size=2048,
            supports_streaming=generates,
            supports_batching=True,
            protocols={"http"},
            features=self.dialect.features if generates else frozenset(),
            external=self.external,
        )

    async def start(self) -> None:
        """Finds the key; a connection is opened by the first call."""
        await self._find_key()

    async def stop(self) -> None:
        """Closes the connections of running answers, which end with an error."""
        for asking in self._asking - self._stopped:
            self._stopped.add(asking)
            asking.cancel()
        for response in list(self._open):
            response.close()

    async def probe(self) -> Probe:
        """Asks for health and models, which costs nothing."""
        key = self._key or await self._find_key()
        if key is None and (name := self.description.api_key_env):
            return Probe(BackendStatus.UNHEALTHY, not_set(name))
        listed = self._found
        fresh = self._clock() - self._listed_at < LISTING_S
        if self.external and fresh and listed is not None and listed.status is BackendStatus.HEALTHY:
            return listed
        import aiohttp

        try:
            found = await self._look(key)
        except (aiohttp.ClientError, OSError) as error:
            found = Probe(BackendStatus.OFFLINE, f"nobody answers: {described(error)}")
        except InferenceError as error:
            found = Probe(BackendStatus.UNHEALTHY, error.message)
        self._found = replace(found, reason=_shown(found.reason, key))
        self._listed_at = self._clock()
        return self._found

    def relays(self, request: InferenceRequest) -> bool:
        """Whether request and answer pass as they are: the dialect says so, where it can."""
        relays = getattr(self.dialect, "relays", None)
        return relays is not None and bool(relays(request))

    async def infer(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """The answer's events.

        Raises:
            Unsupported: The dialect has no form for something that was asked.
            BadRequest: The request cannot be put into the dialect at all.
            InferenceError: What the endpoint answered, or how the connection broke.
        """
        import aiohttp

        if request.model is None:
            request = msgspec.structs.replace(request, model=self._default_model())
        call = self._call(request)
        reader = call.reader
        # One and the same for all of the call: another call may meanwhile find that it was changed.
        key = self._key or await self._find_key()
        if key is None and (name := self.description.api_key_env):
            raise Unauthenticated(not_set(name))
        yield Started("")
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._post(call, key)
            self._open.add(response)
            if response.status >= 300:
                raise await self._refusal(response, key)
            if is_compressed(response):
                raise compressed()
            size = 0
            async for data in response.content.iter_any():
                size += len(data)
                if size > MAX_ANSWER:
                    raise BackendFailed(f"sent an answer of more than {MAX_ANSWER >> 20} MiB")
                for event in reader.feed(data):
                    if isinstance(event, Finished):
                        await drain(response)
                        yield event
                        return
                    yield event
            for event in reader.end():
                yield event
        except (aiohttp.ClientError, OSError) as error:
            raise BackendFailed(_shown(f"the connection broke: {described(error)}", key)) from None
        except InferenceError as error:
            error.message = _shown(error.message, key)
            error.args = (error.message,)
            error.param = error.param and _shown(error.param, key)
            if isinstance(error, Unauthenticated) and self._key is key:
                # It may have been changed: the next call or probe looks it up anew.
                self._key = None
            raise
        finally:
            if response is not None:
                self._open.discard(response)
                # Closed by force, unless it was read to its end: whoever left must not be computed for.
                response.close()

    def _call(self, request: InferenceRequest) -> _Call:
        """The call of a request, translated whole before anything is sent: what fails here is no backend's.

        Raises:
            InferenceError: The request cannot be put into the dialect.
        """
        try:
            if request.messages is not None and not self._external:
                only_data(request.messages)
            outgoing = self._adjusted(self.dialect.outgoing(request))
            reader = self.dialect.reader(request, outgoing)
            headers = self._sent(outgoing, request)
            if outgoing.files:
                form_of(outgoing)()
                return _Call(self._url(outgoing.path), lambda: form_of(outgoing), headers, reader)
            encoded = encode(outgoing.body)
            return _Call(self._url(outgoing.path), lambda: encoded, headers, reader)
        except _UNFIT as error:
            raise BadRequest(
                f"the request cannot be put into {self.dialect.name!r}, check its messages and parameters "
                f"({described(error)})"
            ) from error

    async def _post(self, call: _Call, key: Secret | None) -> "aiohttp.ClientResponse":
        """The response once its headers are there; :meth:`stop` ends the wait for them."""
        here = asyncio.current_task()
        assert here is not None
        cancelling = here.cancelling()
        self._asking.add(here)
        try:
            return await self._session.post(
                call.url,
                call.body,
                params=self._query or None,
                headers={**call.headers, **self._authorization(key)},
            )
        except asyncio.CancelledError:
            # Unless the caller has left in the same moment.
            if here in self._stopped and here.uncancel() <= cancelling:
                raise BackendFailed("was stopped while it answered") from None
            raise
        finally:
            self._asking.discard(here)
            self._stopped.discard(here)

    async def _look(self, key: Secret | None) -> Probe:
        if self.provider.health is not None:
            status, body = await self._get(self.provider.health, key)
            if status == 503:
                return Probe(BackendStatus.INITIALIZING, f"is loading: {said(body)}")
            if status >= 500:
                return Probe(BackendStatus.UNHEALTHY, f"answers {status} when asked for its health")
        status, body = await self._get(self.provider.models, key)
        given = self.description.models
        if status in (401, 402, 403):
            name = self.description.api_key_env
            reason = f"refuses the key {name}" if name else "wants a key: name it in api_key_env"
            return Probe(BackendStatus.UNHEALTHY, f"{reason} ({status})")
        if status == 503:
            return Probe(BackendStatus.INITIALIZING, f"is loading: {said(body)}")
        if status == 200:
            self._models = models_in(json_of(body))
        elif status in (404, 405, 501) and given:
            return Probe(BackendStatus.HEALTHY, "answers; it lists no models", frozenset(given))
        else:
            return Probe(BackendStatus.UNHEALTHY, f"answers {status} when asked for its models")
        if self.provider.loaded is not None:
            status, body = await self._get(self.provider.loaded, key)
            loaded = models_in(json_of(body)) if status == 200 else []
            self.models_loaded = len(loaded)
            # A request that names no model goes to one that is in memory.
            self._models.sort(key=lambda name: name not in loaded)
        if given:
            missing = [name for name in given if "*" not in name and name not in self._models]
            reason = f"does not list {', '.join(missing)}" if missing and self._models else "answers"
            return Probe(BackendStatus.HEALTHY, reason, frozenset(given))
        if not self._models:
            return Probe(
                BackendStatus.UNHEALTHY, "answers, but lists no models; name them in models if it has some"
            )
        count = len(self._models)
        reason = f"has {self._models[0]}" if count == 1 else f"has {count} models"
        return Probe(BackendStatus.HEALTHY, reason, frozenset(self._models))

    async def _get(self, path: str, key: Secret | None) -> tuple[int, bytes]:
        """Status and body of a small answer, without the key; a redirect is an error here too."""
        session = await self._session.get()
        async with session.get(
            self._url(path),
            params=self._query,
            headers={**self._headers, **self._authorization(key)},
            allow_redirects=False,
        ) as response:
            if 300 <= response.status < 400:
                raise self._redirected(response)
            return response.status, _without(await read(response, MAX_LISTING), key)

    async def _refusal(self, response: "aiohttp.ClientResponse", key: Secret | None) -> InferenceError:
        if response.status < 400:
            return self._redirected(response)
        # Before it is shortened, which might leave the half of a key.
        body = _without(await read(response, MAX_ERROR, whole=False), key)
        return self.dialect.error(response.status, response.headers, body)

    def _redirected(self, response: "aiohttp.ClientResponse") -> InferenceError:
        # Not followed: the key was given for this host and no other.
        try:
            target = urlsplit(urljoin(self._base, response.headers.get("Location", "")))
            port = f":{target.port}" if target.port else ""
            where = f"{target.scheme}://{target.hostname or '?'}{port}{target.path[:200]}"
        except ValueError:
            where = "what is no address"
        return BackendFailed(
            f"redirects to {where} ({response.status}), which is not followed; register that address if it "
            "is the right one"
        )

    def _url(self, path: str) -> str:
        found = self._urls.get(path)
        if found is None:
            found = self._urls[path] = urljoin(self._base, path)
        return found

    def _authorization(self, key: Secret | None) -> dict[str, str]:
        return {} if key is None else {self.provider.auth: self.provider.scheme + key.reveal()}

    def _sent(self, outgoing: Outgoing, request: InferenceRequest) -> dict[str, str]:
        # A form says its own type, with its boundary.
        kind = {} if outgoing.files else {"Content-Type": "application/json"}
        return {
            **kind,
            "Accept": "text/event-stream" if outgoing.stream else "application/json",
            "x-uia-via": ",".join((*instance_ids(request.via, "via"), self._instance_id)),
            **outgoing.headers,
            **self._headers,
        }

    def _adjusted(self, outgoing: Outgoing) -> Outgoing:
        """The call with the provider's names of fields and the description's own fields."""
        if not self._fields and self.provider.fields.keys().isdisjoint(outgoing.body):
            return outgoing
        body = dict(outgoing.body)
        for name, other in self.provider.fields.items():
            if name in body:
                value = body.pop(name)
                if other is not None:
                    body.setdefault(other, value)
        body |= self._fields
        return msgspec.structs.replace(
            outgoing, body={name: value for name, value in body.items() if value is not None}
        )

    def _default_model(self) -> str:
        names = [name for name in self.description.models or self._models if "*" not in name]
        if not names:
            raise BadRequest(
                f"{self.description.id} has no default model: name one in the request", param="model"
            )
        return names[0]

    async def _find_key(self) -> Secret | None:
        """Looks the key up; a keyring may take its time, so in a thread."""
        name = self.description.api_key_env
        if name is None:
            return None
        found = await asyncio.to_thread(self._secrets.find, name)
        if found is not None and not (found.reveal().isascii() and found.reveal().isprintable()):
            raise BadRequest(f"the key {name} holds characters that no header carries", param="api_key_env")
        self._key = found
        return found


def _without(body: bytes, key: Secret | None) -> bytes:
    """What an endpoint said, which may repeat the key that it was sent."""
    return body.replace(key.reveal().encode(), _NO_KEY) if key is not None and key.reveal() else body


def _shown(text: str, key: Secret | None) -> str:
    """A text of an endpoint's as people see it, in a log or an error: one line, and without the key."""
    return one_line(_without(text.encode(errors="replace"), key).decode())
