"""A conversation: turns, settings, and the requests that continue it."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.domain.requests import InferenceRequest, Message, RoutingHints
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.notebook.cell_place import CellPlace
from uia_lab.notebook.chat_html import chat_html, chat_markdown
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.generations import Generations
from uia_lab.notebook.presenters import in_kernel, shell
from uia_lab.notebook.snippet import openai_snippet

if TYPE_CHECKING:
    from uia_lab.notebook.widgets.chat_view import ChatView

FORMS = ("code", "markdown")
_NUMBERS = {"temperature": (0, 2), "top_p": (0, 1), "max_tokens": (1, 10_000_000), "seed": (-(2**53), 2**53)}
_WHOLE = ("max_tokens", "seed")


@dataclass(frozen=True, slots=True)
class Settings:
    """How the next turn is asked for.

    Args:
        model: Model name; None for the default model.
        backend: Id of the only backend to use; None for whoever can.
        system: Instruction that comes before the conversation.
        parameters: Sampling parameters by their OpenAI names.
    """

    model: str | None = None
    backend: str | None = None
    system: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One turn; an answer has the record of its generation.

    Args:
        role: ``user`` or ``assistant``.
        said: What the user said; empty for an answer.
        generation: The record of an answer.
    """

    role: str
    said: str = ""
    generation: Generation | None = None

    @property
    def text(self) -> str:
        """What was said."""
        return self.said if self.generation is None else self.generation.text


