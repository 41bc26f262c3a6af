"""Servers with libp2p nodes in processes of their own, ended with the test that started them."""

import contextlib
import itertools
import json
import sys

from tests.upstreams.peer_server import KEY
from tests.upstreams.told_processes import told_processes


@contextlib.contextmanager
def peer_processes(folder, settings):
    """Gives what starts a server of tests/upstreams/peer_server.py, with its ``url``, ``parts`` and ``key``.

    Each has a store and a key of its own in the folder.

    Args:
        folder: Where they keep what they keep.
        settings: What they have in common.
    """
    numbers = itertools.count()
    with told_processes() as begin:

        def start(pause_s=0.0, **others):
            number = next(numbers)
            asked = {
                "hf_server_port": 0,
                "hf_auto_discover_skills": False,
                "store_path": str(folder / f"peer{number}.sqlite3"),
                "p2p_key_path": str(folder / f"peer{number}.key"),
                "pause_s": pause_s,
                **settings,
                **others,
            }
            server = begin(sys.executable, "-m", "tests.upstreams.peer_server", json.dumps(asked))
            server.key = KEY
            return server

        yield start
