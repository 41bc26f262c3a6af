"""A server with everything that the conformance suite asks for, mounted through our bridge.

Names, texts and schemas are those of the suite. ``python -m tests.upstreams.mcp_conformance`` prints its
address.
"""

import asyncio
import base64
import json
from typing import Any

import mcp_types as types
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from tornado.web import Application, RequestHandler

from uia_lab.doors.asgi import Exchange

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
SOUND = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
TITLES = [{"const": f"value{number}", "title": f"Option {number}"} for number in (1, 2, 3)]
NAMES = ["option1", "option2", "option3"]
ENUMS = {
    "untitledSingle": {"type": "string", "enum": NAMES},
    "titledSingle": {"type": "string", "oneOf": TITLES},
    "legacyEnum": {"type": "string", "enum": NAMES, "enumNames": ["One", "Two", "Three"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": NAMES}},
    "titledMulti": {"type": "array", "items": {"anyOf": TITLES}},
}
DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

Asked = str | types.InputRequiredResult
server = MCPServer("conformance", version="1")


def picture():
    return types.ImageContent(data=PICTURE, mime_type="image/png")


def text(words):
    return types.TextContent(text=words)


def embedded(uri, words, kind="text/plain"):
    contents = types.TextResourceContents(uri=uri, mime_type=kind, text=words)
    return types.EmbeddedResource(resource=contents)


@server.tool(description="plain text")
def test_simple_text() -> str:
    return "This is a simple text response for testing."


@server.tool(description="a picture", structured_output=False)
def test_image_content() -> Any:
    return picture()


@server.tool(description="a sound", structured_output=False)
def test_audio_content() -> Any:
    return types.AudioContent(data=SOUND, mime_type="audio/wav")


@server.tool(description="a resource", structured_output=False)
def test_embedded_resource() -> Any:
    return embedded("test://embedded-resource", "This is an embedded resource content.")


@server.tool(description="several kinds", structured_output=False)
def test_multiple_content_types() -> Any:
    value = json.dumps({"test": "data", "value": 123})
    return [
        text("Multiple content types test:"),
        picture(),
        embedded("test://mixed-content-resource", value, "application/json"),
    ]


@server.tool(description="an error")
def test_error_handling() -> str:
    raise ToolError("This tool intentionally returns an error for testing")


@server.tool(description="log messages")
async def test_tool_with_logging(ctx: Context) -> str:
    for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(words)
        await asyncio.sleep(0.05)
    return "done"


@server.tool(description="a log message")
async def test_logging_tool(ctx: Context) -> str:
    await ctx.info("logged")
    return "done"


@server.tool(description="progress")
async def test_tool_with_progress(ctx: Context) -> str:
    for number in (0, 50, 100):
        await ctx.report_progress(number, 100, f"step {number}")
        await asyncio.sleep(0.05)
    return "done"


@server.tool(description="asks the client's model")
async def test_sampling(prompt: str, ctx: Context) -> str:
    asked = [types.SamplingMessage(role="user", content=text(prompt))]
    answer = await ctx.session.create_message(asked, max_tokens=100)
    return f"LLM response: {answer.content.text}"


async def elicited(ctx, message, properties, required=()):
    schema = {"type": "object", "properties": properties, "required": list(required)}
    answer = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return f"action={answer.action}, content={json.dumps(answer.content)}"


@server.tool(description="asks the user")
async def test_elicitation(message: str, ctx: Context) -> str:
    fields = {"username": {"type": "string"}, "email": {"type": "string"}}
    return "User response: " + await elicited(ctx, message, fields, fields)


@server.tool(description="asks the user, with defaults")
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    return "Elicitation completed: " + await elicited(ctx, "Who are you?", DEFAULTS)


@server.tool(description="asks the user, with choices")
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    return "Elicitation completed: " + await elicited(ctx, "Which?", ENUMS)


@server.tool(description="closes its stream and goes on")
async def test_reconnection(ctx: Context) -> str:
    await ctx.close_sse_stream()
    await asyncio.sleep(0.2)
    return "Reconnection test completed"


@server.tool(description="needs what the client did not declare")
def test_missing_capability(ctx: Context) -> str:
    if ctx.client_capabilities is None or ctx.client_capabilities.sampling is None:
        needed = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "sampling is needed", needed)
    return "done"


@server.tool(description="changes the tools")
async def test_trigger_tool_change(ctx: Context) -> str:
    await ctx.notify_tools_changed()
    return "done"


@server.tool(description="changes the prompts")
async def test_trigger_prompt_change(ctx: Context) -> str:
    await ctx.notify_prompts_changed()
    return "done"


@server.tool(name="json_schema_2020_12_tool", description="Tool with JSON Schema 2020-12 features")
def json_schema() -> str:
    return "done"


server._tool_manager.get_tool("json_schema_2020_12_tool").parameters = SCHEMA


def elicit(message, name, kind="string"):
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(words, most):
    said = [types.SamplingMessage(role="user", content=text(words))]
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=said, max_tokens=most))


def given(ctx, *names):
    """The answers of those names, or None while one is missing."""
    answers = ctx.input_responses or {}
    return [answers[name] for name in names] if all(name in answers for name in names) else None


def asks(state=None, **requests):
    return types.InputRequiredResult(input_requests=requests, request_state=state)


def said(answer, name):
    content = getattr(answer, "content", None)
    return content.get(name) if isinstance(content, dict) else None


@server.tool(description="asks for a name in its result")
def test_input_required_result_elicitation(ctx: Context) -> Asked:
    answers = given(ctx, "user_name")
    if answers is None or said(answers[0], "name") is None:
        return asks(user_name=elicit("What is your name?", "name"))
    return f"Hello, {said(answers[0], 'name')}!"


