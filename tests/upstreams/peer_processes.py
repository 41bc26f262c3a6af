"""Servers with libp2p nodes in processes of their own, ended with the test that started them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

from tests.upstreams.peer_server import KEY

START_S = 60.0
STOP_S = 20.0


@dataclass
class PeerProcess:
    """A server of tests/upstreams/peer_server.py.

    Attributes:
        url: Where its doors are.
        key: An administrator's key.
    """

    process: subprocess.Popen
    url: str
    parts: dict
    key: str = KEY

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def peer_processes(folder, settings):
    """Gives what starts a server; each has a store and a key in the folder.

    Args:
        folder: Where they keep what they keep.
        settings: What they have in common.
    """
    started = []

    def start(pause_s=0.0, **others):
        number = len(started)
        asked = {
            "hf_server_port": 0,
            "hf_auto_discover_skills": False,
            "store_path": str(folder / f"peer{number}.sqlite3"),
            "p2p_key_path": str(folder / f"peer{number}.key"),
            "pause_s": pause_s,
            **settings,
            **others,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.upstreams.peer_server", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        watchdog = threading.Timer(START_S, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        watchdog.cancel()
        assert line, "the server did not come up"
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
