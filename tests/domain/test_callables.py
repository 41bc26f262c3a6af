"""Functions of every kind as backends."""

import asyncio
import functools
import threading

import pytest

from uia_lab.domain.callables import CallableBackend
from uia_lab.domain.errors import BadRequest
from uia_lab.domain.events import Chunk, Finished, Started
from uia_lab.domain.requests import InferenceRequest


def request(inputs="a b"):
    return InferenceRequest("text-generation", "m", inputs, parameters={"seed": 1})


async def answer(function, inputs="a b"):
    backend = CallableBackend(function)
    try:
        events = [event async for event in backend.infer(request(inputs))]
    finally:
        await backend.stop()
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    return [event.delta for event in events if isinstance(event, Chunk)], events[-1]


def function(inputs):
    return inputs.upper()


def generator(inputs):
    yield from inputs.split()


async def coroutine(inputs):
    await asyncio.sleep(0)
    return inputs.upper()


async def async_generator(inputs):
    for word in inputs.split():
        yield word


class Instance:
    async def __call__(self, inputs):
        return inputs.upper()


@pytest.mark.parametrize(
    ("kind", "pieces", "result"),
    [
        (function, ["A B"], "A B"),
        (generator, ["a", "b"], "ab"),
        (coroutine, ["A B"], "A B"),
        (async_generator, ["a", "b"], "ab"),
        (Instance(), ["A B"], "A B"),
        (functools.partial(coroutine), ["A B"], "A B"),
        (lambda **all_of_it: ",".join(sorted(all_of_it)), ["inputs,model,parameters,request,task"], None),
        (lambda model, parameters: f"{model} {parameters}", ["m {'seed': 1}"], None),
    ],
)
async def test_each_kind_streams_what_it_yields_and_answers_what_it_returns(kind, pieces, result):
    deltas, finished = await answer(kind)
    assert [delta.text for delta in deltas] == pieces
    assert finished.result == (result if result is not None else pieces[0])
    assert finished.usage.estimated


async def test_other_results_pass_as_they_are():
    deltas, finished = await answer(lambda inputs: [[1.0, 2.0]])
    assert deltas[0].value == finished.result == [[1.0, 2.0]]


async def test_a_synchronous_function_does_not_hold_up_the_loop():
    release = threading.Event()
    task = asyncio.create_task(answer(lambda: str(release.wait(10))))
    await asyncio.sleep(0)
    release.set()
    assert (await task)[1].result == "True"


async def test_a_generator_is_closed_when_the_caller_leaves():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield "x"
        finally:
            closed.set()

    backend = CallableBackend(endless)
    events = backend.infer(request())
    await anext(events)
    await anext(events)
    await events.aclose()
    assert await asyncio.to_thread(closed.wait, 10)
    await backend.stop()


async def test_what_it_raises_comes_out():
    def bad():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await answer(bad)


@pytest.mark.parametrize("bad", [lambda prompt: prompt, 7, "text"])
def test_what_cannot_be_called_is_refused(bad):
    with pytest.raises(BadRequest) as caught:
        CallableBackend(bad)
    assert caught.value.param == "instance"
