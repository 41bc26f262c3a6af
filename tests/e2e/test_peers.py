"""The map of peers in a real JupyterLab, whose server borrows from and lends to one in another process."""

import urllib.request

import pytest

from tests.e2e import checks
from tests.e2e.cells import by_id, until
from tests.upstreams.peer_processes import peer_processes
from tests.upstreams.peer_server import MODEL

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

MAP = "import uia_lab\nlab = uia_lab.connect()\nlab.peers()"


def pill_says(page, word):
    page.wait_for_function(
        "(word) => document.querySelector('[data-testid=\"uia-peers-connection\"]')?.textContent === word",
        arg=word,
        timeout=30_000,
    )


@pytest.fixture
def friend(server, tmp_path):
    """A server on the page's server's network; what was agreed with it is forgotten at the end."""
    node = server.ask("GET", "peers")["node"]
    settings = {
        "enable_libp2p": True,
        "libp2p_enable_mdns": False,
        "p2p_network": node["network"],
        "enable_api_backends": False,
        "enable_hf_server": True,
    }
    with peer_processes(tmp_path, settings) as start:
        yield start()
    for peer in server.ask("GET", "peers")["peers"]:
        if peer["trusted"]:
            server.ask("DELETE", f"peers/{peer['peer_id']}/trust")


def ask(friend, method, path, body):
    import json

    request = urllib.request.Request(
        friend.url + path,
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {friend.key}", "Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_inviting_borrowing_and_revoking_by_keyboard(notebook, run_all, server, friend, axe):
    page = notebook([MAP])
    run_all()
    by_id(page, "uia-peers").wait_for(timeout=60_000)
    pill_says(page, "live")
    by_id(page, "uia-peers-name").press_sequentially("Bob")
    by_id(page, "uia-peers-name").press("Enter")
    link = by_id(page, "uia-peers-link")
    until(lambda: by_id(page, "uia-peers-says").inner_text())
    assert by_id(page, "uia-peers-says").inner_text().startswith("Send this link")
    link.wait_for()
    invite = link.input_value()
    ask(friend, "POST", "peers/accept", {"link": invite, "lend": True})
    row = by_id(page, "uia-peers-row")
    row.wait_for()
    until(lambda: row.get_attribute("class") in ("", None) or "uia-out" not in row.get_attribute("class"))
    until(lambda: MODEL in row.inner_text())
    assert "Bob" in row.inner_text()
    until(lambda: " ms" in row.inner_text())
    assert page.locator(".uia-peers-picture circle").count() == 2
    assert page.locator(".uia-peers-picture").get_attribute("aria-hidden") == "true"
    peers = by_id(page, "uia-peers")
    for theme in checks.themes(page):
        checks.picture(peers, f"peers_{theme}")
        assert not checks.violations(page, axe, peers)
    checks.narrow(page, peers)
    checks.picture(peers, "peers_narrow")
    assert not checks.overflowing(peers)
    checks.wide(peers)
    revoke = by_id(page, "uia-peers-revoke")
    revoke.press("Enter")
    assert revoke.inner_text() == "Really revoke?"
    assert server.ask("GET", "peers")["peers"][0]["trusted"]
    revoke.press("Enter")
    until(lambda: "trusted no more" in by_id(page, "uia-peers-says").inner_text())
    assert not [peer for peer in server.ask("GET", "peers")["peers"] if peer["trusted"]]


def test_a_map_of_another_server_goes_by_the_kernel(notebook, run_all, server, friend):
    cell = f"import uia_lab\nlab = uia_lab.connect({friend.url!r}, {friend.key!r})\nlab.peers()"
    page = notebook([cell])
    run_all()
    by_id(page, "uia-peers").wait_for(timeout=60_000)
    pill_says(page, "from kernel")
    invite = server.ask("POST", "peers/invites", {"name": "other"})
    by_id(page, "uia-peers-given").fill(invite["link"])
    by_id(page, "uia-peers-accept").click()
    until(lambda: "lends us" in by_id(page, "uia-peers-says").inner_text())
    until(lambda: by_id(page, "uia-peers-row").count() == 1)
    by_id(page, "uia-peers-given").fill("nonsense")
    by_id(page, "uia-peers-accept").click()
    until(lambda: "uia-error" in by_id(page, "uia-peers-says").get_attribute("class"))
