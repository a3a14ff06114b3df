"""``jaxgrad explain``: diagnose the network that a file of the user's builds."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from jaxgrad._checks import message
from jaxgrad.cli._terminal import InputError, console

if TYPE_CHECKING:
    from jaxgrad.diagnosis._report import Level, Report

COMMAND = "jaxgrad explain"
CASE = "def make_case(): return loss_fn, params, x, y"
FUNCTION = "make_case"


def fail(expected: str, got: str, remedy: str) -> NoReturn:
    """End the command with a message of what was expected, what came and what to do."""
    raise InputError(message(COMMAND, expected, got, remedy)) from None


@click.command(short_help="Diagnose the gradients of a network.")
@click.argument("target", metavar="[MODULE:FUNCTION]", required=False)
@click.option("--demo", metavar="NAME", help="Diagnose a small network on real digits instead.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write the report as one HTML page.")
@click.option("--json", metavar="FILE", type=click.Path(path_type=Path), help="Write the report as JSON.")
@click.option("--check", is_flag=True, help="Exit with status 1 where the verdict is not healthy.")
@click.option(
    "--level",
    type=click.Choice(["quick", "standard", "full"]),
    default="standard",
    show_default=True,
    help="How much to measure.",
)
@click.option(
    "--confirm",
    metavar="STEPS",
    type=click.IntRange(min=0),
    default=0,
    help="Confirm the best remedy by training for some steps, with and without it.",
)
@click.option("--quiet", is_flag=True, help="Print the verdict alone, in one line.")
def explain(
    target: str | None,
    demo: str | None,
    html: Path | None,
    json: Path | None,
    check: bool,
    level: Level,
    confirm: int,
    quiet: bool,
) -> None:
    """Diagnose the gradients of a network, and measure what would repair them.

    FUNCTION is yours: called without arguments, it returns a tuple of the loss function, the parameters and the other
    arguments. MODULE is a module that can be imported from here, or a path to a Python file. FUNCTION is make_case
    where it is left out.

    \b
      # train.py
      def make_case():
          return loss_fn, params, x, y      # one batch

    \b
    Examples:
      jaxgrad explain train:make_case
      jaxgrad explain experiments/train.py --html report.html
      jaxgrad explain train --level full --json report.json
      jaxgrad explain train --confirm 100
      jaxgrad explain train --check --quiet    # in continuous integration
      jaxgrad explain --demo rnn

    \b
    Demos:
      healthy, deep-sigmoid, exploding-residual, rnn

    \b
    Exit status:
      0  the network was diagnosed (with --check: and is healthy)
      1  with --check: a fault was found
      2  bad usage, or an error in MODULE or in the loss
    """  # noqa: D301
    if (target is None) == (demo is None):
        got = "neither" if target is None else f"both {target!r} and --demo {demo}"
        fail(
            "either MODULE:FUNCTION or --demo NAME",
            got,
            f"try `{COMMAND} --demo rnn`, or see `{COMMAND} --help`.",
        )
    outputs = {option: path for option, path in (("--html", html), ("--json", json)) if path is not None}
    check_outputs(outputs)

    make_case = load_demo(demo) if demo is not None else load_function(target or "")
    case = call(make_case, demo or target or "")
    report = diagnose(*case, level=level, confirm_steps=confirm, verbose=not quiet)

    if quiet:
        click.echo(f"{report.verdict}: {report.summary}")
    else:
        console().print(report)
    for option, path in outputs.items():
        write(report, option, path)
        if not quiet:
            click.echo(f"Wrote {path}", err=True)
    if check and report.verdict != "healthy":
        raise click.exceptions.Exit(1)


# What comes in.


def load_demo(name: str) -> Callable[[], Any]:
    """Look a demo up by name."""
    from jaxgrad.data._demos import DEMOS

    if name not in DEMOS:
        remedy = nearest(name, DEMOS) or f"try `{COMMAND} --demo {next(iter(DEMOS))}`."
        fail(f"--demo to be one of {listing(DEMOS)}", repr(name), remedy)
    return DEMOS[name]


def load_function(target: str) -> Callable[[], Any]:
    """Import the module of ``MODULE:FUNCTION`` and look the function up."""
    module_name, function_name = split_target(target)
    if is_path(module_name):
        module = import_path(module_name)
    else:
        module = import_name(module_name)

    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name, value in vars(module).items() if defined_in(module, name, value)]
        remedy = nearest(function_name, names) or f"write `{CASE}` there, or name another function."
        fail(f"a function {function_name!r} in {module_name}", f"a module with {listing(names)}", remedy)
    if not callable(function):
        fail(f"{target} to be a function", f"an object of type {kind(function)}", f"wrap it: `{CASE}`.")
    return function


def split_target(target: str) -> tuple[str, str]:
    """Split ``MODULE:FUNCTION``; the colon of a Windows drive is not one."""
    module_name, colon, function_name = target.rpartition(":")
    if not colon or "/" in function_name or "\\" in function_name:
        module_name, function_name = target, FUNCTION
    if not module_name or not function_name.isidentifier() or module_name.endswith(":"):
        fail(
            "MODULE:FUNCTION",
            repr(target),
            f"write `{COMMAND} train:make_case` or `{COMMAND} path/to/train.py`.",
        )
    return module_name, function_name


def is_path(module_name: str) -> bool:
    """Tell ``path/to/file.py`` from ``package.module``."""
    return module_name.endswith((".py", ".ipynb")) or "/" in module_name or "\\" in module_name


def import_name(name: str) -> ModuleType:
    """Import a module by its dotted name, the current directory first."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        fail("a module name such as package.train", repr(name), f"for a file, give its path: `{COMMAND} ./{name}.py`.")
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    # Importing the parents one by one tells a module that is not there from one that fails to import another.
    for depth, part in enumerate(parts):
        parent, child = ".".join(parts[:depth]), ".".join(parts[: depth + 1])
        folders = list(getattr(sys.modules[parent], "__path__", [])) if parent else [str(Path.cwd())]
        if child not in sys.modules and not (folders and importlib.util.find_spec(child)):
            names = [module.name for module in pkgutil.iter_modules(folders)] if folders else []
            close = nearest(part, names, prefix=f"{parent}." if parent else "")
            remedy = close or "run it from your project's directory, or give a path: `path/to/file.py:make_case`."
            where = f"the package {parent}" if parent else Path.cwd()
            fail(f"a module {child!r}", f"no such module; {where} holds {listing(names)}", remedy)
        run(lambda child=child: importlib.import_module(child), f"importing {name}")
    return sys.modules[name]


