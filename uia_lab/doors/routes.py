"""The one table of doors; both mounts are made from it."""

from uia_lab.doors.aliases import AliasDoor, AliasesDoor
from uia_lab.doors.anthropic import MessagesDoor
from uia_lab.doors.backends import BackendDoor, BackendsDoor, ProbeDoor, StrategyDoor
from uia_lab.doors.base import Door
from uia_lab.doors.explain import ExplainDoor
from uia_lab.doors.hardware import HardwareDoor
from uia_lab.doors.infer import InferDoor
from uia_lab.doors.keys import KeyDoor, KeysDoor
from uia_lab.doors.local_models import LoadDoor, LocalModelsDoor, UnloadDoor
from uia_lab.doors.mcp import McpDoor
from uia_lab.doors.media import ImagesDoor, TranscriptionsDoor
from uia_lab.doors.metrics import MetricsDoor
from uia_lab.doors.models import ModelDoor, ModelsDoor
from uia_lab.doors.openai import ChatDoor, CompletionsDoor, EmbeddingsDoor
from uia_lab.doors.openapi import OpenApiDoor
from uia_lab.doors.peers import AcceptDoor, InviteDoor, InvitesDoor, PeersDoor, TrustDoor
from uia_lab.doors.replay import ReplayDoor
from uia_lab.doors.requests import RequestDoor, RequestsDoor
from uia_lab.doors.responses import ResponsesDoor
from uia_lab.doors.status import HealthDoor, HistoryDoor, NothingDoor, ReadyDoor, StatusDoor
from uia_lab.doors.websocket import SocketDoor


def routes() -> list[tuple[str, type[Door]]]:
    """Patterns rooted at ``/`` and their doors, in the order they are tried."""
    return [
        (r"/v1/chat/completions", ChatDoor),
        (r"/v1/completions", CompletionsDoor),
        (r"/v1/embeddings", EmbeddingsDoor),
        (r"/v1/responses", ResponsesDoor),
        (r"/v1/messages", MessagesDoor),
        (r"/v1/images/generations", ImagesDoor),
        (r"/v1/audio/transcriptions", TranscriptionsDoor),
        (r"/v1/models", ModelsDoor),
        (r"/v1/models/(.+)", ModelDoor),
        (r"/infer", InferDoor),
        (r"/models", LocalModelsDoor),
        (r"/models/load", LoadDoor),
        (r"/models/unload", UnloadDoor),
        (r"/hardware", HardwareDoor),
        (r"/status", StatusDoor),
        (r"/history", HistoryDoor),
        (r"/health", HealthDoor),
        (r"/ready", ReadyDoor),
        (r"/backends", BackendsDoor),
        (r"/backends/([^/]+)", BackendDoor),
        (r"/backends/([^/]+)/probe", ProbeDoor),
        (r"/strategy", StrategyDoor),
        (r"/explain", ExplainDoor),
        (r"/aliases", AliasesDoor),
        (r"/aliases/(.+)", AliasDoor),
        (r"/keys", KeysDoor),
        (r"/keys/([^/]+)", KeyDoor),
        (r"/peers", PeersDoor),
        (r"/peers/accept", AcceptDoor),
        (r"/peers/invites", InvitesDoor),
        (r"/peers/invites/([^/]+)", InviteDoor),
        (r"/peers/([^/]+)/trust", TrustDoor),
        (r"/requests", RequestsDoor),
        (r"/requests/([^/]+)", RequestDoor),
        (r"/replay", ReplayDoor),
        (r"/metrics", MetricsDoor),
        (r"/openapi.yaml", OpenApiDoor),
        (r"/mcp", McpDoor),
        (r"/ws/([^/]+)", SocketDoor),
        (r"/(.*)", NothingDoor),
    ]
