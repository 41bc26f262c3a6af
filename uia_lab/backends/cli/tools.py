"""What is known of each command-line tool, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from uia_lab.backends.cli.formats import TEXT
from uia_lab.domain.errors import BadRequest, suggestion


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    ``{model}``, ``{prompt}``, ``{folder}`` and ``{url}`` in a command stand for what a call puts there. The
    prompt goes to the standard input of a command that has no ``{prompt}``.

    Args:
        name: Its name in ``cli_backends`` and in ids.
        title: Its name for people.
        command: The program and its arguments.
        model: Arguments that name the model, where the request names one.
        output: Form in which it answers: ``text``, or one of :mod:`uia_lab.backends.cli.formats`.
        streams: Whether it prints the answer in pieces.
        version: Arguments that make it tell its version, for nothing.
        listing: Arguments that make it list its models, for nothing.
        listed: What a line of that list looks like; the group is the model.
        keys: Variables it may be given although they are secrets.
        variables: Beginnings of the names of other variables it may be given.
        environment: Variables set for it.
        errors: Beginnings of answers that are errors, though the tool says that all is well.
        aliases: Other names it is called by.
        verified: Whether this code has ever driven the real thing.
    """

    name: str
    title: str
    command: tuple[str, ...]
    model: tuple[str, ...] = ()
    output: str = TEXT
    streams: bool = True
    version: tuple[str, ...] = ("--version",)
    listing: tuple[str, ...] = ()
    listed: str = r"(\S+)"
    keys: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    verified: bool = False

    @property
    def program(self) -> str:
        """What is looked for on PATH."""
        return self.command[0]


# Those that can do more than answer are told not to: no tools, no writing, no questions, no session kept.
TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "claude",
            "Claude Code",
            (
                *("claude", "-p", "--output-format", "stream-json", "--verbose"),
                *("--include-partial-messages", "--no-session-persistence"),
                *("--tools", "", "--strict-mcp-config"),
            ),
            model=("--model", "{model}"),
            output="claude",
            keys=("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
            variables=("ANTHROPIC_", "CLAUDE_"),
            environment={"DISABLE_AUTOUPDATER": "1"},
            aliases=("claude_cli", "claude_code"),
            verified=True,
        ),
        Tool(
            "codex",
            "Codex",
            (
                *("codex", "exec", "--json", "--ephemeral", "--skip-git-repo-check", "-s", "read-only"),
                *("-c", "features.shell_tool=false", "-c", "features.unified_exec=false", "-"),
            ),
            model=("-m", "{model}"),
            output="codex",
            streams=False,
            keys=("OPENAI_API_KEY", "CODEX_API_KEY"),
            variables=("CODEX_", "OPENAI_BASE_URL"),
            aliases=("codex_cli", "openai_cli"),
            verified=True,
        ),
        Tool(
            "gemini",
            "Gemini CLI",
            ("gemini", "-o", "stream-json", "--skip-trust"),
            model=("-m", "{model}"),
            output="gemini",
            keys=("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
            variables=("GEMINI_", "GOOGLE_"),
            aliases=("gemini_cli",),
            # Against a mock of its provider.
            verified=True,
        ),
        Tool(
            "qwen",
            "Qwen Code",
            (
                *("qwen", "-o", "stream-json", "--include-partial-messages"),
                *("--approval-mode", "default", "--chat-recording=false"),
            ),
            model=("-m", "{model}"),
            output="claude",
            keys=("OPENAI_API_KEY", "DASHSCOPE_API_KEY"),
            variables=("OPENAI_BASE_URL", "OPENAI_MODEL", "QWEN_"),
            errors=("[API Error:",),
            aliases=("qwen_cli", "qwen_code"),
            verified=True,
        ),
        Tool(
            "opencode",
            "OpenCode",
            ("opencode", "run", "--format", "json"),
            model=("-m", "{model}"),
            output="opencode",
            streams=False,
            listing=("models",),
            listed=r"(\S+/\S+)",
            keys=("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENCODE_API_KEY"),
            variables=("OPENCODE_",),
            environment={
                "OPENCODE_DISABLE_AUTOUPDATE": "1",
                "OPENCODE_PERMISSION": '{"bash":"deny","edit":"deny","external_directory":"deny",'
                '"webfetch":"deny"}',
            },
            aliases=("opencode_cli",),
            verified=True,
        ),
        Tool(
            "copilot",
            "GitHub Copilot CLI",
            (
                *("copilot", "--output-format", "json", "--stream", "on", "--no-ask-user"),
                *("--available-tools=", "--disable-builtin-mcps", "--no-auto-update"),
            ),
            model=("--model", "{model}"),
            output="copilot",
            keys=("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN", "COPILOT_PROVIDER_API_KEY"),
            variables=("COPILOT_", "GH_HOST"),
            aliases=("copilot_cli", "github_copilot"),
            verified=True,
        ),
        Tool(
            "goose",
            "goose",
            ("goose", "run", "--no-session", "--quiet", "--output-format", "stream-json", "-i", "-"),
            model=("--model", "{model}"),
            output="goose",
            keys=("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GOOGLE_API_KEY"),
            variables=("GOOSE_",),
            environment={"GOOSE_MODE": "chat"},
            aliases=("goose_cli",),
        ),
        Tool(
            "llm",
            "LLM",
            ("llm", "prompt", "--no-log"),
            model=("-m", "{model}"),
            listing=("models", "list"),
            listed=r"(?!Default:)[^:]+: (\S+)",
            keys=("OPENAI_API_KEY",),
            variables=("LLM_",),
            environment={"PYTHONUTF8": "1"},
            aliases=("llm_cli", "openai_cli"),
            verified=True,
        ),
        Tool(
            "ollama",
            "Ollama",
            ("ollama", "run", "--nowordwrap", "{model}"),
            listing=("list",),
            listed=r"(?!NAME\s)(\S+)",
            variables=("OLLAMA_",),
            aliases=("ollama_cli",),
        ),
    )
}


def tools_named(name: str, param: str = "cli_backends") -> tuple[Tool, ...]:
    """The tools of a name or alias; case and dashes do not matter.

    Raises:
        BadRequest: There is none; the message lists the known ones.
    """
    wanted = name.strip().lower().replace("-", "_")
    found = tuple(tool for tool in TOOLS.values() if wanted in (tool.name, *tool.aliases))
    if not found:
        raise BadRequest(f"{param}: {name!r} is no known tool.{suggestion(name, TOOLS)}", param=param)
    return found
