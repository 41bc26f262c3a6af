"""The generations of one Lab: begun, filled as their text arrives, and stopped."""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from anyio import CancelScope, move_on_after

from uia_lab.domain.backends import BackendType, member
from uia_lab.domain.errors import BadRequest, Cancelled
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.presenters import presenter_here
from uia_lab.notebook.transport import Transport

STOP_S = 2.0


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

    def begin(self, request: InferenceRequest, prompt: str, *, show: bool, wait: bool) -> "Shown":
        """Sends a request.

        Args:
            request: The request; it streams.
            prompt: What was asked, in words.
            show: Whether to show it as it arrives.
            wait: Whether the caller waits for it; what nobody waits for ends its view by itself.
        """
        presenter = presenter_here(direct=self._transport.kind == "server")
        generation = Generation(prompt, request.model, stop=self.stop, presenter=presenter)
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
            generation.fail(error)
        finally:
            with CancelScope(shield=True), move_on_after(STOP_S):
                await stream.aclose()

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
