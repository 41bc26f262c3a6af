"""Anthropic's Messages: ``POST /v1/messages``, as a door answers it and as an upstream is asked."""

NAME = "anthropic"
VERSION = "2023-06-01"
BETA = "anthropic-beta"
