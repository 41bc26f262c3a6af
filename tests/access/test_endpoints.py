import aiohttp
import pytest

from uia_lab.access.endpoints import EndpointPolicy, is_loopback
from uia_lab.domain.errors import BadRequest, NotAllowed


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254",
        "http://169.254.0.1:80/x",
        "http://[fe80::1%25eth0]:80",
        "http://[fd00:ec2::254]",
        "http://100.100.100.200",
        "http://168.63.129.16",
        "http://metadata",
        "http://METADATA.google.internal.",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://0251.0376.0251.0376",
        "http://169.254.43518",
        "http://[::ffff:169.254.169.254]",
        "http://[2002:a9fe:a9fe::]",
        "http://[64:ff9b::a9fe:a9fe]",
        "http://[::169.254.169.254]",
        "http://0.0.0.0",
        "http://[::]",
        "http://224.0.0.1",
    ],
)
def test_refused_however_it_is_written(endpoint):
    with pytest.raises(NotAllowed, match="allowed_endpoint_hosts"):
        EndpointPolicy().check(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "form"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("HTTPS://Api.Example.COM/V1", "https://api.example.com/V1"),
        ("http://10.0.0.7:11434", "http://10.0.0.7:11434"),
        ("ws://[::1]:8888/ws", "ws://[::1]:8888/ws"),
        ("http://my-host#x", "http://my-host"),
    ],
)
def test_taken_in_one_form(endpoint, form):
    assert EndpointPolicy().check(endpoint) == form


def test_an_administrator_allows_a_host_by_name():
    policy = EndpointPolicy(["169.254.10.1", "[fe80::1]"])
    assert policy.check("http://169.254.10.1:80") == "http://169.254.10.1:80"
    assert policy.check("http://[fe80::1]:80")
    with pytest.raises(NotAllowed):
        policy.check("http://169.254.10.2")


@pytest.mark.parametrize(
    "endpoint", ["http://u:pw-secret@h", "http://h/?k=pw-secret", "nothing", "http://h:0"]
)
def test_what_is_no_address_is_not_repeated(endpoint):
    with pytest.raises(BadRequest) as caught:
        EndpointPolicy().check(endpoint)
    assert caught.value.param == "endpoint"
    assert "pw-secret" not in caught.value.message


async def test_a_name_that_stands_for_a_forbidden_address_is_not_called(monkeypatch):
    """Only looked up: nothing here ever connects to such an address."""

    async def found(self, host, port=0, family=0):
        return [
            {"hostname": host, "host": "169.254.169.254", "port": port, "family": 2, "proto": 6, "flags": 4}
        ]

    async def connected(self, *args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", found)
    monkeypatch.setattr("aiohttp.TCPConnector._wrap_create_connection", connected)
    connector = aiohttp.TCPConnector(resolver=EndpointPolicy().resolver())
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(NotAllowed):
            await session.get("http://rebound.example/")
    allowing = EndpointPolicy(["rebound.example"]).resolver()
    assert (await allowing.resolve("rebound.example"))[0]["host"] == "169.254.169.254"
    await allowing.close()


@pytest.mark.parametrize(
    ("endpoint", "here"),
    [
        ("http://localhost:1", True),
        ("http://127.9.9.9", True),
        ("http://[::1]", True),
        ("http://2130706433", True),
        ("http://localhost.example", False),
        ("http://10.0.0.1", False),
    ],
)
def test_what_is_on_this_machine(endpoint, here):
    assert is_loopback(endpoint) is here
