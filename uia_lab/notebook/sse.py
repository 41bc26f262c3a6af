"""Server-sent events, as far as an answer's stream needs them."""

from collections.abc import AsyncIterable, AsyncIterator


async def events(lines: AsyncIterable[bytes]) -> AsyncIterator[tuple[str, str]]:
    """Pairs (event name, data) of a stream of lines; comments are dropped.

    Args:
        lines: Lines with their ends, as a response body gives them.
    """
    name, data = "message", list[str]()
    async for raw in lines:
        line = raw.decode().rstrip("\r\n")
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
    if data:
        yield name, "\n".join(data)
