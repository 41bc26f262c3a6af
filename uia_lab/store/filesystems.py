"""What kind of file system a file is on."""

from collections.abc import Iterable
from pathlib import Path

import psutil

_NETWORK = frozenset(
    {
        "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs",
        "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "webdav",
    }
)  # fmt: skip


def network_file_system(path: Path) -> str | None:
    """Name of the network file system a path is on; None for a local one, or where nobody can tell."""
    return of_mounts(path, ((item.mountpoint, item.fstype) for item in psutil.disk_partitions(all=True)))


def of_mounts(path: Path, mounts: Iterable[tuple[str, str]]) -> str | None:
    """The same, from a list of mount points and types."""
    real = path.resolve()
    best, kind = -1, ""
    for point, fstype in mounts:
        depth = len(Path(point).parts)
        if depth >= best and real.is_relative_to(point):
            best, kind = depth, fstype.lower()
    return kind if kind in _NETWORK else None
