"""The extension: builds the service from Jupyter's configuration and mounts its doors."""

import asyncio
from typing import Any
from urllib.parse import quote

from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from prometheus_client import REGISTRY

from uia_lab.access.keys import new_key
from uia_lab.access.principals import ADMIN, INFER, READ, Principal
from uia_lab.config import InferenceServiceConfig
from uia_lab.doors.metrics import ServiceCollector
from uia_lab.doors.open_doors import OpenDoors
from uia_lab.doors.routes import routes
from uia_lab.unified_inference_service import UnifiedInferenceService
from uia_lab_server.identity import jupyter_door
from uia_lab_server.kernels import KernelAccess

KERNEL = "kernel"
STOP_S = 5.0
_EVERYWHERE = ("", "*", "0.0.0.0", "::")  # noqa: S104 - recognised here, never bound


class UiaLabServer(ExtensionApp):  # type: ignore[misc]  # jupyter_server has no types for mypy here
    """Puts the doors under ``<base_url>uia/`` and lets this server's kernels in."""

    name = "uia_lab_server"
    description = "Inference backends, unified, inside the Jupyter server."
    extension_url = "/uia/status"
    load_other_extensions = True
    classes = [*ExtensionApp.classes, InferenceServiceConfig]  # noqa: RUF012 - as traitlets has it

    service: UnifiedInferenceService | None = None
    _collector: ServiceCollector | None = None
    _kernels: KernelAccess | None = None

    def initialize_settings(self) -> None:
        """Builds the service; nothing of it runs yet."""
        service = UnifiedInferenceService(InferenceServiceConfig(parent=self))
        self.service = service
        open_doors = OpenDoors()
        service.keys.on_end.append(open_doors.end_of)
        self.settings.update(uia_service=service, uia_open_doors=open_doors)

    def initialize_handlers(self) -> None:
        """Mounts the doors."""
        self.handlers.extend((f"uia{pattern}", jupyter_door(door)) for pattern, door in routes())

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        """Lets kernels in and starts the service; what does not start must not stop Jupyter."""
        service = self.service
        if service is None:
            return
        # Before the service: a kernel that starts meanwhile is to know it.
        self._let_kernels_in(serverapp, service)
        try:
            self._collector = ServiceCollector(service.get_backend_manager().get_backend_status_report)
            REGISTRY.register(self._collector)
        except ValueError as error:
            self._collector = None
            self.log.warning("uia_lab: no figures on Jupyter's own /metrics: %s", error)
        try:
            await service.start(listen=False)
        except Exception:
            self.log.exception("uia_lab did not start; Jupyter goes on without it")
            return
        for part, state in service.parts.items():
            if state["state"] == "failed":
                self.log.warning("uia_lab: %s failed: %s", part, state["reason"])

    async def stop_extension(self) -> None:
        """Takes everything back and stops the service."""
        service, self.service = self.service, None
        if service is None:
            return
        if self._kernels is not None:
            self._kernels.close()
            self._kernels = None
        service.keys.forget(KERNEL)
        if self._collector is not None:
            REGISTRY.unregister(self._collector)
            self._collector = None
        try:
            if not await self.settings["uia_open_doors"].close(STOP_S):
                self.log.warning("uia_lab: some answers did not end within %g s", STOP_S)
            async with asyncio.timeout(4 * STOP_S):
                await service.stop()
        except Exception:
            self.log.exception("uia_lab did not stop cleanly")

    def current_activity(self) -> dict[str, Any] | None:
        """Inference under way, which keeps Jupyter from shutting down when idle."""
        if self.service is None:
            return None
        running = self.service.get_backend_manager().get_backend_status_report()["in_flight"]
        return {"in_flight": running} if running else None

    def _let_kernels_in(self, serverapp: ServerApp, service: UnifiedInferenceService) -> None:
        url = loopback_url(serverapp)
        # A kernel runs its user's code and that user is this server's administrator.
        key = new_key()
        service.keys.add(key, Principal(KERNEL, frozenset({INFER, READ, ADMIN})))
        self._kernels = KernelAccess(serverapp.kernel_manager, url, key)


def loopback_url(serverapp: ServerApp) -> str:
    """The address at which processes on this machine reach the doors."""
    if serverapp.sock:
        return f"http+unix://{quote(serverapp.sock, safe='')}{serverapp.base_url}uia/"
    host = "127.0.0.1" if serverapp.ip in _EVERYWHERE else serverapp.ip
    scheme = "https" if serverapp.certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{serverapp.port}{serverapp.base_url}uia/"
