"""What the manager tells of itself: the status report and the state of each live topic."""

import time
from collections import Counter
from typing import Any

from uia_lab.domain.backends import BackendInfo
from uia_lab.manager.journey import Host
from uia_lab.routing.registry import Registered


def backend_info(host: Host, entry: Registered) -> BackendInfo:
    """A snapshot of one backend."""
    return entry.info(host.clock(), time.time(), host.router.waiting_for(entry))


def status_report(host: Host) -> dict[str, Any]:
    """The status of everything, JSON-ready; totals count requests, a backend's metrics attempts."""
    infos = [backend_info(host, entry) for entry in host.router.registry]
    totals = host.totals
    return {
        "instance_id": host.instance_id,
        "total_backends": len(infos),
        "backends_by_type": dict(Counter(info.type.value for info in infos)),
        "backends_by_status": dict(Counter(info.status.value for info in infos)),
        "total_requests": totals.total,
        "total_successful": totals.ok,
        "total_failed": totals.failed,
        "total_cancelled": totals.cancelled,
        "total_rejected": totals.rejected,
        "in_flight": totals.in_flight,
        "supported_tasks": sorted({task for info in infos for task in info.capabilities.supported_tasks}),
        "strategy": host.router.strategy.name,
        "backends": [info.to_dict() for info in infos],
        "timestamp": time.time(),
    }


def topic_state(host: Host, topic: str) -> dict[str, Any]:
    """The state of a live topic; nothing in it tells who asked what."""
    match topic:
        case "status":
            return status_report(host)
        case "backend":
            return {"backends": [backend_info(host, entry).to_dict() for entry in host.router.registry]}
        case "queue":
            waiting = host.router.queue.counts()
            return {
                "waiting": len(host.router.queue),
                "queues": [
                    {"task": task, "model": model, "waiting": count}
                    for (task, model), count in waiting.items()
                ],
            }
        case _:
            now = host.clock()
            return {
                "in_flight": host.totals.in_flight,
                "running": [
                    {
                        "task": item.request.task,
                        "model": item.request.model,
                        "backend": item.backend_id,
                        "seconds": round(now - item.began_at, 3),
                        "chunks": item.chunks,
                    }
                    for item in host.running.values()
                ],
            }
