"""AsyncLab: inference from a notebook or a program, to await. All that a Lab does is written here, once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import numpy as np
from anyio import CancelScope, move_on_after

from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BadRequest
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.notebook.aliases import Aliases
from uia_lab.notebook.asking import QUESTION_S, asked, within
from uia_lab.notebook.backends import Backends
from uia_lab.notebook.batching import Batching
from uia_lab.notebook.chat import Chat, Settings, changed
from uia_lab.notebook.comparison import Comparison
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.generations import text_request
from uia_lab.notebook.hardware import HardwareReport
from uia_lab.notebook.keys import Keys
from uia_lab.notebook.models import Models
from uia_lab.notebook.serving import Serving
from uia_lab.notebook.traffic import Traffic
from uia_lab.notebook.watching import Watching

# The first embedding may load a model.
EMBED_S = 600.0
HARDWARE_S = 160.0


class AsyncLab(Watching, Batching, Traffic):
    """Inference by whoever serves, on the event loop that runs when it is made.

    ``async with uia_lab.AsyncLab(transport) as lab`` or ``lab = await uia_lab.connect_async()`` opens one. It
    has the methods of :class:`uia_lab.Lab`, to await; what there is a property is awaited too
    (``await lab.backends``), and so is an action of a table (``await (await lab.backends)["a"].drain()``).

    Args:
        transport: Who serves.
        ask: How the actions of its tables are run; they are awaited when absent.

    Attributes:
        where: In words, who serves.
        instance_id: Id of the service.
    """

    @asked
    @within(QUESTION_S)
    async def models(self) -> Models:
        """Names of the models that can be asked for: a list, with ``load`` and ``unload``."""
        return Models(await self._transport.models(), self._transport, self._run, self.spawn)

    @asked
    @within(QUESTION_S)
    async def keys(self) -> Keys:
        """The scoped keys of the server: a table, with ``create`` and ``revoke``."""
        transport = self._transport
        return Keys(await transport.keys(), transport.create_key, transport.revoke_key, self._run)

    @asked
    @within(QUESTION_S)
    async def backends(self) -> Backends:
        """Who can serve: a table, with ``add``, and ``["id"]`` to drain, enable, probe, weigh and remove."""
        return Backends(await self._transport.backends(), self._transport, self._run)

    @asked
    @within(QUESTION_S)
    async def aliases(self) -> Aliases:
        """Names that stand for a chain of models: a table, with ``set`` and ``delete``."""
        return Aliases(await self._transport.aliases(), self._transport, self._run)

    @within(HARDWARE_S)
    async def hardware(self) -> HardwareReport:
        """What the machine that serves has: cores, memory, devices, and what is missing and why."""
        return HardwareReport(await self._transport.hardware())

    async def generate(
        self,
        /,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        wait: bool = True,
        backend: str | None = None,
        prefer: BackendType | str | Sequence[BackendType | str] | None = None,
        session: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the request's deadline, which the service keeps
        show: bool = True,
        **parameters: Any,
    ) -> Generation:
        """Generates text; in a notebook it streams into the cell, with a Stop button.

        Args:
            prompt: What to ask.
            model: Model name; None for the default model.
            system: Instruction that comes before the prompt.
            wait: Whether to wait for the end; False returns at once and the text goes on arriving.
            backend: Id of the only backend to use.
            prefer: Backend types to try first, best first.
            session: Name of a conversation, whose requests go to one backend under ``prefix_affinity``.
            temperature: Sampling temperature; 0 for the likeliest text.
            max_tokens: Tokens to generate at most.
            seed: Seed of the sampling, where the backend has one.
            timeout: Seconds for everything, queueing included.
            show: Whether to show it as it arrives.
            **parameters: Further parameters by their OpenAI names (``top_p``, ``stop`` ...).

        Raises:
            InferenceError: With ``wait``, what the request failed with. Being stopped is no error.
        """
        request = text_request(
            prompt,
            model,
            system=system,
            backend=backend,
            prefer=prefer,
            session=session,
            timeout=timeout,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            **parameters,
        )
        shown = self.generations.begin(request, prompt, show=show, wait=wait)
        generation = shown.generation
        if not wait:
            return generation
        try:
            await generation
        except asyncio.CancelledError:
            generation.stop()
            with CancelScope(shield=True), move_on_after(2):
                await generation
            raise
        finally:
            shown.end()
        generation.raise_for_error()
        return generation

    async def compare(
        self,
        /,
        prompt: str,
        models: Sequence[str] | None = None,
        *,
        backends: Sequence[str] | None = None,
        wait: bool = True,
        show: bool = True,
        **options: Any,
    ) -> Comparison:
        """One prompt to several models or backends, side by side, with time, speed and cost.

        Args:
            prompt: What to ask.
            models: Model names, an answer of each; with ``backends``, of each at each.
            backends: Ids of backends, an answer of each.
            wait: Whether to wait for the end; False returns at once and the texts go on arriving.
            show: Whether to show them as they arrive.
            **options: As for :meth:`generate` (``system``, ``temperature``, ``max_tokens`` ...).

        Returns:
            The generations in order; one that failed has its ``error``, and the others go on.

        Raises:
            BadRequest: Nothing to compare, or more than twelve answers.
        """
        comparison = self.generations.compare(prompt, models, backends, options)
        if show:
            comparison.show(direct=self.generations.direct)
        if wait:
            try:
                for generation in comparison:
                    await generation
            except asyncio.CancelledError:
                comparison.stop()
                raise
        return comparison

    def chat(
        self,
        /,
        model: str | None = None,
        *,
        system: str | None = None,
        backend: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        **parameters: Any,
    ) -> Chat:
        """A conversation of several turns; shown in a notebook it is a chat, and no turn blocks the kernel.

        Args:
            model: Model name; None for the default model.
            system: Instruction that comes before the conversation.
            backend: Id of the only backend to use.
            temperature: Sampling temperature; 0 for the likeliest text.
            max_tokens: Tokens of an answer at most.
            **parameters: Further parameters by their OpenAI names (``top_p``, ``stop`` ...).

        Raises:
            BadRequest: A number out of range.
        """
        given = {"temperature": temperature, "max_tokens": max_tokens, **parameters}
        begun = Settings(parameters=parameters)
        settings = changed(begun, {"model": model, "system": system, "backend": backend, **given})
        url = self.where if self.generations.direct else None
        return Chat(self.generations, settings, options=self.generations.options, url=url)

    @within(EMBED_S)
    async def embed(self, texts: str | Iterable[str], model: str | None = None) -> np.ndarray:
        """Embeddings as float32.

        Args:
            texts: One text or several.
            model: Model name; None for the default embedding model.

        Returns:
            Shape ``(d,)`` for one text, ``(n, d)`` for several.
        """
        single = isinstance(texts, str)
        rows = [texts] if isinstance(texts, str) else list(texts)
        if not all(isinstance(row, str) for row in rows):
            raise BadRequest("texts must be a string or strings", param="texts")
        if not rows:
            return np.empty((0, 0), np.float32)
        vectors = await self._transport.embed(rows, model)
        return vectors[0] if single else vectors

    def serve(
        self,
        model: str | None = None,
        task: str = TEXT_GENERATION,
        *,
        name: str | None = None,
        max_concurrency: int = 4,
    ) -> Callable[[Callable[..., Any]], Awaitable[Serving]]:
        """As :meth:`uia_lab.Lab.serve`; what its decorator gives is awaited.

        ``shout = await lab.serve(model="shout")(shout)``
        """
        publish = self.servings.publisher(model, task, name=name, max_concurrency=max_concurrency)
        return lambda function: asyncio.to_thread(publish, function)

    @property
    def served(self) -> list[Serving]:
        """The functions that are served from here."""
        return self.servings.all()

    def __repr__(self) -> str:
        return f"<AsyncLab {'closed' if self.closed else self.where}>"
