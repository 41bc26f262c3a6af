"""What the tools of the MCP door take and give, as models from which clients get their schemas."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Arguments(BaseModel):
    """Base of what a tool takes; a name it does not know is an error."""

    model_config = ConfigDict(extra="forbid")


class Nothing(Arguments):
    """No arguments."""


class BackendFilter(Arguments):
    """Which backends to list."""

    backend_type: str | None = Field(None, description="gpu, api, cli, p2p, websocket, mcp or hybrid")
    status: str | None = Field(
        None, description="healthy, degraded, unhealthy, offline, initializing or unknown"
    )
    task: str | None = Field(None, description="a task, for example text-generation or text-embedding")


class Selection(Arguments):
    """What a backend is looked for."""

    task: str = Field(description="for example text-generation or text-embedding")
    model: str | None = Field(None, description="a model or alias; the default one of the task when absent")
    preferred_types: list[str] = Field([], description="types of backend, the best first; others still serve")
    required_protocols: list[str] = Field([], description="protocols the backend must speak, such as http")


class InferenceCall(Arguments):
    """A request for inference."""

    task: str = Field(description="for example text-generation, text-embedding or summarization")
    model: str | None = Field(None, description="a model or alias; the default one of the task when absent")
    inputs: Any = Field(
        description="a prompt, a list of texts, or chat messages: a list of objects with role and content"
    )
    parameters: dict[str, Any] = Field(
        {}, description="sampling and task parameters under their OpenAI names, such as max_tokens"
    )
    backend_id: str | None = Field(None, description="only this backend")
    timeout: float | None = Field(None, gt=0, description="seconds for everything, the queue included")


class Backend(BaseModel):
    """One backend."""

    id: str
    name: str
    type: str
    status: str
    routable: bool = Field(description="whether requests may go there now")
    reason: str = Field(description="why it is in this status")
    endpoint: str | None = None
    tasks: list[str]
    models: list[str] = Field(description="models it serves; none listed means any")
    protocols: list[str]
    hardware_types: list[str]
    weight: float
    max_concurrency: int | None = None
    enabled: bool
    metrics: dict[str, float | int]


class BackendList(BaseModel):
    """The backends that match."""

    backends: list[Backend]


class Status(BaseModel):
    """The status of everything; totals count requests, a backend's metrics attempts."""

    instance_id: str
    strategy: str
    total_backends: int
    backends_by_type: dict[str, int]
    backends_by_status: dict[str, int]
    total_requests: int
    total_successful: int
    total_failed: int
    total_cancelled: int
    total_rejected: int
    in_flight: int
    supported_tasks: list[str]
    backends: list[Backend]
    timestamp: float = Field(description="seconds since the epoch")


class Candidate(BaseModel):
    """One backend as the decision saw it."""

    backend_id: str
    kept: bool = Field(description="whether it could serve")
    reason: str = Field(description="why not, or why it only waits")
    score: float | None = None


class Selected(BaseModel):
    """The backend that would serve now, and how the others compared; nothing is reserved."""

    backend: Backend | None = None
    strategy: str
    candidates: list[Candidate]


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    estimated: bool = False


class Attempt(BaseModel):
    """One backend that was tried."""

    backend: str
    outcome: str
    error: str | None = None


class Answer(BaseModel):
    """The answer of a request that was really run."""

    request_id: str
    task: str
    model: str | None = None
    result: Any = Field(None, description="the text, or the task's result")
    choices: list[str] | None = Field(None, description="every text, where several were asked for")
    tool_calls: list[dict[str, Any]] | None = None
    reasoning: str | None = None
    usage: Usage
    finish_reason: str
    finish_reasons: list[str] | None = None
    backend: str
    attempts: list[Attempt]


class SupportedTasks(BaseModel):
    """What can be asked for now."""

    instance_id: str
    tasks: dict[str, list[str]] = Field(description="by task, the models that do it")
