"""A request as a script that asks the same with the openai package."""

from pprint import pformat
from typing import Any

from uia_lab.domain.requests import InferenceRequest

# Where `python -m uia_lab serve` listens, for those who have no server yet.
DEFAULT_URL = "http://127.0.0.1:8000/"
_NO_SERVER = "# Nothing listens in local mode: start a server with `python -m uia_lab serve`.\n"
_KNOWN = frozenset(
    ("temperature", "max_tokens", "max_completion_tokens", "seed", "top_p", "stop", "frequency_penalty",
     "presence_penalty", "n", "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice",
     "parallel_tool_calls", "response_format", "reasoning_effort", "user")
)  # fmt: skip


def openai_snippet(request: InferenceRequest, url: str | None) -> str:
    """The script; the key is named and never written.

    Args:
        request: A request for text, with messages.
        url: Address of the service; None where nothing listens.
    """
    given = dict(request.parameters)
    # What the openai package does not know by name goes into the body as it is.
    beyond = {name: given.pop(name) for name in tuple(given) if name not in _KNOWN}
    if hints := _hints(request):
        beyond["uia"] = hints
    arguments: dict[str, Any] = {
        # Without a model the server takes its default; the package insists on the argument.
        "model": request.model,
        "messages": [dict(message) for message in request.messages or ()],
        **given,
        "stream": True,
    }
    if beyond:
        arguments["extra_body"] = beyond
    lines = "".join(f"    {name}={_written(value, len(name) + 5)},\n" for name, value in arguments.items())
    return (
        f"import os\n\nfrom openai import OpenAI\n\n{'' if url else _NO_SERVER}"
        f"client = OpenAI(\n    base_url={(url or DEFAULT_URL) + 'v1'!r},\n"
        '    api_key=os.environ["UIA_LAB_TOKEN"],  # a key of lab.keys.create(...)\n)\n'
        f"stream = client.chat.completions.create(\n{lines})\n"
        "for chunk in stream:\n    if chunk.choices:\n"
        '        print(chunk.choices[0].delta.content or "", end="", flush=True)\n'
    )


def _hints(request: InferenceRequest) -> dict[str, Any]:
    routing = request.routing
    hints = {
        "backend": routing.backend_id,
        "prefer": [kind.value for kind in routing.preferred_types] or None,
        "exclude": sorted(routing.excluded_backends) or None,
        "session": routing.session_id,
        "timeout": routing.deadline_s,
    }
    return {name: value for name, value in hints.items() if value is not None}


def _written(value: Any, column: int) -> str:
    return pformat(value, width=88, sort_dicts=False).replace("\n", "\n" + " " * column)