class Chat:
    """A conversation with a model. A turn never blocks the kernel: its answer arrives in the background.

    Shown in a notebook it is a chat. Every method may be called from any thread.

    Args:
        generations: The Lab's; they ask.
        settings: How turns are asked for.
        options: Tells the models and backends there are, a moment later.
        url: Address of who serves; None where nothing listens.
    """

    def __init__(
        self,
        generations: Generations,
        settings: Settings,
        *,
        options: Callable[[Callable[[dict[str, Any]], None]], None],
        url: str | None,
    ) -> None:
        self.settings = settings
        self.options = options
        self._generations = generations
        self._url = url
        self._session = f"chat-{uuid.uuid4().hex[:12]}"
        self._turns: tuple[ChatTurn, ...] = ()
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        self._owner: Any = None

    def keep(self, owner: Any) -> None:
        """Keeps whoever answers alive for as long as the conversation is."""
        self._owner = owner

    @property
    def turns(self) -> tuple[ChatTurn, ...]:
        """The turns so far."""
        return self._turns

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages in the OpenAI shape, system prompt included."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return system + [{"role": turn.role, "content": turn.text} for turn in self._turns if turn.text]

    @property
    def running(self) -> Generation | None:
        """The answer that is arriving, if one is."""
        last = self._turns[-1].generation if self._turns else None
        return last if last is not None and not last.done else None

    @property
    def last(self) -> Generation | None:
        """The newest answer, ended or not."""
        return next((turn.generation for turn in reversed(self._turns) if turn.generation), None)

    def send(self, text: str) -> Generation:
        """Says something; returns at once, while the answer arrives.

        Args:
            text: What to say.

        Raises:
            BadRequest: Nothing is said, or the last answer is still arriving.
        """
        with self._lock:
            self._need_idle()
            if not text.strip():
                raise BadRequest("say something", param="text")
            self._turns = (*self._turns, ChatTurn("user", text))
            return self._ask()

    def regenerate(self) -> Generation:
        """Asks for the last answer again; the one that was given is dropped.

        Raises:
            BadRequest: Nothing was said yet, or the answer is still arriving.
        """
        with self._lock:
            self._need_idle()
            self._drop_answer()
            if not self._turns:
                raise BadRequest("nothing was said yet")
            return self._ask()

    def edit(self, text: str) -> Generation:
        """Says the last thing differently; it and its answer are dropped.

        Raises:
            BadRequest: Nothing was said yet, nothing is said now, or the answer is still arriving.
        """
        with self._lock:
            self._need_idle()
            if not text.strip():
                raise BadRequest("say something", param="text")
            self._drop_answer()
            if not self._turns:
                raise BadRequest("nothing was said yet")
            self._turns = self._turns[:-1]
            return self.send(text)

    def clear(self) -> None:
        """Begins anew, with the same settings.

        Raises:
            BadRequest: An answer is still arriving.
        """
        with self._lock:
            self._need_idle()
            self._turns = ()
        self._changed()

    def stop(self) -> None:
        """Ends the answer that is arriving; what has come of it stays."""
        if (running := self.running) is not None:
            running.stop()

    def change(self, **settings: Any) -> None:
        """Changes how the next turn is asked for.

        Args:
            **settings: ``model``, ``backend``, ``system``, or a parameter by its OpenAI name; None for the
                default.

        Raises:
            BadRequest: A number out of range, or an unknown setting.
        """
        with self._lock:
            self.settings = changed(self.settings, settings)
        self._changed()

    def export(self, form: str = "code") -> str:
        """The conversation as the source of a cell.

        Args:
            form: ``code`` for a script that goes on from here, ``markdown`` for reading.

        Raises:
            BadRequest: An unknown form.
        """
        if form == "markdown":
            return chat_markdown(self)
        if form == "code":
            return openai_snippet(self._request(), self._url)
        raise BadRequest(f"form: {form!r} is none of {', '.join(FORMS)}", param="form")

    def to_cell(self, form: str = "code") -> None:
        """Puts the conversation into a new cell below the running one.

        Args:
            form: As for :meth:`export`; Markdown is kept in a cell of the magic ``%%markdown``.
        """
        source = self.export(form)
        here = shell()
        if here is None:
            raise BadRequest("there are cells in IPython only; export() gives the source")
        here.set_next_input(f"%%markdown\n{source}" if form == "markdown" else source, replace=False)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Calls a function after every change, in whichever thread makes it."""
        self._listeners.append(listener)

    def view(self) -> "ChatView":
        """The chat as a widget."""
        from uia_lab.notebook.widgets.chat_view import ChatView

        return ChatView(self, direct=self._url is not None)

    def _need_idle(self) -> None:
        if self.running is not None:
            raise BadRequest("the answer is still arriving: stop it first")

    def _drop_answer(self) -> None:
        if self._turns and self._turns[-1].role == "assistant":
            self._turns = self._turns[:-1]

    def _request(self) -> InferenceRequest:
        settings = self.settings
        messages: list[Message] = list(self.messages)
        return InferenceRequest(
            TEXT_GENERATION,
            settings.model,
            messages=messages or [{"role": "user", "content": ""}],
            parameters=dict(settings.parameters),
            stream=True,
            routing=RoutingHints(backend_id=settings.backend, session_id=self._session),
        )

    def _ask(self) -> Generation:
        said = self._turns[-1].said
        generation = self._generations.begin(self._request(), said, show=False, wait=True).generation
        self._turns = (*self._turns, ChatTurn("assistant", generation=generation))
        generation.subscribe(self._changed)
        self._changed()
        return generation

    def _changed(self) -> None:
        for listener in self._listeners:
            # Whoever watches must not be able to break the conversation itself.
            with contextlib.suppress(Exception):
                listener()

    def __repr__(self) -> str:
        return f"<Chat of {len(self._turns)} turns>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return still(self)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if not in_kernel():
            display(still(self), raw=True)
            return
        view = self.view()
        display(view.bundle(), raw=True)
        # The text is an output of its own: to bring the widget's up to date would draw the widget anew, under
        # the hands of who writes in it.
        place = CellPlace(still(self, view.mark))
        told = self._turns

        def ended() -> None:
            nonlocal told
            if self.running is None and self._turns is not told:
                told = self._turns
                place.put(still(self, view.mark))

        self.subscribe(ended)


def still(chat: Chat, mark: str = "") -> dict[str, str]:
    """The forms that a saved notebook keeps.

    Args:
        chat: The conversation.
        mark: By which a live page finds the HTML.
    """
    markdown = chat_markdown(chat)
    return {"text/plain": markdown, "text/markdown": markdown, "text/html": chat_html(chat, mark)}


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Settings with other values; see :meth:`Chat.change`.

    Raises:
        BadRequest: A number out of range, or an unknown setting.
    """
    parameters = dict(settings.parameters)
    for name, value in values.items():
        if name in ("model", "backend", "system"):
            if value is not None and not isinstance(value, str):
                raise BadRequest(f"{name} must be text, not {value!r}", param=name)
            given: dict[str, Any] = {name: value or None}
            settings = replace(settings, **given)
        elif name in _NUMBERS or name in parameters:
            _check(name, value)
            parameters[name] = value
        else:
            known = ("model", "backend", "system", *_NUMBERS)
            raise BadRequest(f"a chat has no setting {name!r}.{suggestion(name, known)}", param=name)
    kept = {name: value for name, value in parameters.items() if value is not None}
    return replace(settings, parameters=kept)


def _check(name: str, value: Any) -> None:
    if value is None or name not in _NUMBERS:
        return
    low, high = _NUMBERS[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (name in _WHOLE and not float(value).is_integer()):
        kind = "a whole number" if name in _WHOLE else "a number"
        raise BadRequest(f"{name} must be {kind} from {low} to {high}, not {value!r}", param=name)
