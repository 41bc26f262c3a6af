"""``lab.models``: names that can be asked for, and the models of the serving machine to load and unload."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from typing import Any

from uia_lab.notebook.asking import Ask, action, directly
from uia_lab.notebook.load_progress import LoadProgress, progress_here
from uia_lab.notebook.presenters import in_kernel, shell
from uia_lab.notebook.tables import html_table, text_table
from uia_lab.notebook.transport import Transport

COLUMNS = ("model", "task", "state", "device", "engine", "size", "memory", "running", "keep-alive")
WORDS = 5
SIGNS = {"loaded": "●", "loading": "◌", "unloaded": "○", "loadable": "○", "not loadable": "✕"}


class Models(list[str]):
    """Names of the models that can be asked for, as they were when they were asked for.

    It is a list of names; shown in a notebook it is the manager of the serving machine's own models.

    Args:
        names: The names.
        transport: Who serves.
        ask: Runs its actions.
        spawn: Runs a coroutine function in the background; the Lab's.
    """

    def __init__(
        self, names: Iterable[str], transport: Transport, ask: Ask, spawn: Callable[..., Any]
    ) -> None:
        super().__init__(names)
        self._transport = transport
        self._ask = ask
        self._spawn = spawn

    def load(
        self,
        model_id: str,
        device: str | None = None,
        *,
        engine: str | None = None,
        task: str | None = None,
        name: str | None = None,
        dtype: str | None = None,
        concurrency: int | None = None,
        context_length: int | None = None,
        keep_alive: float | None = None,
        show: bool = True,
    ) -> Any:
        """Gets a model into the serving machine's memory, and shows how far it is.

        Args:
            model_id: A name of the catalogue or of a model loaded before, a folder, a GGUF file or a hub id.
            device: Where it computes; the best device of the machine when absent.
            engine: ``llamacpp`` or ``transformers``, where both could.
            task: The task, where the model's files do not say.
            name: The name requests ask for it by.
            dtype: Number format of the weights.
            concurrency: Requests at once.
            context_length: Tokens one request may use.
            keep_alive: Idle seconds after which it is unloaded; 0: never.
            show: Whether to show its progress.

        Returns:
            A :class:`LoadedModel`; of an ``AsyncLab`` something to await that gives one.

        Raises:
            ModelNotFound: There is no such model.
            BadRequest: An option or a device that there is not.
            InsufficientMemory: It does not fit; the message has the numbers.
            BackendFailed: It cannot be loaded; the message says why.
        """
        options = {
            "engine": engine,
            "task": task,
            "name": name,
            "dtype": dtype,
            "concurrency": concurrency,
            "context_length": context_length,
            "keep_alive": keep_alive,
        }
        fields: dict[str, Any] = {"model_id": model_id, "device": device}
        fields["options"] = {key: value for key, value in options.items() if value is not None} or None
        fields = {key: value for key, value in fields.items() if value is not None}
        # Opened here and not on the Lab's loop, so that it belongs to the cell of whoever loads.
        progress = progress_here(model_id) if show else None
        return self._ask(self._load, fields, progress)

    @action
    async def unload(self, model_id: str) -> list[str]:
        """Gives the memory of a model back; the next request for it loads it again.

        Args:
            model_id: Its name, its backend's id or its path.

        Returns:
            Ids of the backends that had it in memory.

        Raises:
            ModelNotFound: No such model is known there.
        """
        unloaded: list[str] = (await self._transport.unload_model(model_id))["unloaded"]
        return unloaded

    @action
    async def details(self) -> list[dict[str, Any]]:
        """The models of the serving machine, loaded or not, and those found that could be loaded.

        Each with ``model_id, task, state, size`` and ``estimated_bytes`` (both in bytes), and more.
        """
        return await self._transport.local_models()

    async def _load(self, fields: dict[str, Any], progress: LoadProgress | None) -> "LoadedModel":
        say = progress.step if progress is not None else lambda _: None
        try:
            loaded = LoadedModel(await self._transport.load_model(fields, say))
        except BaseException as error:
            if progress is not None:
                progress.failed(error)
            raise
        if progress is not None:
            progress.ended(loaded)
        return loaded

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        rows = [] if self._ask is directly else self.details()
        if not in_kernel():
            return still(rows, self)
        from uia_lab.notebook.widgets.model_manager import ModelManager

        view = ModelManager(self._transport, self._spawn, rows)
        bundle: dict[str, Any] = view._repr_mimebundle_()
        return {**bundle, **still(rows, self)}


class LoadedModel(Mapping[str, Any]):
    """A model that has been loaded: a mapping of what is known of it.

    Args:
        known: As ``POST /models/load`` answers.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = dict(known)
        self.cell: int | None = None

    def __getitem__(self, name: str) -> Any:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        took = self._known.get("load_seconds")
        needs = self._known.get("estimated_bytes")
        return (
            f"{self['model_id']} is loaded on {self['device']}"
            + (f" in {took:.1f} s" if took is not None else "")
            + (f", about {size(needs)} of memory" if needs else "")
            + f" ({self['engine']}, {self['task']}); it is unloaded {idle(self['keep_alive'])}"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self.html()}

    def html(self) -> str:
        """A line for saved notebooks."""
        return f'<p data-testid="uia-loaded" style="margin:4px 0">✓ {escape(repr(self))}</p>'

    def _ipython_display_(self) -> None:
        from IPython.display import display

        # The cell that loaded it says so already.
        if self.cell is None or self.cell != getattr(shell(), "execution_count", None):
            display(self._repr_mimebundle_(), raw=True)


def still(rows: list[dict[str, Any]], names: Iterable[str] = ()) -> dict[str, str]:
    """The text and HTML forms that a saved notebook keeps.

    Args:
        rows: As ``GET /models`` lists them.
        names: What can be asked for besides.
    """
    here = {row["model_id"] for row in rows}
    others = [name for name in names if name not in here]
    loaded = sum(row["state"] == "loaded" for row in rows)
    title = f"{len(rows)} local models, {loaded} loaded" if rows else "Models"
    table = [cells(row) for row in rows]
    more = f"Other models that can be asked for: {', '.join(others)}" if others else ""
    text = "\n".join(filter(None, [text_table(title, COLUMNS, table, WORDS) if rows else "", more]))
    html = (html_table(title, COLUMNS, table, WORDS) if rows else "") + (
        f"<p>{escape(more)}</p>" if more else ""
    )
    return {"text/plain": text or "no models", "text/html": html or "<p>no models</p>"}


def cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of one model."""
    state = str(row["state"])
    reason = f": {row['reason']}" if row.get("reason") else ""
    return [
        str(row["model_id"]),
        str(row.get("task") or "-"),
        f"{SIGNS.get(state, '?')} {state}{reason}",
        str(row.get("device") or "-"),
        str(row.get("engine") or "-"),
        size(row.get("size")),
        size(row.get("estimated_bytes")),
        str(row["active"]) if "active" in row else "-",
        idle(row["keep_alive"]) if "keep_alive" in row else "-",
    ]


def size(value: float | None) -> str:
    """Bytes as people read them."""
    if not value:
        return "-"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def idle(keep_alive: float) -> str:
    """When an idle model is unloaded, in words."""
    if keep_alive <= 0:
        return "never"
    return f"after {keep_alive / 60:g} min idle" if keep_alive >= 60 else f"after {keep_alive:g} s idle"
