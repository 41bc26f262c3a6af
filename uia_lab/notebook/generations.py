"""The generations of one Lab: begun, filled as their text arrives, and stopped."""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
from anyio import CancelScope, move_on_after
from msgspec.structs import replace

from uia_lab.domain.backends import BackendType, member
from uia_lab.domain.errors import BadRequest, Cancelled
from uia_lab.domain.events import Attempted
from uia_lab.domain.requests import InferenceRequest, RoutingHints, new_request_id
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.notebook.comparison import MOST, Comparison
from uia_lab.notebook.generation import Generation, Presenter
from uia_lab.notebook.presenters import presenter_here
from uia_lab.notebook.transport import Transport

STOP_S = 2.0
DETAILS_S = 3.0


class Generations:
    """Starts requests for text; every method may be called from any thread.

    Args:
        transport: Who serves.
        spawn: Runs a coroutine function on the Lab's loop.
    """

    def __init__(self, transport: Transport, spawn: Callable[..., "Future[Any]"]) -> None:
        self._transport = transport
        self._spawn = spawn
        self._running: dict[Generation, Future[None]] = {}

    @property
    def direct(self) -> bool:
        """Whether a browser may be able to reach the service without this process."""
        return self._transport.kind == "server"

    def begin(
        self,
        request: InferenceRequest,
        prompt: str,
        *,
        show: bool,
        wait: bool,
        presenter: Presenter | None = None,
    ) -> "Shown":
        """Sends a request.

        Args:
            request: The request; it streams.
            prompt: What was asked, in words.
            show: Whether to show it as it arrives.
            wait: Whether the caller waits for it; what nobody waits for ends its view by itself.
            presenter: Who shows it, in place of what is shown there; whoever suits this process when absent.
        """
        presenter = presenter or presenter_here(direct=self.direct, places=self.places)
        generation = Generation(
            prompt,
            request.model,
            stop=self.stop,
            presenter=presenter,
            request=request,
            again=self.again,
            url=self._transport.where if self.direct else None,
        )
        generation.shown = show and presenter is not None
        shown = Shown(generation, presenter if show else None)
        if shown.presenter is not None:
            shown.presenter.begin(generation)
        task = self._spawn(self._pump, generation, request)
        self._running[generation] = task
        task.add_done_callback(lambda _: self._ended(generation))
        if not wait:
            # The cell's context goes along, so that what is shown later still belongs to this cell.
            here = contextvars.copy_context()
            task.add_done_callback(lambda _: here.run(shown.end))
        return shown

    def again(self, generation: Generation, backend: str | None) -> Generation:
        """Asks what a generation asked of somebody else; see :meth:`Generation.retry`."""
        assert generation.request is not None
        request = elsewhere(generation.request, generation.tried, backend)
        shown = self.begin(
            request,
            generation.prompt,
            show=generation.shown,
            wait=False,
            presenter=generation.presenter,
        )
        return shown.generation

    def places(self, generation: Generation, tell: Callable[[list[dict[str, str]]], None]) -> None:
        """Tells which backends may be asked the same, a moment later from the Lab's thread."""

        async def look() -> None:
            request = generation.request
            with contextlib.suppress(Exception):  # the choice of "any other" is left
                backends = (await self._transport.backends())["backends"]
                tell([_place(backend, generation.tried) for backend in backends if _may(backend, request)])

        with contextlib.suppress(RuntimeError):  # the Lab is closed
            self._spawn(look)

    def compare(
        self,
        prompt: str,
        models: Sequence[str] | None,
        backends: Sequence[str] | None,
        options: dict[str, Any],
    ) -> Comparison:
        """Asks several at once; see :meth:`uia_lab.AsyncLab.compare`."""
        for name, given in (("models", models), ("backends", backends)):
            if isinstance(given, str):
                raise BadRequest(f"{name} must be a list of names, not one text", param=name)
        pairs = [(model, backend) for model in models or (None,) for backend in backends or (None,)]
        if (None, None) in pairs or not pairs:
            raise BadRequest("name the models or the backends to compare", param="models")
        if len(pairs) > MOST:
            raise BadRequest(
                f"{len(pairs)} answers side by side are too many: {MOST} at most", param="models"
            )
        requests = [text_request(prompt, model, backend=backend, **options) for model, backend in pairs]
        return Comparison(
            prompt,
            [" · ".join(filter(None, pair)) for pair in pairs],
            [self.begin(request, prompt, show=False, wait=True).generation for request in requests],
            self.prices,
        )

    def prices(self, tell: Callable[[dict[str, dict[str, float]]], None]) -> None:
        """Tells the prices of the backends that have one, by id, a moment later from the Lab's thread."""

        async def look() -> None:
            listed: list[dict[str, Any]] = []
            with contextlib.suppress(Exception):  # then they are not known
                listed = (await self._transport.backends())["backends"]
            tell({each["id"]: each["price"] for each in listed if each.get("price") is not None})

        with contextlib.suppress(RuntimeError):  # the Lab is closed
            self._spawn(look)

    def options(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Tells the models and backends that do text, a moment later from the Lab's thread."""

        async def look() -> None:
            with contextlib.suppress(Exception):  # the default is left
                found, listed = await asyncio.gather(self._transport.models(), self._transport.backends())
                able = [each for each in listed["backends"] if TEXT_GENERATION in each["tasks"]]
                # A backend that lists models tells what they are for; one that takes any tells nothing.
                named = {model for each in able for model in each["models"]}
                others = {model for each in listed["backends"] for model in each["models"]} - named
                tell(
                    {
                        "models": [model for model in found if model not in others],
                        "backends": [_place(each, ()) for each in able],
                    }
                )

        with contextlib.suppress(RuntimeError):  # the Lab is closed
            self._spawn(look)

    def stop(self, generation: Generation) -> None:
        """Asks for the end of a generation and returns at once."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile, which ended it too
            self._spawn(self._cancel, generation)

    def _ended(self, generation: Generation) -> None:
        self._running.pop(generation, None)
        # One that never began, since the Lab was closed just then, has ended all the same.
        generation.fail(Cancelled("stopped"))

    async def _pump(self, generation: Generation, request: InferenceRequest) -> None:
        stream = self._transport.stream(request)
        try:
            async for event in stream:
                generation.feed(event, stream.request_id)
        except asyncio.CancelledError:
            generation.fail(Cancelled("stopped"))
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the record must end with it
            generation.attempts = await self._tried(stream.request_id)
            generation.fail(error)
        finally:
            with CancelScope(shield=True), move_on_after(STOP_S):
                await stream.aclose()

    async def _tried(self, request_id: str | None) -> tuple[Attempted, ...]:
        """Who was tried for a request that has failed, as the log of who serves has it."""
        if request_id is None:
            return ()
        with contextlib.suppress(Exception):  # an extra, which an older server may not tell
            async with asyncio.timeout(DETAILS_S):
                record = await self._transport.request(request_id)
                return msgspec.convert(record["attempts"], tuple[Attempted, ...])
        return ()

    async def _cancel(self, generation: Generation) -> None:
        if generation.request_id is not None:
            with move_on_after(STOP_S), contextlib.suppress(Exception):
                await self._transport.cancel(generation.request_id)
        generation.fail(Cancelled("stopped"))
        # A request without an id yet is waiting for its first answer: hanging up is what cancels it.
        if (task := self._running.get(generation)) is not None:
            task.cancel()


class Shown:
    """A generation and who shows it.

    Args:
        generation: The generation.
        presenter: Who shows it while it runs, if anybody does.
    """

    def __init__(self, generation: Generation, presenter: Any) -> None:
        self.generation = generation
        self.presenter = presenter

    def end(self) -> None:
        """Leaves behind what a saved notebook keeps."""
        if self.presenter is not None:
            self.presenter.end(self.generation)


def elsewhere(request: InferenceRequest, used: Iterable[str], backend: str | None) -> InferenceRequest:
    """The same request, for somebody else.

    Args:
        request: What was asked.
        used: Ids of backends that worked on it.
        backend: Id of the backend to ask; None for any other than the used ones.
    """
    hints = request.routing
    excluded = frozenset() if backend is not None else hints.excluded_backends | frozenset(used)
    routing = replace(hints, backend_id=backend, excluded_backends=excluded)
    return replace(request, id=new_request_id(), routing=routing)


def _may(backend: Mapping[str, Any], request: InferenceRequest | None) -> bool:
    """Whether a backend does what a request asks for, as its report tells; the router has the last word."""
    if request is None or not backend["enabled"]:
        return False
    models = backend["models"]
    return request.task in backend["tasks"] and (not models or request.model in (None, *models))


def _place(backend: Mapping[str, Any], used: Container[str]) -> dict[str, str]:
    return {
        "id": backend["id"],
        "name": backend["name"],
        "status": backend["status"],
        "tried": "yes" if backend["id"] in used else "",
    }


def text_request(
    prompt: str,
    model: str | None = None,
    *,
    system: str | None = None,
    backend: str | None = None,
    prefer: BackendType | str | Sequence[BackendType | str] | None = None,
    session: str | None = None,
    timeout: float | None = None,
    **parameters: Any,
) -> InferenceRequest:
    """The request for the text that continues a prompt.

    Args:
        prompt: What to ask.
        model: Model name; None for the default model.
        system: Instruction that comes before the prompt.
        backend: Id of the only backend to use.
        prefer: Backend types to try first, best first.
        session: Name of the conversation it belongs to.
        timeout: Seconds for everything, queueing included.
        **parameters: Parameters by their OpenAI names; None is left out.

    Raises:
        BadRequest: No prompt, or an unknown backend type.
    """
    if not isinstance(prompt, str) or not prompt:
        raise BadRequest("prompt must be a non-empty string", param="prompt")
    kinds = [prefer] if isinstance(prefer, str) else list(prefer or ())
    asked: list[tuple[str, str | None]] = [("system", system), ("user", prompt)]
    return InferenceRequest(
        TEXT_GENERATION,
        model,
        messages=[{"role": role, "content": text} for role, text in asked if text],
        parameters={name: value for name, value in parameters.items() if value is not None},
        stream=True,
        routing=RoutingHints(
            preferred_types=tuple(member(BackendType, kind, "prefer") for kind in kinds),
            backend_id=backend,
            session_id=session,
            deadline_s=timeout,
        ),
    )
