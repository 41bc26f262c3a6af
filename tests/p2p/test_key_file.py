"""The node's key: kept, readable by nobody else, and refused where that is not so."""

import os
import stat
import threading

import pytest

from uia_lab.domain.errors import BackendFailed
from uia_lab.p2p.key_file import load_or_make


def test_a_key_is_made_once_with_mode_0600(tmp_path):
    path = tmp_path / "deep" / "p2p.key"
    umask = os.umask(0)
    try:
        seed = load_or_make(path)
    finally:
        os.umask(umask)
    assert len(seed) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_make(path) == seed
    assert seed not in path.read_bytes()
    assert list(path.parent.iterdir()) == [path]


def test_many_that_start_at_once_have_one_key(tmp_path):
    path, seeds = tmp_path / "p2p.key", []
    threads = [threading.Thread(target=lambda: seeds.append(load_or_make(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seeds)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "p2p.key"
    load_or_make(path)
    path.chmod(0o640)
    with pytest.raises(BackendFailed, match="chmod 600"):
        load_or_make(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_refused_and_not_replaced(tmp_path, content):
    path = tmp_path / "p2p.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BackendFailed, match="no Ed25519 key"):
        load_or_make(path)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendFailed, match="p2p_key_path"):
        load_or_make(tmp_path / "file" / "p2p.key")


def test_without_a_path_each_key_is_another():
    assert load_or_make(None) != load_or_make(None)
