"""A broken answer goes on at a backend with the same weights, and nothing is lost or doubled."""

import pytest

from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import BackendFailed, StreamInterrupted
from uia_lab.domain.events import Chunk, Finished, Started, Switched, Text, ToolCall, Usage

WORDS = ["Once ", "upon ", "a ", "time ", "there ", "was"]


class Continuing:
    """Says WORDS one by one, from where it is told to go on, and breaks off after some."""

    def __init__(self, breaks_after=None, digest="d1", resume=True, delta=Text):
        self.capabilities = BackendCapabilities(
            {"text-generation"},
            {"m"},
            supports_streaming=True,
            resume=resume,
            model_digest={"m": digest},
        )
        self.breaks_after, self.delta = breaks_after, delta
        self.resumed = []

    async def start(self): ...

    async def stop(self): ...

    async def probe(self):
        return Probe(BackendStatus.HEALTHY, "here")

    async def infer(self, request):
        yield Started("")
        said = request.resumed.text if request.resumed else ""
        self.resumed.append(request.resumed)
        rest = WORDS[len(said.split()) :]
        for number, word in enumerate(rest):
            if number == self.breaks_after:
                raise BackendFailed("cut")
            yield Chunk(number, self.delta(word) if self.delta is Text else ToolCall(0, arguments=word))
        yield Finished("".join(rest), Usage(4 + len(said.split()), len(rest)))


@pytest.fixture
def register(manager):
    manager.set_strategy("round_robin")

    def add(**backends):
        for number, (name, backend) in enumerate(backends.items()):
            manager.register_backend(name, "gpu", name, backend, weight=100.0**-number)

    return add


async def test_the_answer_goes_on_elsewhere(manager, register):
    first, second = Continuing(breaks_after=2), Continuing()
    register(first=first, second=second)
    events = [event async for event in manager.stream("generation", "m", "x")]
    kinds = [type(event) for event in events]
    assert kinds == [Started, Chunk, Chunk, Switched, Chunk, Chunk, Chunk, Chunk, Finished]
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert [chunk.index for chunk in chunks] == list(range(6))
    assert "".join(chunk.delta.text for chunk in chunks) == "".join(WORDS)
    switched = events[3]
    assert (switched.from_id, switched.to_id, switched.at_index) == ("first", "second", 2)
    assert "cut" in switched.reason
    end = events[-1]
    assert end.result == "".join(WORDS)
    assert (end.usage.input_tokens, end.usage.output_tokens) == (4, 6), "the prompt counts once"
    assert [(item.backend_id, item.outcome) for item in end.attempts] == [
        ("first", "failed"),
        ("second", "ok"),
    ]
    assert second.resumed[0].text == "Once upon "
    assert second.resumed[0].tokens == 2
    report = manager.get_backend_status_report()
    assert (report["total_requests"], report["total_successful"]) == (1, 1)


async def test_it_may_break_twice(manager, register):
    register(a=Continuing(breaks_after=1), b=Continuing(breaks_after=2), c=Continuing())
    result = await manager.infer("generation", "m", "x")
    assert result.text == "".join(WORDS)
    assert result.backend_id == "c" or [item.backend_id for item in result.attempts] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("first", "second", "request_fields"),
    [
        (Continuing(2, resume=False), Continuing(), {}),
        (Continuing(2), Continuing(resume=False), {}),
        (Continuing(2, digest="d1"), Continuing(digest="d2"), {}),
        (Continuing(2), Continuing(), {"resume": False}),
        (Continuing(2), Continuing(), {"parameters": {"n": 2}}),
        (Continuing(2, delta=ToolCall), Continuing(), {}),
    ],
    ids=["first cannot", "second cannot", "other weights", "not wanted", "several choices", "tool call"],
)
async def test_where_it_would_not_be_exact_the_stream_is_interrupted(
    manager, register, first, second, request_fields
):
    register(first=first, second=second)
    stream = manager.stream("generation", "m", "x", **request_fields)
    with pytest.raises(StreamInterrupted, match="first broke off after 2 chunks: cut"):
        await stream.result()
    assert second.resumed == []


async def test_a_frozen_one_is_left_after_a_multiple_of_its_pace(manager, register, monkeypatch):
    import asyncio

    monkeypatch.setattr("uia_lab.manager.attempt.NEXT_CHUNK_LEAST_S", 0.1)

    class Freezing(Continuing):
        async def infer(self, request):
            async for event in super().infer(request):
                yield event
                if isinstance(event, Chunk) and event.index == 3:
                    await asyncio.Event().wait()

    register(first=Freezing(), second=Continuing())
    result = await manager.infer("generation", "m", "x")
    assert result.text == "".join(WORDS)
    assert result.attempts[0].error == "backend_timeout"
