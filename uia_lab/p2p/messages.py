"""Every frame of the three protocols, as JSON objects with a ``type``."""

from typing import Any, TypeAlias

import msgspec

from uia_lab.domain.events import Delta
from uia_lab.domain.peers import Load

HELLO = "/uia/hello/1.0.0"
INFERENCE = "/uia/inference/1.0.0"
STATUS = "/uia/status/1.0.0"


class Frame(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True, kw_only=True):
    """Base of all frames."""


class SignedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A capability record as it travels.

    Args:
        payload: The record, as JSON text; what is signed are these very characters.
        key: The peer's Ed25519 public key, 32 bytes.
        signature: 64 bytes.
    """

    payload: str
    key: bytes
    signature: bytes


class Hello(Frame, frozen=True, kw_only=True, tag="hello"):
    """Who somebody is; the first frame of a connection in both directions.

    Args:
        versions: Versions of the protocols it speaks.
        network: The network it belongs to.
        instance_id: Id of its service.
        software: Version of uia_lab.
        record: What it lends, signed.
        addresses: Where it listens, as multiaddrs without ``/p2p/<id>``.
        invite: The secret of an invitation, by which whoever is not trusted comes in.
    """

    versions: tuple[str, ...]
    network: str
    instance_id: str
    software: str
    record: SignedRecord
    addresses: tuple[str, ...] = ()
    invite: str | None = None


class Refused(Frame, frozen=True, kw_only=True, tag="refused"):
    """The other side is not let in."""

    code: str
    message: str


class Ping(Frame, frozen=True, kw_only=True, tag="ping"):
    """Asks for a sign of life; ``record`` comes when it has changed."""

    n: int
    load: Load = Load()
    record: SignedRecord | None = None


class Pong(Frame, frozen=True, kw_only=True, tag="pong"):
    """Answers a ping of that number."""

    n: int
    load: Load = Load()
    record: SignedRecord | None = None


class ResumedFrom(msgspec.Struct, frozen=True, kw_only=True):
    """What was delivered of an answer that goes on here."""

    text: str
    tokens: int
    digest: str


class Request(Frame, frozen=True, kw_only=True, tag="request"):
    """Asks for an answer.

    Args:
        id: Label of the request on its stream.
        via: Instances it has passed, nearest last.
        window: Chunks that may be on their way before an ``ack``; None for no such bound.
        session_id: Requests of one session go to one backend where the strategy there has affinity.
        deadline_s: Seconds the asker waits at most.
    """

    id: str
    task: str
    model: str | None = None
    inputs: Any = None
    messages: list[dict[str, Any]] | None = None
    parameters: dict[str, Any] = {}
    stream: bool = False
    via: tuple[str, ...] = ()
    window: int | None = None
    session_id: str | None = None
    deadline_s: float | None = None
    resumed: ResumedFrom | None = None


class Accepted(Frame, frozen=True, kw_only=True, tag="accepted"):
    """The request was let in and is worked on."""

    id: str


class Chunk(Frame, frozen=True, kw_only=True, tag="chunk"):
    """A piece of an answer: ``text``, or ``delta`` where it is not plain text.

    Args:
        seq: Position in this answer, from 0, without a gap.
    """

    id: str
    seq: int
    text: str | None = None
    delta: Delta | None = None
    choice: int = 0
    logprobs: Any = None


class Usage(Frame, frozen=True, kw_only=True, tag="usage"):
    """Token counts, before ``done``."""

    id: str
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Done(Frame, frozen=True, kw_only=True, tag="done"):
    """The proper end of an answer; ``chunks`` is how many there were."""

    id: str
    chunks: int
    finish_reason: str = "stop"
    finish_reasons: tuple[str, ...] = ()
    stop_sequence: str | None = None


class Failed(Frame, frozen=True, kw_only=True, tag="error"):
    """The end of an answer that failed; ``code`` as in :mod:`uia_lab.domain.errors`."""

    id: str
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None


class Cancel(Frame, frozen=True, kw_only=True, tag="cancel"):
    """Nobody waits for the answer any more."""

    id: str


class Ack(Frame, frozen=True, kw_only=True, tag="ack"):
    """Chunks before ``seq`` have been taken; as many more may be sent."""

    id: str
    seq: int


class Part(Frame, frozen=True, kw_only=True, tag="part"):
    """A piece of the JSON text of a frame that is larger than a frame may be; the last one has ``last``."""

    id: str
    text: str
    last: bool = False


Greeting: TypeAlias = Hello | Refused
Beat: TypeAlias = Ping | Pong
ToServer: TypeAlias = Request | Cancel | Ack | Part
ToClient: TypeAlias = Accepted | Chunk | Usage | Done | Failed | Part
