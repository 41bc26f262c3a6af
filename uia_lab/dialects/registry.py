"""The dialects that adapters speak, by name; a module is imported when its dialect is first asked for."""

from importlib import import_module

from uia_lab.dialects.upstream import UpstreamDialect
from uia_lab.domain.errors import BadRequest, suggestion

UPSTREAM_DIALECTS = {
    "anthropic": "uia_lab.dialects.anthropic.upstream:ANTHROPIC",
    "ollama": "uia_lab.dialects.ollama_upstream:OLLAMA",
    "openai": "uia_lab.dialects.openai_upstream:OPENAI",
    "openai-chat": "uia_lab.dialects.openai_upstream:OPENAI_CHAT",
    "openai-responses": "uia_lab.dialects.responses.upstream:RESPONSES",
    "tei": "uia_lab.dialects.tei_upstream:TEI",
}


def upstream_dialect(name: str) -> UpstreamDialect:
    """The dialect of that name.

    Raises:
        BadRequest: There is none; the message lists the known ones.
    """
    place = UPSTREAM_DIALECTS.get(name)
    if place is None:
        raise BadRequest(
            f"no dialect {name!r} is known.{suggestion(name, UPSTREAM_DIALECTS)}", param="dialect"
        )
    module, _, attribute = place.partition(":")
    dialect: UpstreamDialect = getattr(import_module(module), attribute)
    return dialect
