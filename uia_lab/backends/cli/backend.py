"""A command-line tool as a backend: one process a call."""

import asyncio
import math
import re
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from uia_lab.access.secrets import Secrets, not_set
from uia_lab.backends.cli.outputs import output_of
from uia_lab.backends.cli.process import MARK, ToolProcess
from uia_lab.backends.cli.programs import Programs
from uia_lab.backends.cli.prompts import prompt_of
from uia_lab.backends.cli.surroundings import House, environment_of, filled, keys_of
from uia_lab.backends.cli.tools import Tool
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BackendFailed, BadRequest, ContextTooLong, InferenceError, Unauthenticated
from uia_lab.domain.events import Chunk, Event, Finished, Started, Text, Usage
from uia_lab.domain.requests import CHARACTERS_A_TOKEN, InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.domain.texts import one_line
from uia_lab.engine.child import ending

# The answer to a question that was asked in time is waited for by the next look.
LOOK_S = 3.0
EXIT_S = 2.0
MAX_ARGUMENT = 120_000
"""Bytes of a prompt that goes into the command: Linux takes 128 KiB for one argument."""
# It goes into a command: one that began with a dash would be an option there.
_MODEL = re.compile(r"[A-Za-z0-9][\w.:/@+~-]{0,255}")


@dataclass(frozen=True, slots=True)
class _Call:
    """One call, ready to run but for what only the call itself has."""

    model: str
    prompt: str
    said: bytes | None
    command: tuple[str, ...]


