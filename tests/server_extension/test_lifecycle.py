import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY, generate_latest
from traitlets.config import Config

SOURCE = str(Path(__file__).parents[2] / "jupyter_server_extension")


@pytest.fixture
def app(monkeypatch):
    monkeypatch.syspath_prepend(SOURCE)
    monkeypatch.delenv("UIA_LAB_URL", raising=False)
    monkeypatch.delenv("UIA_LAB_TOKEN", raising=False)
    from uia_lab_server.app import UiaLabServer

    app = UiaLabServer(
        config=Config({"InferenceServiceConfig": {"enable_hf_server": False, "queue_size": 7}})
    )
    app.initialize_settings()
    return app


class Kernels:
    """What is started as a kernel gets this environment."""

    env = None

    async def start_kernel(self, *, env=None):
        self.env = env


def jupyter(**values):
    return SimpleNamespace(
        **{"sock": "", "ip": "127.0.0.1", "port": 8888, "certfile": "", "base_url": "/nb/"}
        | {"kernel_manager": Kernels()}
        | values
    )


async def test_what_start_gives_stop_takes_back(app):
    service = app.service
    assert service.config.queue_size == 7
    serverapp = jupyter()
    await app._start_jupyter_server_extension(serverapp)
    try:
        kernels = serverapp.kernel_manager
        await kernels.start_kernel()
        key = kernels.env["UIA_LAB_TOKEN"]
        assert kernels.env["UIA_LAB_URL"] == "http://127.0.0.1:8888/nb/uia/"
        assert kernels.env["PATH"] == os.environ["PATH"]
        assert "UIA_LAB_TOKEN" not in os.environ
        await kernels.start_kernel(env={"A": "b"})
        assert kernels.env.keys() == {"A", "UIA_LAB_URL", "UIA_LAB_TOKEN"}
        assert service.keys.verify(key).allows("admin")
        assert service.get_hf_server() is None
        assert b"uia_requests_in_flight" in generate_latest(REGISTRY)
        assert app.current_activity() is None
    finally:
        await app.stop_extension()
    await kernels.start_kernel(env={"A": "b"})
    assert kernels.env == {"A": "b"}
    assert service.keys.verify(key) is None
    assert b"uia_requests_in_flight" not in generate_latest(REGISTRY)
    await app.stop_extension()


async def test_a_service_that_does_not_start_is_logged_only(app, monkeypatch, caplog):
    async def broken(**_):
        raise RuntimeError("no luck")

    app.log.propagate = True
    monkeypatch.setattr(app.service, "start", broken)
    await app._start_jupyter_server_extension(jupyter())
    await app.stop_extension()
    assert "Jupyter goes on without it" in caplog.text


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({"ip": ""}, "http://127.0.0.1:8888/nb/uia/"),
        ({"ip": "0.0.0.0", "certfile": "c.pem"}, "https://127.0.0.1:8888/nb/uia/"),
        ({"ip": "localhost", "base_url": "/"}, "http://localhost:8888/uia/"),
        ({"ip": "::1"}, "http://[::1]:8888/nb/uia/"),
        ({"sock": "/run/jupyter.sock"}, "http+unix://%2Frun%2Fjupyter.sock/nb/uia/"),
    ],
)
def test_the_address_for_kernels(monkeypatch, values, url):
    monkeypatch.syspath_prepend(SOURCE)
    from uia_lab_server.app import loopback_url

    assert loopback_url(jupyter(**values)) == url
