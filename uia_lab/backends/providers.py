"""What is known of each provider of inference over HTTP, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.domain.tasks import (
    AUDIO_TRANSCRIPTION,
    IMAGE_GENERATION,
    TEXT_CLASSIFICATION,
    TEXT_EMBEDDING,
    TEXT_GENERATION,
)

_BOTH = frozenset({TEXT_GENERATION, TEXT_EMBEDDING})
_TEXT = frozenset({TEXT_GENERATION})
_ALL = _BOTH | {IMAGE_GENERATION, AUDIO_TRANSCRIPTION}


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider.

    Paths are below the base URL; ``../health`` is one level above it.

    Args:
        name: Its name in ``api_backends``, in ids, and before ``_BASE_URL`` in the environment.
        title: Its name for people.
        dialect: Dialect it speaks.
        base_url: Where it is, if that is one place.
        keys: Names its key has in the environment, in the order they are looked for.
        auth: Header that carries the key.
        scheme: What stands before the key in that header.
        tasks: Tasks it does.
        concurrency: Requests at once where nobody says otherwise.
        health: Path that says for nothing whether it is well, if there is one.
        models: Path that lists its models for nothing.
        loaded: Path that lists the models it has in memory, if there is one.
        prefix: Path of the base URL on a server of one's own.
        headers: Sent with each call.
        fields: Fields of a body under other names, or dropped where the name is None.
        aliases: Other names it is called by.
        verified: Whether this code has ever run against the real thing.
    """

    name: str
    title: str
    dialect: str
    base_url: str | None = None
    keys: tuple[str, ...] = ()
    auth: str = "Authorization"
    scheme: str = "Bearer "
    tasks: frozenset[str] = _BOTH
    concurrency: int = 32
    health: str | None = None
    models: str = "models"
    loaded: str | None = None
    prefix: str = "/v1"
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str | None] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    verified: bool = False

    @property
    def base_url_variable(self) -> str:
        """The environment variable that puts another address in the place of the usual one."""
        return f"{self.name.upper().replace('-', '_')}_BASE_URL"


_ONE_LIMIT = {"max_completion_tokens": "max_tokens"}

PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider(
            "openai",
            "OpenAI",
            "openai-chat",
            "https://api.openai.com/v1",
            keys=("OPENAI_API_KEY",),
            tasks=_ALL,
            # Its reasoning models refuse the older name, and all of its chat models take the newer one.
            fields={"max_tokens": "max_completion_tokens"},
            aliases=("openai_api",),
        ),
        Provider(
            "anthropic",
            "Anthropic",
            "anthropic",
            "https://api.anthropic.com/v1",
            keys=("ANTHROPIC_API_KEY",),
            auth="x-api-key",
            scheme="",
            tasks=_TEXT,
            models="models?limit=1000",
            headers={"anthropic-version": "2023-06-01"},
            aliases=("anthropic_api", "claude_api"),
        ),
        Provider(
            "huggingface",
            "Hugging Face",
            "openai-chat",
            "https://router.huggingface.co/v1",
            keys=("HF_TOKEN", "HF_API_TOKEN", "HF_API_KEY"),
            tasks=_TEXT,
            aliases=("hf", "hf_api", "hf_inference", "huggingface_api"),
        ),
        Provider(
            "gemini",
            "Gemini",
            "openai-chat",
            "https://generativelanguage.googleapis.com/v1beta/openai",
            keys=("GEMINI_API_KEY",),
            aliases=("gemini_api", "google"),
        ),
        Provider(
            "groq",
            "Groq",
            "openai-chat",
            "https://api.groq.com/openai/v1",
            keys=("GROQ_API_KEY",),
            tasks=_TEXT | {AUDIO_TRANSCRIPTION},
            aliases=("groq_api",),
        ),
        Provider(
            "xai",
            "xAI",
            "openai-chat",
            "https://api.x.ai/v1",
            keys=("XAI_API_KEY",),
            tasks=_TEXT,
            aliases=("xai_api", "grok"),
        ),
        Provider(
            "openrouter",
            "OpenRouter",
            "openai-chat",
            "https://openrouter.ai/api/v1",
            keys=("OPENROUTER_API_KEY",),
            tasks=_TEXT,
            aliases=("openrouter_api",),
        ),
        Provider(
            "mistral",
            "Mistral",
            "openai-chat",
            "https://api.mistral.ai/v1",
            keys=("MISTRAL_API_KEY",),
            # It refuses fields it does not know, and tells the usage unasked.
            fields={**_ONE_LIMIT, "seed": "random_seed", "stream_options": None},
            aliases=("mistral_api",),
        ),
        Provider(
            "azure",
            "Azure OpenAI",
            "openai-chat",
            keys=("AZURE_OPENAI_API_KEY",),
            tasks=_ALL,
            auth="api-key",
            scheme="",
            prefix="/openai/v1",
            fields={"max_tokens": "max_completion_tokens"},
            aliases=("azure_openai",),
        ),
        Provider(
            "ollama",
            "Ollama",
            "ollama",
            concurrency=4,
            health="api/version",
            models="api/tags",
            loaded="api/ps",
            prefix="",
        ),
        Provider(
            "vllm",
            "vLLM",
            "openai",
            concurrency=64,
            health="../health",
            aliases=("vllm_api",),
        ),
        Provider(
            "llamacpp",
            "llama.cpp",
            "openai",
            concurrency=4,
            health="../health",
            aliases=("llama_cpp", "llama-server"),
            verified=True,
        ),
        Provider(
            "lmstudio",
            "LM Studio",
            "openai",
            concurrency=4,
            fields=_ONE_LIMIT,
            aliases=("lm_studio",),
        ),
        Provider(
            "tgi",
            "Text Generation Inference",
            "openai",
            tasks=_TEXT,
            concurrency=64,
            health="../health",
            models="../info",
            fields=_ONE_LIMIT,
            aliases=("hf_tgi",),
        ),
        Provider(
            "tei",
            "Text Embeddings Inference",
            "tei",
            tasks=frozenset({TEXT_EMBEDDING, TEXT_CLASSIFICATION}),
            concurrency=64,
            health="health",
            models="info",
            prefix="",
            aliases=("hf_tei",),
        ),
        # Ran against the server of transformers.
        Provider("compatible", "OpenAI-compatible", "openai", aliases=("openai_compatible",), verified=True),
    )
}

_PORTS = {"http": 80, "https": 443}
COMPATIBLE = PROVIDERS["compatible"]
_NAMES = {
    called.replace("-", "_"): provider
    for provider in PROVIDERS.values()
    for called in (provider.name, *provider.aliases)
}


def provider_named(name: str, param: str = "api_backends") -> Provider:
    """The provider of a name or alias; case and dashes do not matter.

    Raises:
        BadRequest: There is none; the message lists the known ones.
    """
    found = _NAMES.get(name.strip().lower().replace("-", "_"))
    if found is None:
        raise BadRequest(f"{param}: {name!r} is no known API.{suggestion(name, PROVIDERS)}", param=param)
    return found


def provider_at(endpoint: str) -> Provider | None:
    """The provider whose own server an endpoint is at, if it is one's.

    Its host alone does not make it so: over another scheme or port its key would go unencrypted, or to
    whoever listens there.
    """
    place = _place(endpoint)
    scheme, host, port = place
    if (scheme, port) == ("https", 443) and host.endswith(".openai.azure.com"):
        return PROVIDERS["azure"]
    return next(
        (
            provider
            for provider in PROVIDERS.values()
            if provider.base_url is not None and _place(provider.base_url) == place
        ),
        None,
    )


def _place(endpoint: str) -> tuple[str, str, int | None]:
    """Scheme, host and port."""
    parts = urlsplit(endpoint)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
