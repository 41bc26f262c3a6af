"""The models of this machine: found, loaded and unloaded while people work, and never more than fit."""

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uia_lab.backends.local import LocalBackend
from uia_lab.backends.model_holder import ModelHolder
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import (
    BackendTimeout,
    BadRequest,
    InferenceError,
    InsufficientMemory,
    ModelNotFound,
    NoBackendAvailable,
    suggestion,
)
from uia_lab.domain.tasks import TEXT_GENERATION, canonical_task
from uia_lab.engine.catalogue import Catalogue
from uia_lab.engine.hardware import Hardware, detect, probe_accelerators
from uia_lab.engine.hub import Skill, skills
from uia_lab.engine.references import resolve
from uia_lab.engine.sources import LLAMACPP, TRANSFORMERS, ModelSource, packaged
from uia_lab.inference_backend_manager import BackendManager

log = logging.getLogger(__name__)

OPTIONS = ("engine", "task", "name", "dtype", "concurrency", "context_length", "keep_alive")
LOAD_S = 3600.0
_BUSY_S = 5.0
_SKILLS_S = 30.0

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a load may say besides the model; None leaves it to the model and the machine.

    Args:
        engine: ``llamacpp`` or ``transformers``.
        task: The task, where the model's files do not say.
        name: The name requests ask for it by.
        dtype: Number format of the weights.
        concurrency: Requests at once.
        context_length: Tokens one request may use.
        keep_alive: Idle seconds after which it is unloaded; 0: never.
    """

    engine: str | None = None
    task: str | None = None
    name: str | None = None
    dtype: str | None = None
    concurrency: int | None = None
    context_length: int | None = None
    keep_alive: float | None = None


class LocalModels:
    """The local models of a manager.

    Args:
        manager: Where their backends are registered.
        config: ``max_loaded_models``, ``model_keep_alive``, ``model_folders``, the default models.
        catalogue: The packaged models.
        hub_cache: The hub's cache; its own default when absent.
        memory: Bytes that can be had now; of this machine when absent.
    """

    def __init__(
        self,
        manager: BackendManager,
        config: InferenceServiceConfig,
        catalogue: Catalogue,
        *,
        hub_cache: Path | None = None,
        memory: Callable[[], int] = lambda: detect().available_bytes,
    ) -> None:
        self.catalogue = catalogue
        self._manager = manager
        self._config = config
        self._hub_cache = hub_cache
        self._memory = memory
        self._backends: dict[str, LocalBackend] = {}
        self._room = asyncio.Lock()
        self._accelerators: asyncio.Task[dict[str, Any]] | None = None
        self._skills: tuple[float, list[Skill]] = (-1.0, [])

    def offer(self) -> list[str]:
        """Registers the packaged models, none of which is loaded before it is needed.

        Returns:
            Their names.
        """
        wanted = [self._config.default_model, self._config.default_embedding_model]
        if self._config.hf_auto_discover_skills:
            wanted += self.catalogue.names()
        for source in {
            entry.name: entry for entry in (packaged(self.catalogue, name) for name in wanted)
        }.values():
            self._register(source, LoadOptions())
        return [backend.source.name for backend in self._backends.values()]

    async def hardware(self) -> Hardware:
        """What this machine has; torch is asked once, in a process of its own."""
        if not self._config.hf_enable_hardware_detection:
            return await asyncio.to_thread(detect)
        if self._accelerators is None:
            self._accelerators = asyncio.create_task(probe_accelerators(), name="accelerators")
        found = await asyncio.shield(self._accelerators)
        return await asyncio.to_thread(detect, found)

    async def load(
        self,
        model_id: str,
        device: str | None = None,
        options: LoadOptions | None = None,
        tell: Tell | None = None,
    ) -> dict[str, Any]:
        """Gets a model into memory; several loads of one model are one.

        Args:
            model_id: A name of the catalogue or of a model loaded before, a folder, a GGUF file or a hub id.
            device: Where it computes; the best device of the machine when absent.
            options: What else is to be so and so.
            tell: Called with each step: ``{stage, done, total}``.

        Returns:
            What is known of the loaded model.

        Raises:
            ModelNotFound: There is no such model.
            BadRequest: An option or a device that there is not.
            InsufficientMemory: It does not fit; the message has the numbers.
            BackendFailed: It cannot be loaded; the message says why.
        """
        options = options or LoadOptions()
        say = tell or (lambda _: None)
        say({"stage": "finding", "done": 0, "total": 1})
        backend = self._known(model_id, options)
        before = set(self._backends)
        if backend is None:
            backend = await self._found(model_id, device, options, say)
        else:
            backend = await self._adapted(backend, device, options)
        new = self._id(backend) not in before
        try:
            async with asyncio.timeout(LOAD_S):
                stages = asyncio.create_task(_follow(backend.holder, say), name=f"stages of {model_id}")
                try:
                    await backend.load(
                        lambda done, total: say({"stage": "fetching", "done": done, "total": total})
                    )
                finally:
                    stages.cancel()
                    await asyncio.gather(stages, return_exceptions=True)
        except TimeoutError:
            raise BackendTimeout(f"{model_id} was not loaded within {LOAD_S:.0f} s") from None
        except InferenceError:
            if new:
                # What never worked is not offered to requests.
                self._forget(backend)
            raise
        await self._manager.probe(self._id(backend))
        return self._shown(self._id(backend), backend)

    async def unload(self, model_id: str) -> dict[str, Any]:
        """Gives the memory of a model back; the next request for it loads it again.

        Raises:
            ModelNotFound: No such model is known here.
        """
        chosen = {
            backend_id: backend
            for backend_id, backend in self._backends.items()
            if model_id in (backend_id, backend.source.name, str(backend.source.path))
        }
        if not chosen:
            try:
                name = self.catalogue.entry(model_id).name
            except ModelNotFound:
                names = {backend.source.name for backend in self._backends.values()}
                raise ModelNotFound(
                    f"no local model is called {model_id!r}.{suggestion(model_id, names)}", param="model_id"
                ) from None
            return await self.unload(name)
        was = [
            backend_id for backend_id, backend in chosen.items() if backend.loaded or backend.holder.loading
        ]
        for backend in chosen.values():
            await backend.unload()
        return {"model_id": model_id, "unloaded": was}

    async def listed(self) -> list[dict[str, Any]]:
        """The models that are registered, loaded or not, and those that could be loaded.

        Each with the memory it takes or would take, as far as its files are here to tell.
        """
        known = [
            {
                **self._shown(backend_id, backend),
                "estimated_bytes": await asyncio.to_thread(_needs, backend),
            }
            for backend_id, backend in tuple(self._backends.items())
        ]
        if not self._config.hf_auto_discover_skills:
            return known
        now = asyncio.get_running_loop().time()
        if self._skills[0] < 0 or now - self._skills[0] > _SKILLS_S:
            folders = list(self._config.model_folders)
            self._skills = (now, await asyncio.to_thread(skills, folders, self._hub_cache))
        here = {backend.source.name for backend in self._backends.values()}
        here |= {str(backend.source.path) for backend in self._backends.values()}
        return known + [
            {**asdict(skill), "state": "loadable" if not skill.reason else "not loadable"}
            for skill in self._skills[1]
            if skill.model_id not in here
        ]

    async def close(self) -> None:
        """Ends what was being asked; the backends are the manager's to stop."""
        if self._accelerators is not None:
            self._accelerators.cancel()
            await asyncio.gather(self._accelerators, return_exceptions=True)

    async def admit(self, holder: ModelHolder) -> None:
        """Makes room for a model, at the cost of idle ones that were not used for longest.

        Raises:
            InsufficientMemory: It does not fit even then.
            NoBackendAvailable: As many models as may be loaded are all in use.
        """
        async with self._room:
            while True:
                others = [other.holder for other in self._backends.values() if other.holder is not holder]
                held = [other for other in others if other.loaded or other.stage == "loading"]
                # What is being loaded is going to take its memory, but has not taken all of it yet.
                coming = sum(other.needs_bytes for other in held if not other.loaded)
                free = self._memory() - coming
                crowded = len(held) >= self._config.max_loaded_models
                if not crowded and holder.needs_bytes <= free:
                    # Set here and not by the holder: the next one to be admitted counts on it.
                    holder.stage = "loading"
                    return
                idle = [other for other in held if other.loaded and not other.active]
                if not idle:
                    raise self._no_room(holder, held, free, crowded=crowded)
                victim = min(idle, key=lambda other: other.used_at)
                log.info("%s is unloaded to make room for %s", victim.source.name, holder.source.name)
                await victim.unload()

    def _no_room(
        self, holder: ModelHolder, held: list[ModelHolder], free: int, *, crowded: bool
    ) -> InsufficientMemory | NoBackendAvailable:
        names = ", ".join(other.source.name for other in held) or "none"
        if crowded:
            return NoBackendAvailable(
                f"{len(held)} models are loaded, as many as may be (max_loaded_models), "
                f"and all are in use: {names}",
                retry_after=_BUSY_S,
            )
        return InsufficientMemory(
            f"{holder.source.name} needs {holder.needs_bytes / 1e9:.2f} GB and {max(0, free) / 1e9:.2f} GB "
            f"are free; loaded and in use: {names}. Unload something, or load it with a smaller "
            "context_length or concurrency"
        )

    def _known(self, model_id: str, options: LoadOptions) -> LocalBackend | None:
        """A registered backend of that id, name or path, as far as the options say which one."""
        task = None if options.task is None else canonical_task(options.task)
        try:
            name = self.catalogue.entry(model_id).name
        except ModelNotFound:
            name = model_id
        for backend_id, backend in self._backends.items():
            source = backend.source
            if (
                name in (backend_id, source.name, str(source.path))
                and options.engine in (None, source.engine)
                and options.name in (None, source.name)
                and task in (None, source.task)
            ):
                return backend
        return None

    async def _adapted(self, backend: LocalBackend, device: str | None, options: LoadOptions) -> LocalBackend:
        """The backend as a load wants it: another one in its place, where it is to be different.

        Raises:
            BadRequest: It is loaded, and not like that.
        """
        source, holder = backend.source, backend.holder
        if options.keep_alive is not None:
            holder.keep_alive_s = options.keep_alive
            holder.rest()
        asked = {
            "device": (device, (holder.device, holder.device.partition(":")[0], "auto")),
            "dtype": (options.dtype, (source.dtype,)),
            "concurrency": (options.concurrency, (backend.concurrency,)),
            "context_length": (options.context_length, (source.context_length,)),
        }
        different = [
            name for name, (wanted, has) in asked.items() if wanted is not None and wanted not in has
        ]
        if not different:
            return backend
        if backend.loaded or holder.loading:
            raise BadRequest(
                f"{source.name} is loaded with another {' and '.join(different)}: unload it first",
                param=different[0] if different == ["device"] else f"options.{different[0]}",
            )
        return await self._built(source, device, options, self._id(backend))

    async def _found(
        self, model_id: str, device: str | None, options: LoadOptions, say: Tell
    ) -> LocalBackend:
        loop = asyncio.get_running_loop()

        def fetching(done: int, total: int) -> None:
            loop.call_soon_threadsafe(say, {"stage": "fetching", "done": done, "total": total})

        source = await asyncio.to_thread(
            resolve,
            model_id,
            self.catalogue,
            engine=options.engine,
            task=options.task,
            hub_cache=self._hub_cache,
            paths=True,
            progress=fetching,
        )
        source = replace(source, name=options.name or source.name)
        # Two loads of one new model may both have come here: the second takes what the first registered.
        known = self._known(source.name, LoadOptions(engine=source.engine))
        if known is None:
            return await self._built(source, device, options, None)
        if (known.source.path, known.source.task) != (source.path, source.task):
            raise BadRequest(
                f"another model is called {known.source.name!r} already: give this one a name of its own",
                param="options.name",
            )
        return known

    async def _built(
        self, source: ModelSource, device: str | None, options: LoadOptions, backend_id: str | None
    ) -> LocalBackend:
        """A registered backend for the model; one of that id is replaced."""
        place = "cpu"
        if source.engine == TRANSFORMERS:
            place, dtype = await self._place(source, device, options.dtype)
            source = replace(source, dtype=dtype)
        elif device not in (None, "cpu", "auto"):
            raise BadRequest("llama.cpp here computes on the cpu", param="device")
        if options.context_length is not None:
            source = replace(source, context_length=min(options.context_length, source.context_length))
        # While the machine was looked at, another load of the same model may have been quicker.
        same = LoadOptions(engine=source.engine)
        if backend_id is None and (known := self._known(source.name, same)) is not None:
            return known
        return self._register(source, options, place, backend_id)

    async def _place(self, source: ModelSource, device: str | None, dtype: str | None) -> tuple[str, str]:
        """Device and number format: bfloat16 only where it is native, and for generation only."""
        hardware = await self.hardware()
        chosen = hardware.best if device in (None, "auto") else hardware.device(device or "")
        if chosen is None:
            known = ", ".join(item.id for item in hardware.devices)
            why = hardware.missing.get((device or "").partition(":")[0], "no such device")
            raise BadRequest(f"device {device!r}: {why}. There is: {known}", param="device")
        if dtype is not None and dtype not in ("float32", "bfloat16", "float16"):
            raise BadRequest(f"dtype is float32, bfloat16 or float16, not {dtype!r}", param="options.dtype")
        best = chosen.dtypes[0] if source.task == TEXT_GENERATION or chosen.kind != "cpu" else "float32"
        return chosen.id, dtype or best

    def _register(
        self, source: ModelSource, options: LoadOptions, device: str = "cpu", backend_id: str | None = None
    ) -> LocalBackend:
        keep_alive = self._config.model_keep_alive if options.keep_alive is None else options.keep_alive
        backend = LocalBackend(
            source,
            concurrency=options.concurrency,
            keep_alive_s=keep_alive,
            device=device,
            admit=self.admit,
        )
        backend_id = backend_id or self._free_id(source)
        self._manager.register_backend(
            backend_id,
            BackendType.GPU,
            source.name,
            backend,
            backend.capabilities,
            max_concurrency=backend.concurrency,
        )
        self._backends[backend_id] = backend
        return backend

    def _free_id(self, source: ModelSource) -> str:
        stem = "local-" + re.sub(r"[^a-z0-9._@+-]+", "-", source.name.lower()).strip("-.")
        known = [other.source.engine for other in self._backends.values() if other.source.name == source.name]
        return f"{stem[:100]}-{source.engine}" if known else stem[:110]

    def _forget(self, backend: LocalBackend) -> None:
        for backend_id in [name for name, other in self._backends.items() if other is backend]:
            del self._backends[backend_id]
            self._manager.unregister_backend(backend_id)

    def _id(self, backend: LocalBackend) -> str:
        return next(backend_id for backend_id, other in self._backends.items() if other is backend)

    def _shown(self, backend_id: str, backend: LocalBackend) -> dict[str, Any]:
        source, holder = backend.source, backend.holder
        state = "loaded" if backend.loaded else "loading" if holder.loading else "unloaded"
        shown = {
            "model_id": source.name, "backend_id": backend_id, "task": source.task, "engine": source.engine,
            "origin": source.origin, "size": source.size, "state": state, "device": holder.device,
            "dtype": source.dtype if source.engine != LLAMACPP else "gguf",
            "context_length": source.context_length, "concurrency": backend.concurrency,
            "keep_alive": holder.keep_alive_s, "reason": holder.trouble,
        }  # fmt: skip
        if backend.loaded:
            shown |= {"pid": backend.pid, "load_seconds": holder.load_seconds, "active": holder.active}
            shown["estimated_bytes"] = holder.needs_bytes
        return shown


def _needs(backend: LocalBackend) -> int | None:
    """Memory a model takes; before it is loaded, as its files tell. Reads their heads only, and blocks."""
    if backend.loaded:
        return backend.holder.needs_bytes
    try:
        source = backend.source
        return source.estimate(backend.concurrency).total_bytes if source.is_here() else None
    except (InferenceError, OSError):
        return None


async def _follow(holder: ModelHolder, say: Tell) -> None:
    """Tells each new stage of a load; a stage lasts seconds, so looking often is enough."""
    last = ""
    while True:
        if holder.stage not in ("", "fetching", last):
            last = holder.stage
            say({"stage": last.replace(" ", "_"), "done": 0, "total": 1})
        await asyncio.sleep(0.02)
