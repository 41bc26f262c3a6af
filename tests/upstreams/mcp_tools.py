"""An MCP server over stdio whose tools do inference; it dies, hangs and fails when told to."""

import asyncio
import os
import sys

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

server = MCPServer("tools of a test")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def shout(text: str, times: int = 1) -> str:
    """Says it loud."""
    return " ".join([text.upper()] * times)


@server.tool()
def embed(texts: list[str]) -> dict[str, list[list[float]]]:
    """One short vector for each text."""
    return {"vectors": [[float(len(text)), 1.0] for text in texts]}


@server.tool()
async def count(text: str, ctx: Context) -> str:
    """Says it word by word."""
    for number, word in enumerate(words := text.split(), 1):
        await ctx.report_progress(number, len(words), word + " ")
    return "".join(word + " " for word in words)


@server.tool()
async def hang(text: str) -> str:
    """Never answers."""
    await asyncio.Event().wait()
    return text


@server.tool()
def break_down(text: str) -> str:
    """Fails."""
    raise ToolError(f"no {text} today")


@server.tool()
def die(text: str) -> str:
    """Ends the process."""
    os._exit(3)


@server.tool()
def environment(text: str) -> list[str]:
    """The names of the variables it sees, and the value of one."""
    return [*sorted(os.environ), os.environ.get(text, "")]


@server.tool()
def pid(text: str) -> str:
    """Which process it is."""
    return str(os.getpid())


if __name__ == "__main__":
    if "refuse" in sys.argv:
        sys.exit("the database is not there")
    server.run("stdio")
