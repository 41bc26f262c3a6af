"""Pinned npm packages, each installed once into a folder of its own."""

import subprocess

from tests.node import NODE, NPM


def installed(folder, *packages):
    """Installs packages; gives the command line of each program in them by its name."""
    subprocess.run(
        [*NPM, "install", "--no-fund", "--no-audit", "--ignore-scripts", "--prefix", str(folder), *packages],
        check=True,
        capture_output=True,
        timeout=170,
    )
    programs = folder / "node_modules" / ".bin"
    return lambda name: [NODE, str(programs / name)]
