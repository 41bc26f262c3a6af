"""The process of one loaded model: ``python -m uia_lab.engine.worker FD``.

The main thread loads and then rests; a reading thread takes the messages and ends the process the moment
the server's end of the socket closes, in the middle of a generation too.
"""

import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import NoReturn, Protocol

from uia_lab.domain.errors import InferenceError
from uia_lab.domain.tasks import TEXT_EMBEDDING, TEXT_GENERATION
from uia_lab.engine.frames import (
    Cancel,
    Channel,
    Emit,
    Failed,
    FrameError,
    FromWorker,
    Load,
    Loaded,
    Ping,
    Pong,
    Stop,
    Submit,
)


class Engine(Protocol):
    """What runs a model inside a worker. It emits pieces and then one Done or Failed for each request."""

    def submit(self, job: Submit) -> None:
        """Takes a request and returns at once.

        Raises:
            InferenceError: It cannot be served; nothing else is emitted for it.
        """

    def cancel(self, rid: str) -> None:
        """Stops a request; an unknown one is ignored."""

    def stats(self) -> dict[str, float]:
        """``running`` and ``waiting`` requests, and what else is worth knowing."""


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Worker:
    """Serves one engine over a channel.

    Args:
        channel: The way to the server.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loads: queue.SimpleQueue[Load] = queue.SimpleQueue()
        self._engine: Engine | None = None

    def run(self) -> NoReturn:
        """Loads what the server names and serves until the server ends it or goes away."""
        threading.Thread(target=self._read, name="watchdog", daemon=True).start()
        while True:
            load = self._loads.get()
            start = time.monotonic()
            try:
                self._engine = engine_for(load, self.emit)
            except InferenceError as error:
                self.emit(Failed(None, error.code, error.message))
            except Exception as error:  # noqa: BLE001 - whatever a library raises is the server's to report
                self.emit(Failed(None, "backend_failed", f"{type(error).__name__}: {error}"))
            else:
                self.emit(Loaded(time.monotonic() - start))

    def emit(self, message: FromWorker) -> None:
        """Sends a message; without a server there is nothing left to do."""
        try:
            self._channel.send(message)
        except OSError:
            os._exit(0)
        except FrameError as error:
            rid = getattr(message, "rid", None)
            self._channel.send(Failed(rid, "backend_failed", str(error)))

    def _read(self) -> NoReturn:
        status = 0
        try:
            while (message := self._channel.receive()) is not None and not isinstance(message, Stop):
                if isinstance(message, Load):
                    self._loads.put(message)
                elif isinstance(message, Submit):
                    self._submit(message)
                elif isinstance(message, Cancel):
                    if self._engine is not None:
                        self._engine.cancel(message.rid)
                elif isinstance(message, Ping):
                    self.emit(Pong(self._engine.stats() if self._engine is not None else {}))
        except ConnectionError:
            pass  # The server died with unread messages of ours: as good as the end of the stream.
        except BaseException as error:  # noqa: BLE001 - a worker without its reader must not stay behind
            sys.stderr.write(f"worker: {type(error).__name__}: {error}\n")
            sys.stderr.flush()
            status = 1
        # Not sys.exit: llama.cpp aborts in its destructors while a stream runs.
        os._exit(status)

    def _submit(self, job: Submit) -> None:
        try:
            if self._engine is None:
                self.emit(Failed(job.rid, "backend_failed", "no model is loaded"))
            else:
                self._engine.submit(job)
        except InferenceError as error:
            self.emit(Failed(job.rid, error.code, error.message, error.param))
        except Exception as error:  # noqa: BLE001 - one request never ends the worker
            self.emit(Failed(job.rid, "backend_failed", f"{type(error).__name__}: {error}"))


def engine_for(load: Load, emit: Emit) -> Engine:
    """Loads a model; takes as long as that takes.

    Raises:
        InferenceError: It cannot be loaded; the message says why.
    """
    if load.engine == "llamacpp":
        from uia_lab.engine.llamacpp import LlamaCppEngine

        return LlamaCppEngine(load, emit, cores())
    if load.engine == "transformers":
        if load.task == TEXT_GENERATION:
            from uia_lab.engine.generation import GenerationEngine

            return GenerationEngine(load, emit, cores())
        if load.task == TEXT_EMBEDDING:
            from uia_lab.engine.embeddings import EmbeddingEngine

            return EmbeddingEngine(load, emit, cores())
        from uia_lab.engine.pipelines import PipelineEngine

        return PipelineEngine(load, emit, cores())
    raise ValueError(f"no engine is called {load.engine!r}")


def main() -> NoReturn:
    """Runs a worker on the inherited descriptor that the command line names."""
    # Ctrl-C in a notebook or a terminal is for the kernel or the server, which then end the worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["HF_HUB_OFFLINE"] = "1"
    inherited = int(sys.argv[1])
    # First the protocol gets a descriptor nobody else knows and stdout becomes stderr: then no library,
    # neither in Python nor in C, can print into the protocol.
    channel = Channel(socket.socket(fileno=os.dup(inherited)))
    os.close(inherited)
    os.dup2(2, 1)
    Worker(channel).run()


if __name__ == "__main__":
    main()
