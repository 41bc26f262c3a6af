"""``%load_ext uia_lab``: registers the magics, says where they lead, and undoes it all again."""

from typing import Any

_MAGIC = "uia"


def load_ipython_extension(ip: Any) -> None:
    """Registers ``%uia`` and ``%%uia``; a second call changes nothing.

    Args:
        ip: The shell.
    """
    if _MAGIC in ip.magics_manager.magics["cell"]:
        return
    from uia_lab.notebook.connect import destination
    from uia_lab.notebook.magics import UiaMagics

    ip.register_magics(UiaMagics(ip))
    print(f"uia_lab is ready: requests go to {destination()}. %uia help shows the commands.")  # noqa: T201


def unload_ipython_extension(ip: Any) -> None:
    """Takes the magics away again and closes the default Lab.

    Args:
        ip: The shell.
    """
    if _MAGIC not in ip.magics_manager.magics["cell"]:
        return
    from uia_lab.notebook.connect import forget

    for kind in ("line", "cell"):
        ip.magics_manager.magics[kind].pop(_MAGIC, None)
    ip.magics_manager.registry.pop("UiaMagics", None)
    forget()
