"""The official client against the doors, as its users would use it."""

import openai
import pytest

HELLO = [{"role": "user", "content": "one two"}]


@pytest.fixture
async def client(house):
    url = house.server.url + "v1"
    async with openai.AsyncOpenAI(api_key="uia-test-key-of-admin", base_url=url, max_retries=0) as client:
        yield client


async def test_chat(client):
    answer = await client.chat.completions.create(model="echo", messages=HELLO, temperature=0.5, seed=1)
    assert answer.choices[0].message.content == "one two "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.id.startswith("chatcmpl-")


async def test_chat_stream_with_usage(client):
    stream = await client.chat.completions.create(
        model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two "
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 2


async def test_completions_whole_and_streamed(client):
    answer = await client.completions.create(model="echo", prompt="three four")
    assert answer.choices[0].text == "three four "
    stream = await client.completions.create(model="echo", prompt="three four", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "three four "


@pytest.mark.parametrize("encoding", [openai.omit, "float", "base64"])
async def test_embeddings(client, encoding):
    answer = await client.embeddings.create(model="org/vectors", input=["a", "bcd"], encoding_format=encoding)
    if encoding != "base64":
        assert [item.embedding for item in answer.data] == [[1.0, 1.0, 0.5], [3.0, 1.0, 0.5]]
    assert [item.index for item in answer.data] == [0, 1]
    assert (await client.embeddings.create(model="org/vectors", input="abcd")).data[0].embedding[0] == 4.0


async def test_models(client):
    names = [model.id async for model in client.models.list()]
    assert {"echo", "org/vectors"} <= set(names)
    assert (await client.models.retrieve("org/vectors")).owned_by == "vectors"


async def test_errors_are_the_typed_ones(client):
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert missing.value.code == "model_not_found"
    assert "echo" in missing.value.message
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="echo", messages=[])
    assert bad.value.param == "messages"
    for wrong in ("uia-not-a-key-at-all", "sk-123"):
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key=wrong).models.list()
    with pytest.raises(openai.PermissionDeniedError):
        await client.with_options(api_key="uia-test-key-of-read").embeddings.create(model="x", input="a")
    assert (await client.with_options(api_key="uia-test-key-of-infer").models.list()).data


async def test_a_broken_stream_raises(client):
    stream = await client.chat.completions.create(model="breaks", messages=HELLO, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "begun "
    with pytest.raises(openai.APIError, match="wheel"):
        await anext(stream)


async def test_closing_a_stream_frees_its_backend(house, client):
    stream = await client.chat.completions.create(model="endless", messages=HELLO, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await house.until_idle(10.0)
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.2).chat.completions.create(model="gated", messages=HELLO)
    await house.until_idle(10.0)
    assert house.manager.get_backend_status_report()["total_cancelled"] == 2
