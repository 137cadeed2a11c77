"""Options, output and exit status of every command. This module imports nothing slow, so that --help is fast."""

import contextlib
import dataclasses
import errno
import functools
import importlib.metadata
import inspect
import io
import itertools
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import docstring_parser
import tyro
from tyro.conf import Positional

from sgan.addresses import masked
from sgan.checks import WAITED, ConfigError

Made = TypeVar("Made")
BAD, INTERRUPTED = 2, 130  # Exit statuses: after a ConfigError or a disk error, and after Ctrl-C or SIGTERM
StoreAddress = Annotated[Positional[str], tyro.conf.arg(metavar="STORE")]
ROOT = Path(__file__).resolve().parents[1]
WIDE = "10000"  # Columns of a terminal so wide that tyro wraps no message


def parse(make: Callable[[], Made], asked: dict[str, str] | None = None) -> Made:
    """Parse the command line with `make`, a call of tyro, and return its result. ConfigError, in one line, where the
    command line is wrong. `asked`: an option that people try -> advice about the option that exists."""
    if "--version" in sys.argv[1:]:
        print(f"sgan {importlib.metadata.version('sgan-sweeps')}")
        raise SystemExit(0)
    for before, word in itertools.pairwise(sys.argv):
        if not word or (word.startswith("--") and word.endswith("=")):
            named = word.removesuffix("=") or (before if before.startswith("--") else "an argument")
            raise ConfigError(
                f"{named} is empty, '' (is a variable of the script unset?); give it a value, or leave it out"
            )
    if {"-h", "--help"} & set(sys.argv):
        return make()
    told, columns = io.StringIO(), os.environ.get("COLUMNS", "")
    os.environ["COLUMNS"] = WIDE
    try:
        with contextlib.redirect_stderr(told):
            return make()
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(_in_one_line(told.getvalue(), asked or {})) from end
    finally:
        os.environ["COLUMNS"] = columns  # an empty value counts as unset


def python(script: str = "") -> str:
    """This interpreter, and a script of this checkout, as the first words of a printed command. Started in the
    checkout, they are paths from there."""
    path, here = os.path.relpath(sys.executable), Path.cwd() == ROOT
    words = [path if here and not path.startswith("..") else sys.executable]
    return shlex.join(words + [script if here else str(ROOT / script)] * bool(script))


def later(function: Callable[..., Made]) -> Callable[..., Callable[[], Made]]:
    """Return a function with the same options that only prepares the call: `parse` ends before the command begins."""

    @functools.wraps(function)
    def call(*values: Any, **options: Any) -> Callable[[], Made]:
        return functools.partial(function, *values, **options)

    return call


def _in_one_line(box: str, asked: dict[str, str]) -> str:
    """Return the first message in tyro's error box as one line, with advice."""
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    is_rule = re.compile("[─-]+").fullmatch
    if "╭" not in box and is_rule("".join(lines[1:2])):  # tyro printed a title and a rule, and no box
        lines = lines[2:]
    message = list(itertools.takewhile(lambda line: not is_rule(line), lines))
    option = ""  # the last option before the current word
    for word in sys.argv[1:]:
        option = word.partition("=")[0].replace("_", "-") if word.startswith("--") else option
        if word in re.split(r"[\s,]+", " ".join(message)) and option in asked and "Unrecognized" in box:
            return f"{word} is not known here: {asked[option]}"
    near = dict.fromkeys(re.findall(r"--(?!help)[a-z][a-z-]*", " ".join(lines[len(message) :])))
    perhaps = f"; perhaps {' or '.join(list(near)[:3])}" if "Perhaps" in box and near else ""
    text = " ".join(message).removeprefix("Error parsing ").removesuffix(".")
    text = text.partition(": no type matching ")[0].partition(" Final error:")[0]
    return f"{text}{perhaps}; --help shows all options"


def grouped(kind: type[Made], prog: str, default: Made) -> Made:
    """Parse the command line with tyro. --help shows each group of options in its own box. `kind`: a dataclass that
    inherits from groups, the dataclasses without a base. `default`: the options' default values."""
    fields: list[Any] = []
    for each in filter(lambda each: each.__bases__ == (object,), kind.__mro__):
        told = {of.arg_name: (of.description or "").split() for of in docstring_parser.parse_from_object(each).params}
        options: list[Any] = []
        for name, field in each.__dataclass_fields__.items():
            text = tyro.conf.arg(help=" ".join(told.get(name, ())) or None)  # tyro's own keeps the lines of the source
            options.append((name, Annotated[field.type, text], dataclasses.field(default=getattr(default, name))))
        group = dataclasses.make_dataclass(each.__name__, options, namespace={"__doc__": each.__doc__})
        fields.append((each.__name__.lower(), group, dataclasses.field(default_factory=group)))
    nested = dataclasses.make_dataclass(kind.__name__, fields)
    description = inspect.cleandoc(kind.__doc__ or "")
    made = tyro.cli(nested, prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,))
    return kind(**{name: value for group in vars(made).values() for name, value in vars(group).items()})


class Output:
    """A text stream whose errors never end a command: a closed pipe, a full disk, a character outside its encoding, or
    a signal's handler that prints while a write waits (RuntimeError)."""

    def __init__(self, stream: Any):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, RuntimeError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.stream.flush()

    def close(self) -> None:
        """Flush the buffer; text that cannot be written is dropped."""
        try:
            self.stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def status(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status. ConfigError, OSError, Ctrl-C and SIGTERM print one line each."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    outputs = [Output(stream) for stream in (sys.stdout, sys.stderr) if stream is not None]
    if len(outputs) == 2:
        sys.stdout, sys.stderr = outputs  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return command() or 0
    except ConfigError as error:
        print(masked(f"error: {error}"), file=sys.stderr)
    except OSError as error:
        remedies = dict.fromkeys(WAITED, "make room, or check the disk")
        remedies |= dict.fromkeys((errno.EISDIR, errno.ENOTDIR), "delete it")
        remedies |= dict.fromkeys((errno.EPERM, errno.EACCES), "get the rights to use it")
        remedy = f"; {remedies[error.errno]}, then run the same command" if error.errno in remedies else ""
        print(masked(f"error: {error}{remedy}"), file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on where it was.")
        return INTERRUPTED
    finally:
        for output in outputs:
            output.close()
    return BAD


def run(main: Callable[[Made], None], options: type[Made], prog: str) -> NoReturn:
    """Run `main` with the options of the command line, a dataclass, as a command; end the process with its status."""
    sys.exit(status(lambda: main(parse(lambda: tyro.cli(options, prog=prog)))))
