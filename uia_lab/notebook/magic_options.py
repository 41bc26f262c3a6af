"""The options of ``%uia`` and ``%%uia``, and the words that explain them."""

import shlex
from typing import Any

from IPython.core.magic_arguments import MagicArgumentParser

HELP = """\
%uia status                      the backends, live
%uia backends                    the backends as a table
%uia models                      the models that can be asked for
%uia use MODEL                   the model of the following %%uia cells; `%uia use default` undoes it
%uia explain [MODEL]             who would serve, and why not the others; -b and -p as below
%uia requests [N]                the latest N requests, 20 when absent
%uia connect [URL] [--token T]   another server; without URL, this kernel's own
%uia help                        this text

%%uia [options]                  the cell is the prompt; {python} in it is replaced by its value
  --model NAME      -m           the model
  --backend ID      -b           only this backend
  --prefer TYPES    -p           backend types to try first, best first: gpu,api
  --system TEXT     -s           an instruction before the prompt
  --temperature X   -t           0 for the likeliest text
  --max-tokens N    -n           length at most
  --session NAME                 requests of one session go to one backend (strategy prefix_affinity)
  --into VAR        -i           keeps the answer in a variable
  --no-stream                    shows the answer when it is whole

Tab completes commands, options, models and backends. Interrupting the cell cancels the request."""

COMMANDS = ("status", "backends", "models", "use", "explain", "requests", "connect", "help")


def parser() -> Any:
    """The options of both forms; a wrong one raises UsageError instead of leaving the process."""
    made = MagicArgumentParser("uia", usage="%uia help shows the commands and options")
    made.add_argument("words", nargs="*")
    for name in ("model", "backend", "prefer", "system", "into"):
        made.add_argument(f"--{name}", f"-{name[0]}")
    made.add_argument("--session")
    made.add_argument("--temperature", "-t", type=float)
    made.add_argument("--max-tokens", "-n", type=int)
    made.add_argument("--no-stream", action="store_true")
    made.add_argument("--token")
    return made


def option_names(made: Any) -> list[str]:
    """The long options of a parser."""
    return sorted(name for action in made._actions for name in action.option_strings if name.startswith("--"))  # noqa: SLF001 - argparse has no other way


def unquoted(value: str | None) -> str | None:
    """The word without the quotes that IPython's own splitting leaves in place."""
    return " ".join(shlex.split(value)) if value else value