def import_path(name: str) -> ModuleType:
    """Import a Python file, as the module that it is where it lies in a package."""
    path = Path(name).expanduser()
    if path.suffix != ".py" and path.with_name(f"{path.name}.py").is_file():
        path = path.with_name(f"{path.name}.py")
    if not path.is_file() or path.suffix != ".py":
        refuse_path(path)
    path = path.resolve()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file() and root != root.parent:
        root, parts = root.parent, [root.name, *parts]
    sys.path[:0] = [str(root), str(Path.cwd())]
    importlib.invalidate_caches()
    return run(lambda: execute(path, parts), f"importing {name}")


def refuse_path(path: Path) -> NoReturn:
    """Say what lies at a path that is not a Python file, and what lies beside it."""
    got = "a folder" if path.is_dir() else f"a {path.suffix} file" if path.is_file() else "no such file"
    folder = path if path.is_dir() else path.parent
    files = sorted(file.name for file in folder.glob("*.py"))
    beside = f"; {folder.resolve()} holds {listing(files)}" if folder.is_dir() else f", and no folder {folder}"
    close = nearest(path.name, files, prefix="" if folder == Path() else f"{folder}/")
    fail(f"a Python file at {path}", got + beside, close or f"give a path: `{COMMAND} path/to/train.py:make_case`.")


def execute(path: Path, parts: list[str]) -> ModuleType:
    """Run a file as the module ``parts``, leaving a module of that name from elsewhere alone."""
    *parents, stem = parts
    if parents:
        importlib.import_module(".".join(parents))
    name = ".".join(parents if parents and stem == "__init__" else parts)
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None:
        name = f"{name}_case"
    loader = SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def call(make_case: Callable[[], Any], name: str) -> tuple[Any, ...]:
    """Call the user's function and check what it returns."""
    title = f"{name}()" if ":" in name else getattr(make_case, "__name__", name) + "()"
    if mismatch(make_case):
        fail(
            "a function that is called without arguments",
            f"{title[:-2]}{inspect.signature(make_case)}",
            f"give it defaults; or, where it is the loss itself, name a function that returns it: `{CASE}`.",
        )
    case = run(make_case, f"calling {title}")
    expected = f"{title} to return a tuple (loss_fn, params, *args)"
    if not isinstance(case, tuple):
        fail(expected, kind(case), f"return one, the loss function first: `{CASE}`.")
    if len(case) < 2:
        fail(expected, f"a tuple of length {len(case)}", f"return the parameters too: `{CASE}`.")
    if not callable(case[0]):
        fail(expected, f"a tuple that starts with {kind(case[0])}", "put the loss function first, then the parameters.")
    problem = mismatch(case[0], *case[1:])
    if problem:
        got = f"{len(case) - 1} of them for {getattr(case[0], '__name__', 'loss_fn')}{inspect.signature(case[0])}"
        fail(f"{expected} with every argument of loss_fn", f"{got}: {problem}", f"return them in order: `{CASE}`.")
    return case


