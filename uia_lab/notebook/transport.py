"""The seam between the Lab and whoever serves it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from uia_lab.domain.events import Event
from uia_lab.domain.requests import InferenceRequest

if TYPE_CHECKING:
    import numpy as np

    from uia_lab.worker import ServedFunction

CLOSED = "this Lab is closed; uia_lab.connect() opens a new one"


class NotConnected(ConnectionError):
    """No uia_lab answers where one was expected; the message says what to do."""


class EventStream(Protocol):
    """The events of one answer, ending with ``Finished`` or one typed error.

    Attributes:
        request_id: The id under which the serving side knows the request; None until it has said so.
    """

    @property
    def request_id(self) -> str | None:
        """The serving side's id."""

    def __aiter__(self) -> Self:
        """Itself."""

    async def __anext__(self) -> Event:
        """The next event."""

    async def aclose(self) -> None:
        """Lets go of the request; a running one is cancelled."""


class Publication(Protocol):
    """A function that is a backend of the service for as long as :meth:`run` runs."""

    @property
    def connected(self) -> bool:
        """Whether the service has it as a backend now."""

    async def run(self) -> None:
        """Serves until it is cancelled or replaced.

        Raises:
            InferenceError: The service does not take it, or not any more.
        """

    async def ready(self) -> None:
        """Waits until the service has it as a backend; errors as for :meth:`run`."""


class Transport(Protocol):
    """How a Lab reaches a service. Every method runs on the Lab's own event loop.

    Attributes:
        where: In words, who serves: an address, or this process.
        kind: ``server`` when browsers may reach the service too, ``local`` when only this process can.
    """

    where: str
    kind: Literal["server", "local"]

    async def status(self) -> dict[str, Any]:
        """The status report of the contract.

        Raises:
            NotConnected: Nobody answers.
            InferenceError: Somebody answers with an error.
        """

    async def models(self) -> list[str]:
        """Names of the models that can be asked for."""

    def stream(self, request: InferenceRequest) -> EventStream:
        """Starts a request; nothing happens before the first ``anext``."""

    async def embed(self, texts: Sequence[str], model: str | None) -> "np.ndarray":
        """Embeddings of the texts, shape ``(len(texts), d)``, float32."""

    async def cancel(self, request_id: str) -> None:
        """Ends a request by the serving side's id; an unknown or ended one is no error."""

    def publish(
        self, function: "ServedFunction", backend_id: str, name: str, max_concurrency: int
    ) -> Publication:
        """A function of this process as a backend of the service; nothing happens before it runs.

        Args:
            function: The function.
            backend_id: Id of the backend; one that is published under it already is replaced.
            name: Its name for people.
            max_concurrency: Calls at once.
        """

    async def hardware(self) -> dict[str, Any]:
        """What the serving machine has, as ``GET /hardware`` says it."""

    async def local_models(self) -> list[dict[str, Any]]:
        """The models of the serving machine, as ``GET /models`` lists them."""

    async def load_model(
        self, fields: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Gets a model into the serving machine's memory.

        Args:
            fields: As for ``POST /models/load``.
            tell: Called with each step: ``{stage, done, total}``.

        Returns:
            What is known of the loaded model.
        """

    async def unload_model(self, model_id: str) -> dict[str, Any]:
        """Gives the memory of a model back: ``{model_id, unloaded}``, the ids of backends that had it."""

    async def keys(self) -> list[dict[str, Any]]:
        """The scoped keys, as ``GET /keys`` lists them."""

    async def create_key(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Makes a key.

        Args:
            fields: As for ``POST /keys``.

        Returns:
            What is known of it, and the key itself under ``key``.
        """

    async def revoke_key(self, key_id: str) -> None:
        """Ends a key; an unknown one is no error."""

    async def backends(self) -> dict[str, Any]:
        """The ``backends``, and what was ``found`` besides, as ``GET /backends`` lists them."""

    async def add_backend(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Registers a backend by its address.

        Args:
            fields: As for ``POST /backends``.

        Returns:
            Its report, as the first look found it.
        """

    async def change_backend(self, backend_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Changes a backend.

        Args:
            backend_id: Its id.
            fields: As for ``PATCH /backends/{id}``.

        Returns:
            Its report.
        """

    async def probe_backend(self, backend_id: str) -> dict[str, Any]:
        """Looks at a backend now and gives its report."""

    async def remove_backend(self, backend_id: str) -> None:
        """Takes a backend out, for the next start too."""

    async def peers(self) -> dict[str, Any]:
        """The network of peers, as ``GET /peers`` gives it."""

    async def invite_peer(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Makes an invite.

        Args:
            fields: As for ``POST /peers/invites``.

        Returns:
            Its ``id``, ``link`` and ``expires_at``.
        """

    async def withdraw_invite(self, invite_id: str) -> None:
        """Takes an invite back; one that is not open any more is no error."""

    async def accept_invite(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Uses an invite.

        Args:
            fields: As for ``POST /peers/accept``.

        Returns:
            What is known of the peer that made it.
        """

    async def trust_peer(self, peer_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Trusts a peer, or changes what is agreed with it.

        Args:
            peer_id: Its peer id.
            fields: As for ``POST /peers/{id}/trust``.

        Returns:
            What is known of it.
        """

    async def revoke_peer(self, peer_id: str) -> None:
        """Trusts a peer no more; one that is not trusted is no error."""

    async def backend(self, backend_id: str) -> dict[str, Any]:
        """The report of a backend, with its last ``errors`` and ``transitions``."""

    async def history(self, after: int = 0, limit: int = 900) -> dict[str, Any]:
        """The last quarter of an hour, as ``GET /history`` tells it.

        Args:
            after: Number of the last sample that is known already.
            limit: How many samples at most, the newest.
        """

    async def strategies(self) -> dict[str, Any]:
        """The ``strategy`` in force, and the ``known`` ones."""

    async def set_strategy(self, name: str) -> dict[str, Any]:
        """Changes how backends are chosen, and gives the ``strategy`` in force."""

    async def explain(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Who would serve a request now, and why not the others.

        Args:
            fields: As for ``POST /explain``.

        Returns:
            The decision, as :meth:`uia_lab.routing.decision.Decision.to_dict` gives it.
        """

    async def request(self, request_id: str) -> dict[str, Any]:
        """All that is known of a request: decision, attempts, usage."""

    async def requests(self, limit: int = 100, **filters: Any) -> dict[str, Any]:
        """The last ``requests``, the newest first, as ``GET /requests`` lists them.

        Args:
            limit: How many at most, up to 1000.
            **filters: ``since``, ``until`` (seconds since the epoch), ``backend`` and ``outcome``.
        """

    async def replay(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What another strategy would have made of past requests.

        Args:
            fields: As for ``POST /replay``.
        """

    async def aliases(self) -> list[dict[str, Any]]:
        """The ``name`` and ``targets`` of each alias."""

    async def set_alias(self, name: str, targets: Sequence[str]) -> dict[str, Any]:
        """Sets an alias, and gives its ``name`` and ``targets``."""

    async def delete_alias(self, name: str) -> None:
        """Forgets an alias."""

    async def aclose(self) -> None:
        """Closes everything; running requests end."""