class CliBackend:
    """Runs a tool for each request; it decides nothing and sets no deadlines.

    It serves the model of its own id, which is the tool's default, and ``<id>/<model>``; where its
    description names models, those and no others.

    Args:
        description: What it was registered as, with its id.
        tool: What is run, and how.
        path: The program.
        secrets: Where its keys are found.
        house: The way back into the house.
        programs: Asks for version and models.
    """

    def __init__(
        self,
        description: BackendDescription,
        tool: Tool,
        path: str,
        secrets: Secrets,
        house: House,
        programs: Programs,
    ) -> None:
        self.description = description
        self.tool = tool
        self.path = path
        self._secrets = secrets
        self._house = house
        self._programs = programs
        # Those under way, and whether they were cut short.
        self._running: dict[ToolProcess, bool] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._listed: list[str] | None = None

    def __repr__(self) -> str:
        return f"<CliBackend {self.description.id}: {self.path}>"

    @property
    def capabilities(self) -> BackendCapabilities:
        """What it can do: answer a text with a text, at the price of running a program."""
        return BackendCapabilities(
            supported_tasks={TEXT_GENERATION},
            supported_models=self._models(),
            supports_streaming=self.tool.streams,
            protocols={"cli"},
            side_effects=True,
            external=True,
        )

    async def start(self) -> None:
        """From now on calls run; nothing does between two of them."""
        self._stopped = False

    async def stop(self) -> None:
        """Ends the processes of running answers, which end with an error."""
        self._stopped = True
        for process in self._running:
            self._running[process] = True
            self._end(process)
        await asyncio.gather(*self._endings, return_exceptions=True)

    async def probe(self) -> Probe:
        """Has it tell its version and its models, which costs nothing; whether it may ask, nobody knows."""
        try:
            async with asyncio.timeout(LOOK_S):
                version = await self._programs.version(self.tool, self.path)
        except TimeoutError:
            return Probe(BackendStatus.INITIALIZING, "was asked for its version")
        except InferenceError as error:
            return Probe(BackendStatus.OFFLINE, error.message)
        reason = version if self.tool.name in version.lower() else f"{self.tool.name} {version}"
        name = self.description.api_key_env
        if name is not None and await asyncio.to_thread(self._secrets.find, name) is None:
            return Probe(BackendStatus.UNHEALTHY, not_set(name))
        if self.description.models is None and self.tool.listing:
            try:
                async with asyncio.timeout(LOOK_S / 2):
                    self._listed = await self._programs.models(self.tool, self.path)
            except TimeoutError:
                reason += ", was asked for its models"
            except InferenceError as error:
                return Probe(BackendStatus.UNHEALTHY, f"{reason}, but lists no models: {error.message}")
        return Probe(BackendStatus.HEALTHY, reason, self._models())

    async def infer(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """The answer's events.

        Raises:
            BadRequest: There is no text to give it, or no such model.
            Unsupported: A parameter that no tool follows.
            BackendFailed: How it failed, with what it said.
        """
        call = self._call(request)
        keys = await self._keys()
        yield Started("")
        output = output_of(self.tool.output, self.tool.errors)
        process: ToolProcess | None = None
        with ExitStack() as stack:
            way = stack.enter_context(self._house.visit(request))
            hidden = [*keys.values(), way.get("UIA_LAB_TOKEN", "")]
            folder = Path(tempfile.mkdtemp(prefix="uia-cli-"))
            try:
                process = await self._start(call, keys, way, folder)
                index = 0
                while not (self._running[process] or output.complete) and (data := await process.read()):
                    for piece in output.feed(data):
                        yield Chunk(index, Text(piece))
                        index += 1
                self._require_going(process)
                if not output.complete:
                    for piece in output.end():
                        yield Chunk(index, Text(piece))
                        index += 1
                # It says how it went where no event did; elsewhere it is only waited for.
                code = await process.exited(None if self.tool.output == "text" else EXIT_S)
                self._require_going(process)
                self._check(output.complete, output.text, code, process.words(hidden))
                yield Finished(output.text, output.usage or _estimate(call.prompt, output.text))
            except InferenceError as error:
                error.message = _shown(error.message, hidden)
                error.args = (error.message,)
                raise
            finally:
                await asyncio.shield(self._end(process, folder))

    def _models(self) -> frozenset[str]:
        if self.description.models is not None:
            return frozenset(self.description.models)
        own = self.description.id
        listed = ["*"] if self._listed is None else self._listed
        return frozenset({own, *(f"{own}/{name}" for name in listed)})

    def _call(self, request: InferenceRequest) -> _Call:
        prompt = prompt_of(request)
        named = self.description.models or ()
        model = request.model or next((name for name in named if "*" not in name), "")
        if self.description.models is None:
            model = model.removeprefix(self.description.id).removeprefix("/")
        if model and not _MODEL.fullmatch(model):
            raise BadRequest(
                f"{model!r} is no name of a model that goes into a command: letters, digits and ._:/@+~-",
                param="model",
            )
        command = (*self.tool.command[1:], *(self.tool.model if model else ()))
        if not model and any("{model}" in part for part in command):
            raise BadRequest(
                f"{self.description.id} has no default model: name one, as in "
                f"{self.description.id}/{self._listed[0] if self._listed else 'name'}",
                param="model",
            )
        encoded = prompt.encode(errors="replace")
        told = any("{prompt}" in part for part in command)
        if told and len(encoded) > MAX_ARGUMENT:
            raise ContextTooLong(
                f"{self.tool.name} takes its prompt as an argument, {MAX_ARGUMENT} bytes at most; this one "
                f"has {len(encoded)}"
            )
        if told and "\0" in prompt:
            raise BadRequest("a prompt that goes into a command has no null character", param="inputs")
        return _Call(model, prompt, None if told else encoded, command)

    async def _keys(self) -> dict[str, str]:
        name = self.description.api_key_env
        more = () if name is None else (name,)
        keys = await asyncio.to_thread(keys_of, self.tool, more, self._secrets)
        if name is not None and name not in keys:
            raise Unauthenticated(not_set(name))
        return keys

    async def _start(
        self, call: _Call, keys: dict[str, str], way: dict[str, str], folder: Path
    ) -> ToolProcess:
        values = {
            "model": call.model,
            "folder": str(folder),
            "url": way.get("UIA_LAB_URL", ""),
            "via": way["UIA_LAB_VIA"],
        }
        # A prompt that began with a dash would be an option where it begins an argument.
        dashed = call.prompt.startswith("-")
        command = [
            self.path,
            *(
                filled(part, values | {"prompt": f" {call.prompt}" if dashed else call.prompt})
                if part.startswith("{prompt}")
                else filled(part, values | {"prompt": call.prompt})
                for part in call.command
            ),
        ]
        # The key goes into the environment only: other users see what stands in a command.
        private = values | {"key": way.get("UIA_LAB_TOKEN", "")}
        environment = {**keys, **environment_of(self.tool, private), **way, MARK: uuid.uuid4().hex}
        process = await ToolProcess.start(command, environment, folder, call.said)
        # One that began while it was stopped is ended by its own call.
        self._running[process] = self._stopped
        return process

    def _require_going(self, process: ToolProcess) -> None:
        if self._running[process]:
            raise BackendFailed("was stopped while it answered")

    def _check(self, complete: bool, text: str, code: int | None, words: str) -> None:
        """Passes where the answer is whole and is one.

        Raises:
            BackendFailed: It is not.
        """
        how = "still running" if code is None else ending(code)
        said = f": {words}" if words else ""
        if self.tool.output == "text" and code != 0:
            raise BackendFailed(f"{self.tool.name} failed ({how}){said}")
        if not complete:
            raise BackendFailed(
                f"{self.tool.name} ended ({how}) without saying that its answer was whole{said}"
            )
        if not text.strip():
            raise BackendFailed(f"{self.tool.name} gave no text ({how}){said}")

    def _end(self, process: ToolProcess | None, folder: Path | None = None) -> "asyncio.Task[None]":
        """Ends a call's process, in a task: whoever is interrupted twice must not leave it behind."""
        task = asyncio.create_task(self._ended(process, folder), name="uia-cli-end")
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return task

    async def _ended(self, process: ToolProcess | None, folder: Path | None) -> None:
        if process is not None:
            await process.end()
        if folder is not None:
            if process is not None:
                self._running.pop(process, None)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _estimate(prompt: str, text: str) -> Usage:
    """Token counts where the tool told none."""
    return Usage(
        math.ceil(len(prompt) / CHARACTERS_A_TOKEN), math.ceil(len(text) / CHARACTERS_A_TOKEN), estimated=True
    )


def _shown(text: str, hidden: list[str]) -> str:
    for secret in filter(None, hidden):
        text = text.replace(secret, "<key>")
    return one_line(text)