def mismatch(function: Callable[..., Any], *args: Any) -> str | None:
    """Say why a function cannot be called with these arguments, if it has a signature that says so."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # A builtin.
        return None
    try:
        signature.bind(*args)
    except TypeError as error:
        return str(error)
    return None


# What goes out.


def diagnose(*case: Any, level: Level, confirm_steps: int, verbose: bool) -> Report:
    """Run :func:`jaxgrad.explain`, and say what was wrong where it refuses."""
    import jaxgrad

    options = {"level": level, "confirm_steps": confirm_steps, "verbose": verbose}
    return run(lambda: jaxgrad.explain(*case, **options), "running the loss")


def check_outputs(outputs: dict[str, Path]) -> None:
    """Refuse a path that cannot be written, before the long work."""
    for option, path in outputs.items():
        expected = f"{option} to be a file that can be written"
        if path.is_dir():
            fail(expected, f"a folder, {path}", f"name a file in it: `{option} {path / ('report.' + option[2:])}`.")
        if not path.parent.is_dir():
            problem = "which is not a folder" if path.parent.exists() else "which does not exist"
            fail(
                expected,
                f"{path} in {path.parent}, {problem}",
                f"create the folder (`mkdir -p {path.parent}`), or name another.",
            )
        existed = path.exists()
        try:
            path.open("ab").close()
        except OSError as error:
            fail(expected, f"{path}: {error.strerror}", "name a file in a folder that you may write to.")
        if not existed:
            path.unlink()
    if len(outputs) == 2 and len({path.resolve() for path in outputs.values()}) == 1:
        fail("--html and --json to be two files", f"{outputs['--html']} for both", "name two files.")


def write(report: Report, option: str, path: Path) -> None:
    """Write one file of the report."""
    try:
        report.to_html(path) if option == "--html" else report.to_json(path)
    except OSError as error:
        fail(
            f"to write {option} {path}",
            error.strerror or str(error),
            "see that the disk has room, or name another file.",
        )
    except ImportError as error:
        fail(f"what {option} needs to be installed", str(error), install_hint(error))


# What goes wrong.


def run(function: Callable[[], Any], doing: str) -> Any:
    """Call code that may hold the user's, and turn an error into a message instead of a traceback."""
    try:
        return function()
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
    except (Exception, SystemExit) as error:
        frames = user_frames(error)
        if isinstance(error, (TypeError, ValueError)) and "\nTo fix it:" in str(error):
            aux = (
                ["From the command line, make it `lambda *args: loss_fn(*args)[0]`."] if "has_aux" in str(error) else []
            )
            raise InputError("\n".join([str(error), *aux, *traceback.format_list(frames[-1:])]).rstrip()) from None
        if not frames and not isinstance(error, (SyntaxError, ImportError, SystemExit)):
            traceback.print_exception(error)
            raise InputError(f"{COMMAND}: an error inside jaxgrad itself, while {doing}. Please report it.") from None
        text = "".join(traceback.format_exception_only(error)).partition("\n-----")[0].rstrip()  # Not jax's note.
        where = "".join(traceback.format_list(frames[-3:])).rstrip("\n")
        shown = "\n".join(part for part in (where, text) if part)
        raise InputError(
            f"{message(COMMAND, f'no error while {doing}', type(error).__name__, hint(error))}\n\n{shown}"
        ) from None


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Keep the frames of an error that lie in the user's own files."""
    not_theirs = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))

    def is_theirs(path: Path) -> bool:
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        return path.is_file() and not installed and not any(path.is_relative_to(folder) for folder in not_theirs)

    return [frame for frame in traceback.extract_tb(error.__traceback__) if is_theirs(Path(frame.filename))]


def hint(error: BaseException) -> str:
    """Say what to do about an error in the user's code."""
    if isinstance(error, ImportError):
        return install_hint(error)
    if isinstance(error, SystemExit):
        return 'keep what runs a script, such as reading its arguments, under `if __name__ == "__main__":`.'
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return "give a smaller batch, or try --level quick."
    return "see the lines below; the error is raised there."


def install_hint(error: ImportError) -> str:
    """Say how to get a module that is missing."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            return f"correct the name, or install it: `{sys.executable} -m pip install {package}`."
    return "see that this name exists in the version installed."


# Words.


def nearest(name: str, names: Iterable[str], *, prefix: str = "") -> str | None:
    """Ask about the name that is closest, if one is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {prefix}{close[0]}?" if close else None


def listing(names: Iterable[str], limit: int = 12) -> str:
    """List names in one line."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return (f"{shown} and {len(names) - limit} more" if len(names) > limit else shown) or "nothing"


def defined_in(module: ModuleType, name: str, value: Any) -> bool:
    """Tell a function that the module defines from one it imports."""
    return callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__


def kind(value: Any) -> str:
    """Name the type of a value."""
    return "None" if value is None else f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