test_streaming_elicitation = server.tool(
    name="test_streaming_elicitation", description="asks for a name while it streams"
)(test_input_required_result_elicitation)


@server.tool(description="asks the client's model in its result")
def test_input_required_result_sampling(ctx: Context) -> Asked:
    answers = given(ctx, "capital_question")
    if answers is None:
        return asks(capital_question=sample("What is the capital of France?", 100))
    return answers[0].content.text


@server.tool(description="asks for the client's folders in its result")
def test_input_required_result_list_roots(ctx: Context) -> Asked:
    answers = given(ctx, "client_roots")
    if answers is None:
        return asks(client_roots=types.ListRootsRequest())
    return ", ".join(str(root.uri) for root in answers[0].roots)


@server.tool(description="keeps its state at the client")
def test_input_required_result_request_state(ctx: Context) -> Asked:
    if given(ctx, "confirm") is None or ctx.request_state != "confirming":
        return asks("confirming", confirm=elicit("Please confirm", "ok", "boolean"))
    return "state-ok"


test_input_required_result_tampered_state = server.tool(
    name="test_input_required_result_tampered_state", description="refuses a state that was changed"
)(test_input_required_result_request_state)


@server.tool(description="asks for several things at once")
def test_input_required_result_multiple_inputs(ctx: Context) -> Asked:
    if given(ctx, "user_name", "greeting", "client_roots") is None:
        return asks(
            "several",
            user_name=elicit("What is your name?", "name"),
            greeting=sample("Generate a greeting", 50),
            client_roots=types.ListRootsRequest(),
        )
    return "done"


@server.tool(description="asks twice")
def test_input_required_result_multi_round(ctx: Context) -> Asked:
    if ctx.request_state == "second" and given(ctx, "step2") is not None:
        return "done"
    if ctx.request_state == "first" and given(ctx, "step1") is not None:
        return asks("second", step2=elicit("Step 2: What is your favorite color?", "color"))
    return asks("first", step1=elicit("Step 1: What is your name?", "name"))


@server.tool(description="asks only for what the client can do")
def test_input_required_result_capabilities(ctx: Context) -> Asked:
    can = ctx.client_capabilities
    wanted = {
        "name": elicit("What is your name?", "name") if can and can.elicitation else None,
        "greeting": sample("Generate a greeting", 50) if can and can.sampling else None,
    }
    requests = {name: request for name, request in wanted.items() if request is not None}
    return asks(**requests) if requests and not ctx.input_responses else "done"


@server.resource("test://static-text", description="text", mime_type="text/plain")
def static_text() -> str:
    return "This is the content of the static text resource."


@server.resource("test://static-binary", description="a picture", mime_type="image/png")
def static_binary() -> bytes:
    return base64.b64decode(PICTURE)


@server.resource("test://watched-resource", description="watched", mime_type="text/plain")
def watched() -> str:
    return "watched"


@server.resource("test://template/{id}/data", description="by id", mime_type="application/json")
def template(id: str) -> str:  # noqa: A002 - the suite's name
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@server.prompt(description="simple")
def test_simple_prompt() -> str:
    return "This is a simple prompt for testing."


@server.prompt(description="with arguments")
def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@server.prompt(description="with a resource")
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803 - the suite's name
    resource = embedded(resourceUri, "Embedded resource content for testing.")
    return [UserMessage(resource), UserMessage("Please process the embedded resource above.")]


@server.prompt(description="with a picture")
def test_prompt_with_image() -> list[UserMessage]:
    return [UserMessage(picture()), UserMessage("Please analyze the image above.")]


@server.prompt(description="asks for its context")
def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | types.InputRequiredResult:
    answers = given(ctx, "user_context")
    if answers is None:
        return asks(user_context=elicit("What context should the prompt use?", "context"))
    return [UserMessage(f"Context: {said(answers[0], 'context')}")]


@server.completion()
async def completion(ref, argument, context) -> types.Completion:
    return types.Completion(values=["paris", "park"], total=2, has_more=False)


async def accepted(_, params) -> types.EmptyResult:
    return types.EmptyResult()


for method, params in (
    ("logging/setLevel", types.SetLevelRequestParams),
    ("resources/subscribe", types.SubscribeRequestParams),
    ("resources/unsubscribe", types.UnsubscribeRequestParams),
):
    server._lowlevel_server.add_request_handler(method, params, accepted)


class Events(EventStore):
    """Keeps everything, so that a broken stream goes on."""

    def __init__(self):
        self.kept = []

    async def store_event(self, stream_id, message):
        self.kept.append((stream_id, message))
        return str(len(self.kept))

    async def replay_events_after(self, last_event_id, send_callback):
        stream = self.kept[int(last_event_id) - 1][0]
        for number, (stream_id, message) in enumerate(
            self.kept[int(last_event_id) :], int(last_event_id) + 1
        ):
            if stream_id == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


async def main():
    manager = StreamableHTTPSessionManager(
        server._lowlevel_server,
        event_store=Events(),
        retry_interval=100,
        security_settings=TransportSecuritySettings(
            allowed_hosts=["127.0.0.1:*", "localhost:*"],
            allowed_origins=["http://127.0.0.1:*", "http://localhost:*"],
        ),
    )

    class Mount(RequestHandler):
        async def get(self):
            self.exchange = Exchange(self)
            await self.exchange.run(manager.handle_request)

        post = delete = get

        def on_connection_close(self):
            self.exchange.leave()

    async with manager.run():
        http = Application([("/mcp", Mount)]).listen(0, "127.0.0.1")
        port = next(iter(http._sockets.values())).getsockname()[1]
        print(f"http://127.0.0.1:{port}/mcp", flush=True)  # noqa: T201 - whoever started it reads this
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
