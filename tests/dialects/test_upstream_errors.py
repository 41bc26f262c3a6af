"""Errors of upstreams, as each provider writes them, and how long they ask to be left alone."""

import json

import pytest

from uia_lab.dialects.rate_limits import duration, retry_after
from uia_lab.dialects.upstream_errors import LONGEST_MESSAGE, upstream_error
from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    BadRequest,
    ContextTooLong,
    LoopDetected,
    ModelNotFound,
    NoBackendAvailable,
    NotAllowed,
    QueueFull,
    RateLimited,
    Unauthenticated,
)


def openai(message, code=None, kind=None, param=None):
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


CASES = [
    (400, openai("bad n", "invalid_value", "invalid_request_error", "n"), BadRequest, False),
    (
        400,
        openai("This model's maximum context length is 8 tokens", "context_length_exceeded"),
        ContextTooLong,
        True,
    ),
    (401, openai("Incorrect API key provided", "invalid_api_key"), Unauthenticated, True),
    (403, openai("Country not supported", "unsupported_country"), NotAllowed, True),
    (404, openai("The model `x` does not exist", "model_not_found"), ModelNotFound, True),
    (429, openai("Rate limit reached", "rate_limit_exceeded", "tokens"), RateLimited, True),
    (429, openai("You exceeded your current quota", "insufficient_quota"), NotAllowed, True),
    (500, openai("The server had an error", None, "server_error"), BackendFailed, True),
    (503, openai("Engine overloaded"), NoBackendAvailable, True),
    # Anthropic
    (
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        NoBackendAvailable,
        True,
    ),
    (
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}},
        ContextTooLong,
        True,
    ),
    (
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: required"}},
        BadRequest,
        False,
    ),
    (
        404,
        {"type": "error", "error": {"type": "not_found_error", "message": "model: claude-x"}},
        ModelNotFound,
        True,
    ),
    # Gemini
    (
        400,
        [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}],
        Unauthenticated,
        True,
    ),
    (429, {"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}}, RateLimited, True),
    # llama.cpp
    (
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
            }
        },
        ContextTooLong,
        True,
    ),
    (
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        NoBackendAvailable,
        True,
    ),
    (
        404,
        {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}},
        BackendFailed,
        True,
    ),
    # vLLM, TGI, TEI, Ollama, Mistral, OpenRouter
    (
        404,
        {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404},
        ModelNotFound,
        True,
    ),
    (
        422,
        {
            "error": "Input validation error: `inputs` must have less than 4 tokens",
            "error_type": "validation",
        },
        ContextTooLong,
        True,
    ),
    (429, {"error": "Model is overloaded", "error_type": "overloaded"}, NoBackendAvailable, True),
    (404, {"error": "model 'x' not found"}, ModelNotFound, True),
    (422, {"detail": [{"loc": ["body", "n"], "msg": "bad"}]}, BadRequest, False),
    (402, {"error": {"code": 402, "message": "Insufficient credits"}}, NotAllowed, True),
    # Another uia_lab
    (429, openai("full", "queue_full"), QueueFull, True),
    (508, openai("been here", "loop_detected"), LoopDetected, True),
    # Proxies
    (502, "<html>Bad Gateway</html>", BackendFailed, True),
    (504, "", BackendTimeout, True),
    (413, "too large", BadRequest, False),
]


@pytest.mark.parametrize(("status", "body", "kind", "elsewhere"), CASES)
def test_the_error_of_a_status(status, body, kind, elsewhere):
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    error = upstream_error(status, {}, data)
    assert (type(error), error.retryable) == (kind, elsewhere)
    assert str(status) in error.message
    assert "<" not in error.message


def test_the_message_is_the_upstreams_and_bounded():
    error = upstream_error(400, {}, json.dumps(openai("bad\nn " * 1000, param="n")).encode())
    assert error.message.startswith("answered 400: bad n bad")
    assert len(error.message) < LONGEST_MESSAGE + 40
    assert error.param == "n"
    assert len(upstream_error(500, {}, b"[" * 100_000).message) < LONGEST_MESSAGE + 40
    assert "nothing that explains it" in upstream_error(500, {}, b"{}").message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "2"}, 2),
        ({"Retry-After": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "6m0s"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms",
                "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2m3.5s",
            },
            3723.5,
        ),
        (
            {
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2015-10-21T07:28:10Z",
            },
            10,
        ),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "9" * 100}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_how_long_to_wait(headers, seconds):
    now = 1445412480.0  # 2015-10-21T07:28:00Z
    assert retry_after(headers, now) == seconds


def test_a_code_of_odd_digits_is_a_name():
    error = upstream_error(500, {}, json.dumps(openai("no", "²²²")).encode())
    assert type(error) is BackendFailed


def test_a_delay_in_the_body_and_headers_on_the_error():
    body = {"error": {"code": 429, "message": "quota", "details": [{"retryDelay": "30s"}]}}
    assert upstream_error(429, {}, json.dumps(body).encode()).retry_after == 30
    assert upstream_error(429, {"Retry-After": "4"}, json.dumps(body).encode()).retry_after == 4
    assert upstream_error(400, {"Retry-After": "4"}, b"{}").retry_after is None


def test_durations():
    assert [duration(text) for text in ("6m0s", "250ms", "1h", "0.5s", "7", "", "1x", "m", "1s2")] == [
        360, 0.25, 3600, 0.5, 7, None, None, None, None,
    ]  # fmt: skip
