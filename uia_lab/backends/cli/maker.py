"""Makes a tool's backend of a description: one of the table, or a command of the user's own."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from uia_lab.access.secrets import Secrets
from uia_lab.backends.cli.backend import CliBackend
from uia_lab.backends.cli.formats import TEXT, known_format
from uia_lab.backends.cli.programs import Programs, found, located
from uia_lab.backends.cli.surroundings import PLACES, House, is_secret
from uia_lab.backends.cli.tools import Tool, tools_named
from uia_lab.domain.backends import BackendType
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BadRequest, NotAllowed, suggestion
from uia_lab.domain.tasks import TEXT_GENERATION

OPTIONS = ("tool", "command", "arguments", "environment", "errors", "version", "streams")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("UIA_LAB_", "LD_", "DYLD_")


class CliMaker:
    """Knows what a description of type ``cli`` stands for.

    Args:
        secrets: Where keys of tools are found.
        house: The way back into the house.
        enabled: Whether tools are run at all.
    """

    def __init__(self, secrets: Secrets, house: House, *, enabled: bool = True) -> None:
        self.programs = Programs()
        self._secrets = secrets
        self._house = house
        self._enabled = enabled

    def stem(self, description: BackendDescription) -> str:
        """What an id begins with where nobody gave one."""
        options = description.options
        program = options.get("tool") or next(iter(options.get("command") or ()), "")
        return f"{Path(str(program)).stem}-cli"

    async def complete(self, description: BackendDescription) -> BackendDescription:
        """The description with what it leaves open.

        Raises:
            BadRequest: A field is wrong, or the program is not there.
            NotAllowed: Tools are switched off.
        """
        tool = self._tool(description)
        return msgspec.structs.replace(
            description,
            type=BackendType.CLI.value,
            name=description.name or tool.title,
            endpoint=located(tool.program),
            dialect=tool.output,
            tasks=(TEXT_GENERATION,),
            # Of most tools two at once would work on the same files of their user's.
            max_concurrency=description.max_concurrency or 1,
        )

    def build(self, description: BackendDescription) -> CliBackend:
        """The backend of a complete description; nothing runs yet.

        Raises:
            BadRequest: A field is wrong.
            NotAllowed: Tools are switched off.
        """
        tool = self._tool(description)
        # Where it is now: an upgrade may have moved it since it was kept.
        path = found(tool.program) or description.endpoint or tool.program
        return CliBackend(description, tool, path, self._secrets, self._house, self.programs)

    async def close(self) -> None:
        """Ends what is being asked of programs."""
        await self.programs.close()

    def _tool(self, description: BackendDescription) -> Tool:
        if not self._enabled:
            raise NotAllowed("command-line tools are switched off here (enable_cli_backends)", param="type")
        if description.tasks not in (None, (TEXT_GENERATION,)):
            raise BadRequest(f"tasks: command-line tools do {TEXT_GENERATION}", param="tasks")
        options = checked(description.options)
        added = {
            "environment": options.get("environment", {}),
            "errors": tuple(options.get("errors", ())),
        }
        if "tool" in options:
            tool = tools_named(options["tool"], "options.tool")[0]
            if description.dialect not in (None, tool.output):
                raise BadRequest(f"dialect: {tool.name} answers in {tool.output!r}", param="dialect")
            return replace(
                tool,
                command=(*tool.command, *options.get("arguments", ())),
                environment={**tool.environment, **added["environment"]},
                errors=tool.errors + added["errors"],
            )
        command = tuple(options["command"])
        name = Path(command[0]).stem
        output = known_format(description.dialect or TEXT)
        return Tool(
            name,
            description.name or name,
            command,
            output=output,
            streams=options.get("streams", True),
            version=tuple(options.get("version", ())),
            **added,
        )


def checked(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a description of type ``cli``, as they are.

    Raises:
        BadRequest: One is unknown or of the wrong type; ``param`` names it.
    """
    for name in options:
        if name not in OPTIONS:
            raise _wrong(name, f"is unknown.{suggestion(name, OPTIONS)}")
    if ("tool" in options) == ("command" in options):
        raise _wrong("tool", "or options.command is needed: a known tool, or a program with its arguments")
    if "tool" in options and not isinstance(options["tool"], str):
        raise _wrong("tool", "must be the name of a tool")
    if "arguments" in options and "tool" not in options:
        raise _wrong("arguments", "go with options.tool; options.command holds its own")
    for name in ("command", "arguments", "errors", "version"):
        items = options.get(name, [])
        if not isinstance(items, (list, tuple)) or not all(
            isinstance(item, str) and "\0" not in item for item in items
        ):
            raise _wrong(name, "must be a list of strings: no shell sees it, so each argument is one of them")
    if "command" in options and not (options["command"] and options["command"][0]):
        raise _wrong("command", "must begin with a program")
    for name in ("command", "arguments"):
        if any("{key}" in item for item in options.get(name, ())):
            raise _wrong(
                name, "must not hold {key}: other users see commands; put it into options.environment"
            )
    if not isinstance(options.get("streams", True), bool):
        raise _wrong("streams", "must be true or false")
    _check_environment(options.get("environment", {}))
    return options


def _check_environment(environment: object) -> None:
    if not isinstance(environment, Mapping):
        raise _wrong("environment", "must be an object of strings")
    for name, value in environment.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(value, str):
            raise _wrong("environment", "must be an object of strings, by names of variables")
        if "\0" in value:
            raise _wrong("environment", "must not hold null characters")
        if name.startswith(_OURS):
            raise _wrong("environment", f"must not set {name}")
        if is_secret(name) and value not in ("", *(f"{{{place}}}" for place in PLACES)):
            raise _wrong(
                "environment",
                f"must not hold {name}: it would be kept as it is; put it into the server's environment and "
                "name it in api_key_env",
            )


def _wrong(name: str, what: str) -> BadRequest:
    return BadRequest(f"options.{name} {what}", param=f"options.{name}")
