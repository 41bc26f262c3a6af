"""The first words on a connection: what we say, and whether what is said to us is good."""

from uia_lab._version import __version__
from uia_lab.domain.errors import NotAllowed
from uia_lab.p2p import messages
from uia_lab.p2p.messages import SignedRecord
from uia_lab.p2p.records import Record, RecordError, Verifier

PROTOCOLS = (messages.HELLO, messages.INFERENCE, messages.STATUS)


def hello(
    network: str, instance_id: str, record: SignedRecord, addresses: tuple[str, ...], invite: str | None
) -> messages.Hello:
    """What we say."""
    return messages.Hello(
        versions=PROTOCOLS,
        network=network,
        instance_id=instance_id,
        software=__version__,
        record=record,
        addresses=addresses,
        invite=invite,
    )


def checked(hello: messages.Greeting, network: str, verifier: Verifier, peer_id: str) -> Record:
    """The record of a hello that is good.

    Raises:
        NotAllowed: It is of another network, or another version.
        RecordError: Its record does not count.
    """
    if not isinstance(hello, messages.Hello):
        raise RecordError("no hello came")
    if hello.network != network:
        raise NotAllowed(f"this is the network {network!r}, not {hello.network!r:.80}")
    if not set(PROTOCOLS) <= set(hello.versions):
        raise NotAllowed(f"this node speaks {', '.join(PROTOCOLS)}; one of us needs a newer uia_lab")
    return verifier.check(hello.record, peer_id)
