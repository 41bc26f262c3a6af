"""Where APIs are looked for."""

import pytest

from uia_lab.access.secrets import Secrets
from uia_lab.backends.providers import PROVIDERS
from uia_lab.discovery.owners import stranger_at
from uia_lab.discovery.places import Place, ollama_endpoint, places


def look(environ, *names, ports=()):
    wanted = [PROVIDERS[name] for name in names] or PROVIDERS.values()
    found = places(wanted, Secrets(environ=environ), environ, ports)
    return [
        (place.endpoint, place.source, place.provider and place.provider.name, place.key) for place in found
    ]


def test_keys_lead_to_the_providers_own_hosts():
    environ = {"OPENAI_API_KEY": "a", "HF_API_TOKEN": "b", "GROQ_API_KEY": " "}
    assert look(environ) == [
        ("https://api.openai.com/v1", "OPENAI_API_KEY", "openai", "OPENAI_API_KEY"),
        ("https://router.huggingface.co/v1", "HF_API_TOKEN", "huggingface", "HF_API_TOKEN"),
    ]
    assert look(environ, "anthropic", "groq", ports=[1]) == []


def test_addresses_in_the_environment_come_before_the_usual_ones():
    environ = {
        "OPENAI_API_KEY": "a",
        "OPENAI_BASE_URL": "http://gateway:4000/v1/",
        "VLLM_BASE_URL": "http://gpu:8000/v1",
        "MISTRAL_BASE_URL": "https://api.mistral.ai/v1",
    }
    assert look(environ) == [
        ("http://gateway:4000/v1", "OPENAI_BASE_URL", None, "OPENAI_API_KEY"),
        ("https://api.mistral.ai/v1", "MISTRAL_BASE_URL", "mistral", None),
        ("http://gpu:8000/v1", "VLLM_BASE_URL", "vllm", None),
    ]


def test_ports_get_no_key_and_are_looked_at_once():
    environ = {"OPENAI_API_KEY": "a", "OLLAMA_HOST": "localhost"}
    assert look(environ, "ollama", "openai", ports=[11434, 8080, 8080]) == [
        ("https://api.openai.com/v1", "OPENAI_API_KEY", "openai", "OPENAI_API_KEY"),
        ("http://localhost:11434", "OLLAMA_HOST", "ollama", None),
        ("http://127.0.0.1:8080", "port 8080", None, None),
    ]


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:5000", "http://127.0.0.1:5000"),
        (":5000", "http://127.0.0.1:5000"),
        ("gpu:5000", "http://gpu:5000"),
        ("http://gpu", "http://gpu"),
        ("https://gpu/ollama/", "https://gpu/ollama"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("gpu:port", None),
    ],
)
def test_every_form_of_ollama_host(text, endpoint):
    assert ollama_endpoint(text) == endpoint


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("http://gpu:8000/v1", "http://gpu:8000/v1"),
        ("https://me:hunter2@gpu:8000/v1?api-key=hunter2#hunter2", "https://gpu:8000/v1"),
        ("http://me:hunter2@[::1]:80/v1", "http://[::1]:80/v1"),
        ("https://me:hunter/2@gpu", "the value of OPENAI_BASE_URL, which is no address of a server"),
        ("https://me:12?hunter2@gpu", "the value of OPENAI_BASE_URL, which is no address of a server"),
        ("hunter2", "the value of OPENAI_BASE_URL, which is no address of a server"),
    ],
)
def test_an_address_is_shown_without_its_secrets(endpoint, shown):
    assert Place(endpoint, "OPENAI_BASE_URL").shown == shown


def test_servers_of_other_people_are_strangers(tmp_path):
    head = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    row = "   0: {}:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  {}        0 1 1 0\n"
    (tmp_path / "tcp").write_text(
        head
        + row.format("0100007F", 8080, "0A", 1001)
        + row.format("00000000", 8081, "0A", 1000)
        + row.format("0100007F", 8082, "0A", 998)
        + row.format("0100007F", 8083, "01", 1001)
        + row.format("0500007F", 8084, "0A", 1001)
    )
    assert [stranger_at(port, tmp_path, 1000) for port in range(8080, 8085)] == [1001, None, None, None, None]
    assert stranger_at(8080, tmp_path / "nowhere", 1000) is None
