# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.2.9"]
# ///
"""The checks a change must pass. `nox -l` lists them, `nox -s tests -- -k cuts` passes arguments on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"

ROOT = Path(__file__).parent
SITE = ROOT / "docs/_build/html"
CHINESE = SITE / "zh-cn"
PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = [
    line.removeprefix("Programming Language :: Python :: ")
    for line in PROJECT["project"]["classifiers"]
    if line.startswith("Programming Language :: Python :: 3.")
]
# Test on the interpreters present: a missing one is skipped (an error where CI is set), not fetched by uv.
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install jaxgrad in place beside dependency groups, with any installer (old pips know no `--group`)."""
    session.install(f"-e.{extras}", *nox.project.dependency_groups(PROJECT, *groups))


def build_site(session: nox.Session) -> None:
    """Build the documentation in English, and in Chinese in a folder of it; what was executed once serves both."""
    options = ("--keep-going", "--fresh-env", "-n", "-W")
    # The pages run many small programs once, the same ones often: compiling them is most of the time.
    quick = {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(SITE.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    session.run("sphinx-build", *options, "-d", "docs/_build/doctrees", "docs", str(SITE), env=quick)
    chinese = ("-d", "docs/_build/zh-cn", "-D", "language=zh_CN")
    session.run("sphinx-build", *options, *chinese, "docs", str(CHINESE), env=quick)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on every Python present; arguments go to pytest."""
    install(session, "test")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session(name="tests-heavy", default=False)
def tests_heavy(session: nox.Session) -> None:
    """Run the tests that take minutes."""
    install(session, "test")
    session.run("pytest", "-m", "heavy", *session.posargs)


@nox.session(name="tests-torch", default=False)
def tests_torch(session: nox.Session) -> None:
    """Run the tests that compare with PyTorch, which are skipped where it is missing."""
    install(session, "test", "torch")
    session.run("pytest", "-n", "auto", "-k", "torch", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting, then the files that are not Python, with the hooks pre-commit runs."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    # Ruff's own hooks mend what they find: good before a commit, not in a check.
    session.run("pre-commit", "run", "--all-files", env={"SKIP": "ruff-check,ruff-format"})


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the types inside the package, and that every public name has one."""
    # Not in place: --verifytypes looks for py.typed in an installed package.
    session.install(".", *nox.project.dependency_groups(PROJECT, "typecheck"))
    session.run("pyright", *session.posargs)
    session.run("pyright", "--ignoreexternal", "--verifytypes", "jaxgrad")


@nox.session
def doctest(session: nox.Session) -> None:
    """Run the examples in the docstrings."""
    install(session, "test")
    session.run("pytest", "--doctest-modules", "jaxgrad", *session.posargs)


@nox.session
def papers(session: nox.Session) -> None:
    """Check the form of every record of the papers index, and its exports; `-- --write` mends both."""
    install(session, "papers")
    session.run("python", "papers/check.py", *session.posargs)


@nox.session(name="papers-ids", default=False)
def papers_ids(session: nox.Session) -> None:
    """Ask arXiv and doi.org for the title behind every identifier of the index; needs the network."""
    install(session)
    session.run("python", "papers/verify_ids.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Serve the documentation and rebuild it on every change; with `--non-interactive`, check and build it once."""
    if session.interactive:
        install(session, "serve", extras="[docs]")
        options = ("-n", "-W", "-d", "docs/_build/doctrees", "docs", str(SITE))
        session.run("sphinx-autobuild", "--watch", "jaxgrad", "--watch", "papers", "--open-browser", *options)
    else:
        install(session, extras="[docs]")
        session.run("python", "docs/translations.py")
        build_site(session)


@nox.session(default=False)
def translations(session: nox.Session) -> None:
    """Check that the Chinese of the concept pages is whole; `-- --update` takes over what changed in the English."""
    install(session, extras="[docs]")
    session.run("python", "docs/translations.py", *session.posargs)


@nox.session(default=False)
def site(session: nox.Session) -> None:
    """Try the built documentation in Chromium; it is built if there is none, unless `--no-build` is given."""
    arguments = [argument for argument in session.posargs if argument != "--no-build"]
    if not (CHINESE / "index.html").is_file() and "--no-build" not in session.posargs:
        install(session, extras="[docs]")
        build_site(session)
    session.install(*nox.project.dependency_groups(PROJECT, "site"))
    # These tests need nothing of the package, so nothing of the conftest.py above them either.
    session.run("pytest", "--confcutdir=tests/site", "tests/site", *arguments)


@nox.session(python="3.11", default=False)
def minimums(session: nox.Session) -> None:
    """Run the tests with the oldest dependencies that pyproject.toml allows."""
    session.install("uv")  # Only uv resolves downwards.
    python = Path(session.bin) / "python"
    lowest = ("--resolution", "lowest-direct", "-e.", "--group", "test")
    session.run("uv", "pip", "install", "--python", str(python), *lowest)
    session.run("python", "-c", "import jax, optax; print('jax', jax.__version__, 'optax', optax.__version__)")
    session.run("pytest", *(session.posargs or ("-n", "auto")))


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the sdist and the wheel, and try the wheel in an environment that has nothing else."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build", "twine")
    session.run("python", "-m", "build", "--outdir", str(dist))
    artifacts = sorted(str(path) for path in dist.iterdir())
    session.run("twine", "check", "--strict", *artifacts)
    (wheel,) = dist.glob("*.whl")

    elsewhere = Path(session.create_tmp()).resolve()  # not the checkout: the wheel must carry its own data
    fresh = elsewhere / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    session.run("python", "-m", "venv", str(fresh))
    programs = fresh / ("Scripts" if sys.platform == "win32" else "bin")
    session.run(str(programs / "python"), "-m", "pip", "install", "--quiet", str(wheel), external=True)
    session.cd(elsewhere)
    session.run(str(programs / "jaxgrad"), "--version", external=True)
    session.run(str(programs / "jaxgrad"), "papers", "search", "orthogonal", external=True)
    session.run(str(programs / "jaxgrad"), "explain", "--demo", "healthy", "--check", external=True)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run every script of benchmarks/, or those named in the arguments."""
    install(session, "test", "bench")
    scripts = session.posargs or sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/*.py"))
    if not scripts:
        session.skip("benchmarks/ holds no script yet")
    for script in scripts:
        session.run("python", script)


if __name__ == "__main__":
    nox.main()
