"""What the manager tells of itself: the status report and the state of each live topic."""

import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from uia_lab.domain.backends import BackendInfo, BackendStatus, BackendType
from uia_lab.manager.host import Host
from uia_lab.routing.registry import Registered

SHOWN_TRANSITIONS = 20


def backend_info(host: Host, entry: Registered) -> BackendInfo:
    """A snapshot of one backend."""
    return entry.info(host.clock(), time.time(), host.router.waiting_for(entry))


def maybe_info(host: Host, entry: Registered | None) -> BackendInfo | None:
    """A snapshot of a backend that may not be there."""
    return None if entry is None else backend_info(host, entry)


def backend_infos(
    host: Host, kind: BackendType | None, status: BackendStatus | None, task: str | None
) -> list[BackendInfo]:
    """Snapshots of the backends of that type, status and task; None takes all."""
    return [
        backend_info(host, entry)
        for entry in host.router.registry
        if (kind is None or entry.type is kind)
        and (status is None or entry.health.status is status)
        and (task is None or task in entry.capabilities.supported_tasks)
    ]


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


def transitions(host: Host) -> list[dict[str, Any]]:
    """The latest changes of status, oldest first; ``at`` in seconds since the epoch."""
    offset = time.time() - host.clock()
    return [{**asdict(item), "at": item.at + offset} for item in host.router.transitions]


def troubles(host: Host, entry: Registered) -> dict[str, list[dict[str, Any]]]:
    """The latest ``errors`` of a backend and its changes of status, newest first."""
    offset = time.time() - host.clock()
    return {
        "errors": [{**asdict(item), "at": item.at + offset} for item in reversed(entry.health.troubles)],
        "transitions": [
            item for item in reversed(transitions(host)) if item["backend_id"] == entry.backend_id
        ][:SHOWN_TRANSITIONS],
    }


def topic_state(host: Host, topic: str) -> dict[str, Any]:
    """The state of a live topic; nothing in it tells who asked what."""
    match topic:
        case "status":
            return status_report(host)
        case "backend":
            return {
                "backends": [backend_info(host, entry).to_dict() for entry in host.router.registry],
                "transitions": transitions(host)[-SHOWN_TRANSITIONS:],
            }
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
