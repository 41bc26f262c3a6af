import copy
import logging
import pickle

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

from uia_lab.access.secrets import Secret, Secrets

VALUE = "sk-very-secret-0123456789"


class Ring(KeyringBackend):
    """A real backend of the keyring library that keeps its passwords in memory."""

    priority = 1

    def __init__(self, passwords, locked=False):
        super().__init__()
        self.passwords, self.locked = passwords, locked

    def get_password(self, service, username):
        if self.locked:
            raise KeyringLocked(f"locked: {VALUE}")
        return self.passwords.get((service, username))

    def set_password(self, service, username, password):
        self.passwords[service, username] = password

    def delete_password(self, service, username):
        del self.passwords[service, username]


@pytest.fixture
def ring():
    before = keyring.get_keyring()

    def use(passwords=(), **options):
        keyring.set_keyring(Ring(dict(passwords), **options))

    use()
    yield use
    keyring.set_keyring(before)


def test_where_a_secret_is_looked_for_and_in_which_order(ring, tmp_path):
    file = tmp_path / "key"
    file.write_text("of-the-file\n")
    file.chmod(0o600)
    ring({("uia_lab", "A"): "of-the-ring", ("uia_lab", "B"): "of-the-ring", ("other", "C"): "of-another"})
    secrets = Secrets({"A": str(file)}, {"A": "of-the-environment", "D": " of-the-environment ", "E": " "})
    assert secrets.find("A").reveal() == "of-the-file"
    assert secrets.find("B").reveal() == "of-the-ring"
    assert secrets.find("C") is None
    assert secrets.find("D").reveal() == "of-the-environment"
    assert secrets.find("E") is None


def test_what_cannot_be_read_is_said_without_it(ring, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    ring(locked=True)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe" + VALUE.encode())
    secrets = Secrets({"A": str(tmp_path / "nowhere"), "B": str(binary)}, {})
    assert [secrets.find(name) for name in ("A", "B", "C")] == [None] * 3
    assert "A cannot be read" in caplog.text
    assert "can be read by others" in caplog.text
    assert "KeyringLocked" in caplog.text
    assert VALUE not in caplog.text


def test_a_secret_has_no_other_form_than_its_own():
    secret = Secret(VALUE)
    assert secret.reveal() == VALUE
    for text in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>20}",
        f"{[secret]}",
        str({"k": secret}),
    ):
        assert VALUE not in text
    for write in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            write(secret)
    assert not hasattr(secret, "__dict__")
