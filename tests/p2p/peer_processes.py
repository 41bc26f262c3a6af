"""Nodes in processes of their own, ended with the test that started them."""

import contextlib
import json
import sys

from tests.upstreams.told_processes import told_processes


@contextlib.contextmanager
def peer_processes(network, prefix=()):
    """Gives what starts a node of tests/p2p/peer_node.py, with its ``addresses`` and ``peer_id``.

    Args:
        network: Its name.
        prefix: Words in front of the command, such as those that enter a network namespace.
    """
    with told_processes() as begin:

        def start(prefix=prefix, **settings):
            asked = {
                "mode": "open",
                "network": network,
                "enable_mdns": False,
                "discovery_interval": 1.0,
                **settings,
            }
            return begin(*prefix, sys.executable, "-m", "tests.p2p.peer_node", json.dumps(asked))

        yield start
