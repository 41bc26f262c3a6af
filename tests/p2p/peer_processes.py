"""Nodes in processes of their own, ended with the test that started them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

START_S = 60.0
STOP_S = 20.0


@dataclass
class PeerProcess:
    """A node of tests/p2p/peer_node.py."""

    process: subprocess.Popen
    addresses: list
    peer_id: str

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def peer_processes(network, prefix=()):
    """Gives what starts a node of a network.

    Args:
        network: Its name.
        prefix: Words in front of the command, such as those that enter a network namespace.
    """
    started = []

    def start(prefix=prefix, **settings):
        asked = {
            "mode": "open",
            "network": network,
            "enable_mdns": False,
            "discovery_interval": 1.0,
            **settings,
        }
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.p2p.peer_node", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        watchdog = threading.Timer(START_S, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        watchdog.cancel()
        assert line, "the node did not come up"
        return PeerProcess(process, **json.loads(line))

    try:
        yield start
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.stdin.close()
        for process in started:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            finally:
                process.stdout.close()
