"""OpenAI's Responses: ``POST /v1/responses``, as a door answers it and as an upstream is asked."""

NAME = "openai-responses"
