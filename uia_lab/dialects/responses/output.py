"""The items of a response's output: how each begins, grows and ends, in events of the dialect."""

from collections.abc import Iterator
from typing import Any, TypeAlias

from uia_lab.dialects.responses.tools import Tool, free_text

Step: TypeAlias = dict[str, Any]


class Item:
    """One item of the output.

    Args:
        item: What it is when it begins; ``item`` has all of it after :meth:`end`.
        index: Its place in the output.
    """

    def __init__(self, item: dict[str, Any], index: int) -> None:
        self.item = item
        self._index = index
        self._pieces: list[str] = []

    def begin(self) -> Iterator[Step]:
        """The events with which it begins."""
        yield {"type": "response.output_item.added", "output_index": self._index, "item": dict(self.item)}

    def add(self, text: str, logprobs: list[Any] | None = None) -> Iterator[Step]:
        """The events with which it grows by a piece."""
        raise NotImplementedError

    def end(self) -> Iterator[Step]:
        """The events with which it ends."""
        yield {"type": "response.output_item.done", "output_index": self._index, "item": self.item}

    def _event(self, kind: str, /, **fields: Any) -> Step:
        place = {"item_id": self.item["id"], "output_index": self._index}
        return {"type": f"response.{kind}", **place, **fields}


class Message(Item):
    """A message of the model."""

    def __init__(self, name: str, index: int) -> None:
        message = {"id": name, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        super().__init__(message, index)
        self._logprobs: list[Any] = []

    def begin(self) -> Iterator[Step]:
        """The message and its one part."""
        yield from super().begin()
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._event("content_part.added", content_index=0, part=part)

    def add(self, text: str, logprobs: list[Any] | None = None) -> Iterator[Step]:
        """A piece of text."""
        self._pieces.append(text)
        self._logprobs += logprobs or ()
        yield self._event("output_text.delta", content_index=0, delta=text, logprobs=logprobs or [])

    def end(self) -> Iterator[Step]:
        """The whole text, thrice, as the dialect has it."""
        text, logprobs = "".join(self._pieces), self._logprobs
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
        self.item |= {"status": "completed", "content": [part]}
        yield self._event("output_text.done", content_index=0, text=text, logprobs=logprobs)
        yield self._event("content_part.done", content_index=0, part=part)
        yield from super().end()


class Reasoned(Item):
    """Reasoning that the model shows; clients display it as a summary."""

    def __init__(self, name: str, index: int) -> None:
        super().__init__({"id": name, "type": "reasoning", "summary": []}, index)

    def add(self, text: str, logprobs: list[Any] | None = None) -> Iterator[Step]:  # noqa: ARG002
        """A piece of reasoning."""
        if not self._pieces:
            part = {"type": "summary_text", "text": ""}
            yield self._event("reasoning_summary_part.added", summary_index=0, part=part)
        self._pieces.append(text)
        yield self._event("reasoning_summary_text.delta", summary_index=0, delta=text)

    def end(self) -> Iterator[Step]:
        """The whole of it."""
        if self._pieces:
            text = "".join(self._pieces)
            part = {"type": "summary_text", "text": text}
            self.item["summary"] = [part]
            yield self._event("reasoning_summary_text.done", summary_index=0, text=text)
            yield self._event("reasoning_summary_part.done", summary_index=0, part=part)
        yield from super().end()


class Used(Item):
    """A tool call.

    Args:
        name: The item's id.
        index: Its place in the output.
        call_id: The call's id.
        flat: The name of the tool that the backend knows.
        tool: The tool as the client knows it, if it does.
    """

    def __init__(self, name: str, index: int, call_id: str, flat: str, tool: Tool | None) -> None:
        tool = tool or Tool(flat)
        self._custom = tool.custom
        item = {
            "id": name,
            "type": "custom_tool_call" if tool.custom else "function_call",
            "status": "in_progress",
            "call_id": call_id,
            "name": tool.name,
            "input" if tool.custom else "arguments": "",
        }
        super().__init__(item | ({"namespace": tool.namespace} if tool.namespace else {}), index)

    def add(self, text: str, logprobs: list[Any] | None = None) -> Iterator[Step]:  # noqa: ARG002
        """A piece of the arguments; free text is known when all of them are."""
        self._pieces.append(text)
        if not self._custom:
            yield self._event("function_call_arguments.delta", delta=text)

    def end(self) -> Iterator[Step]:
        """The whole of them."""
        arguments = "".join(self._pieces)
        if self._custom:
            given = free_text(arguments)
            self.item |= {"status": "completed", "input": given}
            yield self._event("custom_tool_call_input.delta", delta=given)
            yield self._event("custom_tool_call_input.done", input=given)
        else:
            self.item |= {"status": "completed", "arguments": arguments}
            done = {"name": self.item["name"], "arguments": arguments}
            yield self._event("function_call_arguments.done", **done)
        yield from super().end()
