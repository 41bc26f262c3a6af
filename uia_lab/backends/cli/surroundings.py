"""What a tool finds around it: its environment, and a way back into the house that ends with the call."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from uia_lab.access.keys import KeyRing
from uia_lab.access.principals import INFER, Principal
from uia_lab.access.secrets import Secrets
from uia_lab.backends.cli.tools import Tool
from uia_lab.domain.keys import GUEST_PRINCIPAL
from uia_lab.domain.requests import InferenceRequest

URL, TOKEN, VIA = "UIA_LAB_URL", "UIA_LAB_TOKEN", "UIA_LAB_VIA"
PLACES = ("model", "prompt", "folder", "url", "key", "via")
_PLACE = re.compile("{(" + "|".join(PLACES) + ")}")
# Named, not filtered: what a secret is called, nobody knows. The home is the user's, whose login it holds.
_PASSED = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "SYSTEMROOT"),
        *("TMP", "TEMP", "TMPDIR", "TEMPDIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    )
)
_FAMILIES = ("LC_", "XDG_", "SSL_CERT_")
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS")
_QUIET = {"NO_COLOR": "1", "TERM": "dumb"}


def is_secret(name: str) -> bool:
    """Whether a variable of that name is taken for a secret."""
    return name.upper().endswith(_SECRET)


def environment_of(tool: Tool, values: Mapping[str, str]) -> dict[str, str]:
    """What of the server's environment a tool is given, secrets aside, and what is set for it.

    Args:
        tool: The tool.
        values: What is put into the places of its own variables.
    """
    families = (*_FAMILIES, *tool.variables)
    given = {
        name: value
        for name, value in os.environ.items()
        if (name in _PASSED or name.startswith(families)) and not is_secret(name)
    }
    return {**given, **_QUIET, **{name: filled(value, values) for name, value in tool.environment.items()}}


def keys_of(tool: Tool, more: Sequence[str], secrets: Secrets) -> dict[str, str]:
    """The secrets a tool is given: those of its own that are there, and others by name. May block.

    Args:
        tool: The tool.
        more: Names of others.
        secrets: Where they are looked for.
    """
    found = {name: secrets.given(name) for name in tool.keys} | {name: secrets.find(name) for name in more}
    known = {name: secret.reveal() for name, secret in found.items() if secret is not None}
    # Of variables that are no provider's the house knows nothing; this tool's own it may have.
    return {name: os.environ[name] for name in tool.keys if os.environ.get(name)} | known


def filled(text: str, values: Mapping[str, str]) -> str:
    """A template with its places filled; what is put there is not looked at again."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), text)


@dataclass(frozen=True, slots=True)
class House:
    """The house as a tool may find it.

    Args:
        instance_id: Our own name, for the guard against loops.
        keys: Where the keys of calls are accepted; None where no door is.
        url: Where the doors are.
    """

    instance_id: str
    keys: KeyRing | None = None
    url: Callable[[], str | None] = lambda: None

    @contextmanager
    def visit(self, request: InferenceRequest) -> Iterator[dict[str, str]]:
        """The variables that lead back, for as long as a call lasts.

        What comes in with the key has passed all that the request has passed, and us: where it would go
        round in a circle, it is refused. It may ask for what the request's own principal may ask for. A peer
        has one thing lent, and nothing leads from there to the rest of the house.
        """
        via = (*request.via, self.instance_id)
        url = self.url()
        if self.keys is None or url is None or request.lent is not None:
            yield {VIA: ",".join(via)}
            return
        guest = Principal(f"{GUEST_PRINCIPAL}{request.id}", frozenset({INFER}), via=via)
        with self.keys.lent(guest, request.principal) as key:
            yield {URL: url, TOKEN: key, VIA: ",".join(via)}
