"""A real llama.cpp server in a process of its own: ``python -m tests.upstreams.llamacpp_server FILE``.

It prints its address when it listens, and ends when its standard input does.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Self

ALIAS = "smollm2"


class LlamaCppServer:
    """The process; an asynchronous context manager.

    Args:
        model: A GGUF file.
        slots: Requests it works on at once.
    """

    def __init__(self, model: Path, slots: int = 4) -> None:
        self.model = model
        self.slots = slots
        self.url = ""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, str(self.model), str(self.slots),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            line = await self._process.stdout.readline()
        self.url = line.decode().strip()
        assert self.url.startswith("http://127.0.0.1:"), "it did not start"
        return self

    async def kill(self) -> None:
        """Ends it as the kernel does when memory is out."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


def main() -> None:
    """Serves until standard input ends."""
    # What the library prints must not get between us and whoever reads the address.
    told = os.dup(1)
    os.dup2(2, 1)
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.n_parallel = int(sys.argv[2])
    parameters.n_ctx = 512 * parameters.n_parallel
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.model_alias = {ALIAS}
    server = xllamacpp.Server(parameters)
    os.write(told, f"{server.listening_address}\n".encode())
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
