"""``%uia`` and ``%%uia``."""

from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.display import display

from uia_lab.domain.errors import InferenceError, suggestion
from uia_lab.notebook.connect import connect, current
from uia_lab.notebook.expand import ExpansionError, expand
from uia_lab.notebook.magic_options import COMMANDS, HELP, parser, unquoted
from uia_lab.notebook.transport import NotConnected

LISTED = 20


@magics_class
class UiaMagics(Magics):  # type: ignore[misc]  # IPython has no types
    """The magics of one shell.

    Attributes:
        model: The model of ``%%uia`` cells that name none.
    """

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.model: str | None = None
        self._parser = parser()

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
        if command not in COMMANDS:
            raise UsageError(f"%uia {command}: no such command.{suggestion(command, COMMANDS)}")
        getattr(self, f"_{command}")(rest, args)

    def _status(self, _rest: list[str], _args: Any) -> None:
        display(current().status())

    def _backends(self, _rest: list[str], _args: Any) -> None:
        display(current().backends)

    def _explain(self, rest: list[str], args: Any) -> None:
        if len(rest) > 1:
            raise UsageError("%uia explain [MODEL]: give one model at most")
        model = unquoted(rest[0] if rest else args.model) or self.model
        display(current().explain(model=model, backend=unquoted(args.backend), prefer=_listed(args.prefer)))

    def _requests(self, rest: list[str], _args: Any) -> None:
        if len(rest) > 1 or (rest and not rest[0].isdecimal()):
            raise UsageError("%uia requests [N]: give one number, or none")
        display(current().requests(limit=int(rest[0]) if rest else LISTED))

    def _models(self, _rest: list[str], _args: Any) -> None:
        chosen = self.model
        for name in current().models:
            print(f"{'*' if name == chosen else ' '} {name}")  # noqa: T201

    def _use(self, rest: list[str], _args: Any) -> None:
        if len(rest) != 1:
            raise UsageError("%uia use MODEL: give one model; %uia models lists them")
        model = unquoted(rest[0]) or ""
        if model == "default":
            self.model = None
        else:
            known = current().models
            if known and model not in known:
                raise UsageError(f"no backend lists the model {model!r}.{suggestion(model, known)}")
            self.model = model
        print(f"%%uia cells use {self.model or 'the default model'}")  # noqa: T201

    def _connect(self, rest: list[str], args: Any) -> None:
        lab = connect(unquoted(rest[0]) if rest else None, args.token)
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
            model=unquoted(args.model) or self.model,
            backend=unquoted(args.backend),
            prefer=_listed(args.prefer),
            session=unquoted(args.session),
            system=expand(unquoted(args.system) or "", self.shell.user_ns) or None,
            temperature=args.temperature,
            max_tokens=args.max_tokens,
            show=not args.no_stream,
        )
        if args.no_stream:
            display(generation)
        if args.into is not None:
            self.shell.user_ns[args.into] = generation


def _listed(value: str | None) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in (unquoted(value) or "").split(",") if word.strip()]
