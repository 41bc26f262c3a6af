"""A chat in a cell."""

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from traitlets import Bool, Dict, List, Unicode

from uia_lab.domain.errors import InferenceError
from uia_lab.notebook.chat import Chat, ChatTurn, still
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.markdown import markdown_tree
from uia_lab.notebook.widgets.base import LabWidget
from uia_lab.notebook.widgets.coalesce import Coalescer

INTERVAL_S = 0.05
CHARACTERS_PER_S = 200_000
# Of the time between two updates, parsing the text again takes at most this part.
PARSING_PART = 0.25


class ChatView(LabWidget):
    """The turns of a conversation, a place to write, and its settings.

    What has been said goes to the browser once; the answer that arrives goes there at 20 Hz at most, and less
    often the longer it is. The text of a model is parsed here, and the page builds elements from the tree.

    Args:
        chat: The conversation.
        direct: Whether the browser may be able to reach the service.
    """

    _module = "chat_view.js"

    turns: List[dict[str, Any]] = List().tag(sync=True)
    live = Dict().tag(sync=True)
    settings = Dict().tag(sync=True)
    options = Dict().tag(sync=True)
    exports = Dict().tag(sync=True)
    notice = Unicode("").tag(sync=True)
    mark = Unicode("").tag(sync=True)
    direct = Bool(default_value=False).tag(sync=True)

    def __init__(self, chat: Chat, *, direct: bool) -> None:
        # The browser reads the mark when the widget is made, before anything is changed.
        super().__init__(mark=uuid.uuid4().hex, direct=direct)
        self.chat = chat
        self._pushing = threading.Lock()
        self._parsing_s = 0.0
        self._seen: list[ChatTurn] = []
        self._sent: list[dict[str, Any]] = []
        self._coalescer = Coalescer(self.flush, self._pace)
        self.on_msg(self._told)
        self.flush()
        chat.subscribe(self._changed)

    def flush(self) -> None:
        """Sends the present state; from whichever thread, one at a time."""
        with self._pushing, self.hold_sync():
            turns, running = list(self.chat.turns), self.chat.running
            if running is not None:
                turns.pop()
            if turns != self._seen:
                known = dict(zip(map(id, self._seen), self._sent, strict=True))
                self._sent = [known.get(id(turn)) or self._shown(turn) for turn in turns]
                self._seen = turns
                self.turns = list(self._sent)
            self.live = {} if running is None else self._answer(running)
            self.settings = {
                "model": self.chat.settings.model or "",
                "backend": self.chat.settings.backend or "",
                "system": self.chat.settings.system or "",
                **self.chat.settings.parameters,
            }

    def _shown(self, turn: ChatTurn) -> dict[str, Any]:
        if turn.generation is not None:
            return self._answer(turn.generation)
        return {"role": turn.role, "text": turn.said}

    def _answer(self, shown: Generation) -> dict[str, Any]:
        text = shown.text
        began = time.perf_counter()
        blocks = markdown_tree(text)
        self._parsing_s = time.perf_counter() - began
        return {
            "role": "assistant",
            "text": text,
            "blocks": blocks,
            "state": shown.state,
            "error": shown.error.message if shown.error else "",
            "cut": shown.finish_reason == "length",
            "backend": shown.backend or "",
            "first_token_s": shown.time_to_first_token,
            "tokens_per_s": shown.tokens_per_second,
            "tokens": shown.usage.output_tokens if shown.usage else None,
            "request_id": shown.request_id or "",
        }

    def _changed(self) -> None:
        running = self.chat.running
        try:
            # Off the Lab's loop (a method of the chat was called in the kernel) there is nothing to coalesce.
            self._coalescer.touch() if running is not None else self._coalescer.flush()
        except RuntimeError:
            self.flush()

    def _pace(self) -> float:
        length = len(self.live.get("text", ""))
        return max(INTERVAL_S, length / CHARACTERS_PER_S, self._parsing_s / PARSING_PART)

    def _told(self, _widget: Any, content: Any, _buffers: Any) -> None:
        # May run in a kernel subshell's thread; the chat is safe there.
        actions: dict[str, Callable[[], Any]] = {}
        match content:
            case {"type": "send", "text": str() as text}:
                actions["send"] = lambda: self.chat.send(text)
            case {"type": "edit", "text": str() as text}:
                actions["edit"] = lambda: self.chat.edit(text)
            case {"type": "regenerate"}:
                actions["regenerate"] = self.chat.regenerate
            case {"type": "stop"}:
                actions["stop"] = self.chat.stop
            case {"type": "clear"}:
                actions["clear"] = self.chat.clear
            case {"type": "options"}:
                actions["options"] = lambda: self.chat.options(self._offer)
            case {"type": "export"}:
                actions["export"] = self._export
            case {"type": "change", "settings": dict() as settings}:
                actions["change"] = lambda: self.chat.change(**settings)
        for act in actions.values():
            try:
                act()
                self.notice = ""
            except (InferenceError, RuntimeError) as error:
                self.notice = str(error)
                # What the browser shows is what holds.
                self.send_state("settings")

    def _export(self) -> None:
        self.exports = {"code": self.chat.export("code"), "markdown": self.chat.export("markdown")}
        self.send({"type": "exported"})

    def _offer(self, options: dict[str, Any]) -> None:
        with self._pushing:
            self.options = options

    def bundle(self) -> dict[str, Any]:
        """What shows it, without the turns: they have an output of their own."""
        bundle: dict[str, Any] = self._repr_mimebundle_()
        del bundle["text/markdown"]
        return {**bundle, "text/plain": "Chat:", "text/html": ""}

    def still(self) -> dict[str, str]:
        """The forms that a saved notebook keeps."""
        return still(self.chat)
