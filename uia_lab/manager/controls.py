"""What an operator may turn while requests run: strategy, aliases, and the backends one by one."""

from collections.abc import Callable, Mapping, Sequence

from uia_lab.domain.backends import BackendInfo
from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.manager.host import Host
from uia_lab.manager.loops import LoopBound
from uia_lab.manager.report import backend_info
from uia_lab.routing.registry import Registered, check_limit, check_weight
from uia_lab.routing.strategies import Strategy, make_strategy
from uia_lab.routing.turns import Turn


class Controls(Host):
    """The part of the manager that changes how it works; every step hops to the manager's loop.

    Attributes:
        loops: Where the manager's state may be touched.
    """

    loops: LoopBound

    @property
    def strategy_name(self) -> str:
        """Name of the strategy in force."""
        return self.router.strategy.name

    def set_strategy(self, strategy: str | Strategy) -> None:
        """Changes the strategy for the requests to come.

        Args:
            strategy: Name of one that is built in or installed, or one of your own.

        Raises:
            BadRequest: Unknown; the message lists the known ones.
        """
        chosen = make_strategy(strategy) if isinstance(strategy, str) else strategy

        def change() -> None:
            self.router.strategy = chosen
            self.settle([])

        self.loops.call(change)

    @property
    def aliases(self) -> Mapping[str, tuple[str, ...]]:
        """The fallback chains that people named, each with its targets, best first."""
        return self.loops.call(lambda: dict(self.router.eligibility.aliases))

    def set_alias(self, name: str, targets: Sequence[str]) -> None:
        """Defines or replaces a fallback chain, which requests name in place of a model.

        Args:
            name: Its name.
            targets: ``model``, ``backend:model`` or ``type:model``, best first.

        Raises:
            BadRequest: A bad name or target.
        """
        self.loops.call(lambda: self.router.set_alias(name, targets))

    def delete_alias(self, name: str) -> bool:
        """Forgets a fallback chain; False if there was none."""
        return self.loops.call(lambda: self.router.delete_alias(name))

    def drain(self, backend_id: str) -> BackendInfo:
        """Sends no new requests to a backend; running ones end as they would."""
        return self._change(backend_id, lambda it: self.router.set_enabled(it, self.clock(), enabled=False))

    def enable(self, backend_id: str) -> BackendInfo:
        """Opens a drained backend again."""
        return self._change(backend_id, lambda it: self.router.set_enabled(it, self.clock(), enabled=True))

    def set_weight(self, backend_id: str, weight: float) -> BackendInfo:
        """Changes a backend's share of traffic.

        Raises:
            BadRequest: No such backend, or a weight that is not above 0.
        """
        check_weight(weight)
        return self._change(backend_id, lambda entry: self.router.set_weight(entry, weight))

    def set_max_concurrency(self, backend_id: str, limit: int | None) -> BackendInfo:
        """Changes how many requests a backend works on at once; None sets no bound.

        Raises:
            BadRequest: No such backend, or a limit below 1.
        """
        check_limit(limit)
        return self._change(backend_id, lambda entry: self.router.set_limit(entry, limit, self.clock()))

    def entry(self, backend_id: str) -> Registered:
        """The router's entry of a backend.

        Raises:
            BadRequest: No such backend; the message says which there are.
        """
        entry = self.router.registry.get(backend_id)
        if entry is None:
            known = suggestion(str(backend_id), (item.backend_id for item in self.router.registry))
            raise BadRequest(f"no backend {backend_id!r} is registered.{known}", param="backend_id")
        return entry

    def _change(self, backend_id: str, step: Callable[[Registered], list[Turn]]) -> BackendInfo:
        def change() -> BackendInfo:
            entry = self.entry(backend_id)
            self.settle(step(entry))
            return backend_info(self, entry)

        return self.loops.call(change)
