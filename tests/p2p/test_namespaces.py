"""Two network namespaces with a bridge between them: mDNS across it, and a link that is cut."""

import json
import os
import queue
import secrets
import shutil
import subprocess
import sys
import threading

import pytest

from tests.p2p.peer_processes import peer_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's"),
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes network namespaces"
    ),
    pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed"),
]
# The protocol gives 15 s; the machine may be busy.
WAIT_S = 90


def ip(*words):
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def namespaces():
    """Two namespaces on one bridge; each has its link, by which it can be cut off."""
    mark = secrets.token_hex(2)
    bridge, names = f"ub{mark}", [f"uns{mark}{side}" for side in "ab"]
    links = [f"uv{mark}{side}" for side in "ab"]
    made = []
    try:
        try:
            ip("link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
            made.append(("link", "del", bridge))
            ip("link", "set", bridge, "up")
            for number, (name, link) in enumerate(zip(names, links, strict=True)):
                ip("netns", "add", name)
                made.append(("netns", "del", name))
                ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
                ip("link", "set", link, "master", bridge, "up")
                ip("-n", name, "addr", "add", f"10.213.7.{number + 1}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (RuntimeError, OSError) as error:
            pytest.skip(f"this machine makes no network namespaces: {error}")
        yield names, links
    finally:
        for words in reversed(made):
            subprocess.run(["ip", *words], check=False, timeout=20)


class Reports:
    """What a node in a process of its own says about its peers."""

    def __init__(self, peer):
        self._lines = queue.Queue()
        self._stdout = peer.process.stdout
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._stdout:
            self._lines.put(json.loads(line))

    def until(self, state):
        """The report in which a peer has that state."""
        while (report := self._lines.get(timeout=WAIT_S))["state"] != state:
            pass
        return report


@pytest.mark.timeout(400)
def test_peers_find_each_other_by_mdns_and_survive_a_cut(namespaces, network):
    names, links = namespaces
    with peer_processes(network) as start:
        first, second = [
            start(
                prefix=("ip", "netns", "exec", name),
                listen=[f"/ip4/10.213.7.{number + 1}/tcp/0"],
                enable_mdns=True,
                report=True,
            )
            for number, name in enumerate(names)
        ]
        reports = Reports(second)
        report = reports.until("connected")
        assert report["peer_id"] == first.peer_id
        assert {"mdns", "inbound"} & set(report["found_by"])
        assert first.addresses[0].startswith("/ip4/10.213.7.1/tcp/")
        ip("link", "set", links[0], "down")
        assert reports.until("offline")["peer_id"] == first.peer_id
        ip("link", "set", links[0], "up")
        assert reports.until("connected")["peer_id"] == first.peer_id
