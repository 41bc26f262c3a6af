"""The node's Ed25519 key, in a file that nobody else can read."""

import os
from pathlib import Path

from uia_lab.domain.errors import BackendFailed

KEY_BYTES = 32


def load_or_make(path: Path | None) -> bytes:
    """The seed of the key, 32 bytes; made and kept with mode 0600 where there is none yet.

    Args:
        path: The file, PKCS #8 in PEM; None for a key that is not kept.

    Raises:
        BackendFailed: It cannot be read or written, others may read it, or it is no such key.
    """
    if path is None:
        return os.urandom(KEY_BYTES)
    try:
        try:
            return _read(path)
        except FileNotFoundError:
            return _make(path)
    except OSError as error:
        raise BackendFailed(
            f"the key of the p2p node in {path} cannot be used: {error.strerror}; set p2p_key_path to a file "
            "you can write"
        ) from error


def _read(path: Path) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if os.name == "posix" and mode & 0o077:
            raise BackendFailed(
                f"others can read the key of the p2p node in {path}, and could pose as it; "
                f"run chmod 600 {path}, or delete it for a new identity"
            )
        data = file.read(16_384)
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise BackendFailed(f"{path} holds no Ed25519 key in PEM; delete it for a new identity")
    return key.private_bytes_raw()


def _make(path: Path) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all, and never over another one: two nodes that start at once end with one key.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return _read(path)
    finally:
        draft.unlink(missing_ok=True)
    return key.private_bytes_raw()
