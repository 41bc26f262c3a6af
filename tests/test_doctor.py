import json
import subprocess
import sys

import pytest

from tests.upstreams.scripted_api import ScriptedApi
from uia_lab.config import InferenceServiceConfig
from uia_lab.doctor import MISSING, NOTE, OK, Finding, examine, page

SECRET = "sk-a-secret-that-doctor-sees"


@pytest.fixture
def findings(monkeypatch, tmp_path):
    async def look(**settings):
        settings.setdefault("store_path", str(tmp_path / "new" / "uia.sqlite3"))
        return {(item.area, item.name): item for item in await examine(InferenceServiceConfig(**settings))}

    return look


async def test_what_is_there_and_what_to_do_about_the_rest(findings, monkeypatch, tmp_path, models):
    monkeypatch.setattr("uia_lab.doctor._EXTRAS", {"pytest": ("x", "y"), "no-such-package": ("z", "wonders")})
    found = await findings()
    assert found["package", "pytest"].state == OK
    missing = found["package", "no-such-package"]
    assert (missing.state, missing.remedy) == (MISSING, "pip install 'uia-lab[z]'")
    assert "wonders" in missing.detail
    assert found["model", "SmolLM2-135M-Instruct"].state == OK
    assert found["store", str(tmp_path / "new" / "uia.sqlite3")].state == OK
    assert not (tmp_path / "new").exists(), "looking makes nothing"
    assert found["provider", "openai"].state == NOTE
    assert "verified: no" in found["provider", "openai"].detail
    assert "OPENAI_API_KEY" in found["provider", "openai"].remedy


async def test_a_model_that_is_not_fetched_and_a_store_nobody_may_write(findings, monkeypatch, tmp_path):
    monkeypatch.setenv("UIA_MODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("uia_lab.doctor.os.access", lambda path, mode: False)
    found = await findings()
    assert "models fetch SmolLM2" in found["model", "SmolLM2-135M-Instruct"].remedy
    (store,) = [item for (area, _), item in found.items() if area == "store"]
    assert (store.state, "UIA_STORE_PATH" in store.remedy) == (MISSING, True)


async def test_servers_of_this_machine_are_found_and_no_key_is_shown(findings, monkeypatch, tmp_path):
    file = tmp_path / "key"
    file.write_text(SECRET)
    file.chmod(0o600)
    async with ScriptedApi() as api:
        api.lists("a-model")
        monkeypatch.setenv("OPENAI_BASE_URL", api.url + "/v1")
        found = await findings(api_key_files={"OPENAI_API_KEY": str(file)}, api_backends=["openai"])
    assert found["provider", "openai"].detail.startswith("OPENAI_API_KEY is set")
    (server,) = [item for (area, _), item in found.items() if area == "found"]
    assert server.state == OK
    assert api.asked[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(found)


async def test_that_no_server_answers_is_said_too(findings):
    found = await findings(discovery_ports=[], api_backends=["openai"])
    assert "lab.backends.add" in found["found", "servers"].remedy


def test_a_page_for_people_gathers_what_is_alike_and_ends_with_what_to_do():
    findings = [
        Finding("package", "uia_lab", OK, "1.0"),
        Finding("model", "small", MISSING, "not fetched", "fetch it"),
        Finding("provider", "one", NOTE, "no key; verified: yes", "set ONE"),
        Finding("provider", "two", NOTE, "no key; verified: no", "set TWO"),
    ]
    shown = page(findings)
    assert (
        shown.index("Installed") < shown.index("Models that come with it") < shown.index("APIs by their key")
    )
    assert "no key: one (set ONE), two (set TWO)" in shown
    assert shown.endswith("1 missing. First: fetch it")
    assert page(findings[:1]).endswith("python -m uia_lab serve")
    absent = [Finding("package", name, MISSING, "not installed", f"install {name}") for name in "ab"]
    assert page(absent).endswith("2 missing. First: pip install 'uia-lab[all]'")
    assert "Peers" not in shown


def test_the_command_says_it_in_lines_and_in_json():
    for options in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "uia_lab", "doctor", *options],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert "xllamacpp" in done.stdout, done.stderr
        assert done.returncode in (0, 1)
        if options:
            states = {item["state"] for item in json.loads(done.stdout)}
            assert done.returncode == int(MISSING in states)


async def test_the_network_of_peers(findings, monkeypatch, tmp_path):
    assert (await findings())["p2p", "network"].state == NOTE
    key = tmp_path / "p2p.key"
    key.write_text("not looked into")
    key.chmod(0o644)
    found = await findings(enable_libp2p=True, p2p_network="ours", p2p_key_path=str(key))
    assert "no other machine can connect" in found["p2p", "ours (private)"].detail
    assert (found["p2p", str(key)].state, found["p2p", str(key)].remedy) == (MISSING, f"chmod 600 {key}")
    key.chmod(0o600)
    everywhere = {"enable_libp2p": True, "p2p_network": "ours", "p2p_listen": ["/ip4/0.0.0.0/tcp/4001"]}
    found = await findings(**everywhere, p2p_key_path=str(key))
    assert found["p2p", "ours (private)"].state == OK
    assert found["p2p", str(key)].state == OK
    found = await findings(**everywhere, p2p_mode="open", p2p_key_path=str(tmp_path / "new.key"))
    assert "whoever finds it" in found["p2p", "ours (open)"].detail
    assert found["p2p", str(tmp_path / "new.key")].state == NOTE

    def broken(name):
        raise ImportError("libgmp.so.10: cannot open shared object file")

    monkeypatch.setattr("uia_lab.doctor.import_module", broken)
    monkeypatch.setattr("uia_lab.doctor.find_spec", lambda name: name)
    assert "apt install libgmp10" in (await findings(**everywhere))["p2p", "libgmp"].remedy
