"""``%load_ext uia_lab``: registers the magics with their completion, and undoes it all again."""

from typing import Any

_MAGIC = "uia"
_MATCHER = "uia_lab"


def load_ipython_extension(ip: Any) -> None:
    """Registers ``%uia`` and ``%%uia``; a second call changes nothing.

    Args:
        ip: The shell.
    """
    if _MAGIC in ip.magics_manager.magics["cell"]:
        return
    from uia_lab.notebook.connect import destination
    from uia_lab.notebook.magic_completion import Names, completer
    from uia_lab.notebook.magics import UiaMagics

    ip.register_magics(UiaMagics(ip))
    if getattr(ip, "Completer", None) is not None:
        ip.Completer.custom_matchers.append(completer(Names()))
    print(f"uia_lab is ready: requests go to {destination()}. %uia help shows the commands.")  # noqa: T201


def unload_ipython_extension(ip: Any) -> None:
    """Takes the magics and their completion away again, and closes the default Lab.

    Args:
        ip: The shell.
    """
    if _MAGIC not in ip.magics_manager.magics["cell"]:
        return
    from uia_lab.notebook.connect import forget

    for kind in ("line", "cell"):
        ip.magics_manager.magics[kind].pop(_MAGIC, None)
    ip.magics_manager.registry.pop("UiaMagics", None)
    if getattr(ip, "Completer", None) is not None:
        matchers = ip.Completer.custom_matchers
        matchers[:] = [item for item in matchers if getattr(item, "matcher_identifier", None) != _MATCHER]
    forget()
