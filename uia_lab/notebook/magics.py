"""``%uia`` and ``%%uia``."""

import shlex
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import MagicArgumentParser
from IPython.display import display

from uia_lab.domain.errors import InferenceError, suggestion
from uia_lab.notebook.connect import connect, current
from uia_lab.notebook.expand import ExpansionError, expand
from uia_lab.notebook.transport import NotConnected

HELP = """\
%uia status                      the backends, live
%uia models                      the models that can be asked for
%uia use MODEL                   the model of the following %%uia cells; `%uia use default` undoes it
%uia connect [URL] [--token T]   another server; without URL, this kernel's own
%uia help                        this text

%%uia [options]                  the cell is the prompt; {python} in it is replaced by its value
  --model NAME      -m           the model
  --backend ID      -b           only this backend
  --system TEXT     -s           an instruction before the prompt
  --temperature X   -t           0 for the likeliest text
  --max-tokens N    -n           length at most
  --into VAR        -i           keeps the answer in a variable
  --no-stream                    shows the answer when it is whole"""


@magics_class
class UiaMagics(Magics):  # type: ignore[misc]  # IPython has no types
    """The magics of one shell.

    Attributes:
        model: The model of ``%%uia`` cells that name none.
    """

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.model: str | None = None
        self._parser = _parser()

    @line_cell_magic  # type: ignore[untyped-decorator]
    def uia(self, line: str, cell: str | None = None) -> None:
        """Asks for text (%%uia) or looks around (%uia help)."""
        try:
            args = self._parser.parse_argstring(line)
            if cell is None:
                self._command(args)
            else:
                self._ask(args, cell)
        except (InferenceError, NotConnected, ExpansionError) as error:
            raise UsageError(str(error)) from None
        except (ValueError, SystemExit) as error:  # an unbalanced quote, argparse's own way out
            raise UsageError(f"{error}; %uia help shows the commands") from None

    def _command(self, args: Any) -> None:
        words: list[str] = args.words or ["help"]
        command, rest = words[0], words[1:]
        commands = {
            "status": self._status,
            "models": self._models,
            "use": self._use,
            "connect": self._connect,
            "help": self._help,
        }
        if command not in commands:
            raise UsageError(f"%uia {command}: no such command.{suggestion(command, commands)}")
        commands[command](rest, args)

    def _status(self, _rest: list[str], _args: Any) -> None:
        display(current().status())

    def _models(self, _rest: list[str], _args: Any) -> None:
        chosen = self.model
        for name in current().models:
            print(f"{'*' if name == chosen else ' '} {name}")  # noqa: T201

    def _use(self, rest: list[str], _args: Any) -> None:
        if len(rest) != 1:
            raise UsageError("%uia use MODEL: give one model; %uia models lists them")
        model = _unquoted(rest[0]) or ""
        if model == "default":
            self.model = None
        else:
            known = current().models
            if known and model not in known:
                raise UsageError(f"no backend lists the model {model!r}.{suggestion(model, known)}")
            self.model = model
        print(f"%%uia cells use {self.model or 'the default model'}")  # noqa: T201

    def _connect(self, rest: list[str], args: Any) -> None:
        lab = connect(_unquoted(rest[0]) if rest else None, args.token)
        print(f"requests go to {lab.where}")  # noqa: T201

    def _help(self, _rest: list[str], _args: Any) -> None:
        print(HELP)  # noqa: T201

    def _ask(self, args: Any, cell: str) -> None:
        if args.words:
            raise UsageError(f"%%uia takes options only, not {' '.join(args.words)!r}; the prompt goes below")
        if args.into is not None and not args.into.isidentifier():
            raise UsageError(f"--into {args.into}: not a name for a variable")
        prompt = expand(cell, self.shell.user_ns).strip()
        if not prompt:
            raise UsageError("%%uia: the cell is empty; write the prompt below the first line")
        generation = current().generate(
            prompt,
            model=_unquoted(args.model) or self.model,
            backend=_unquoted(args.backend),
            system=expand(_unquoted(args.system) or "", self.shell.user_ns) or None,
            temperature=args.temperature,
            max_tokens=args.max_tokens,
            show=not args.no_stream,
        )
        if args.no_stream:
            display(generation)
        if args.into is not None:
            self.shell.user_ns[args.into] = generation


def _parser() -> Any:
    """The options of both forms; a wrong one raises UsageError instead of leaving the process."""
    parser = MagicArgumentParser("uia", usage="%%uia help shows the commands and options")
    parser.add_argument("words", nargs="*")
    for name in ("model", "backend", "system", "into"):
        parser.add_argument(f"--{name}", f"-{name[0]}")
    parser.add_argument("--temperature", "-t", type=float)
    parser.add_argument("--max-tokens", "-n", type=int)
    parser.add_argument("--no-stream", action="store_true")
    parser.add_argument("--token")
    return parser


def _unquoted(value: str | None) -> str | None:
    """The word without the quotes that IPython's own splitting leaves in place."""
    return " ".join(shlex.split(value)) if value else value
