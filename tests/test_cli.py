"""The command line: what it prints, where it writes, how it ends, and what it says to each mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import jaxgrad
from jaxgrad.cli import main
from jaxgrad.data._demos import DEMOS

CASE = """
    import jax.numpy as jnp

    def loss_fn(params, x):
        return jnp.mean(jnp.square(jnp.tanh(x @ params["first"]) @ params["second"]))

    def make_case():
        params = {"first": jnp.eye(4), "second": jnp.eye(4)}
        return loss_fn, params, jnp.ones((8, 4))
"""


class FakeReport(SimpleNamespace):
    """What the command line asks of a report."""

    def __str__(self):
        return f"the page of a report: {self.verdict}"

    def to_html(self, path):
        Path(path).write_text("<!doctype html>", encoding="utf-8")

    def to_json(self, path):
        Path(path).write_text(json.dumps({"verdict": self.verdict}), encoding="utf-8")


class Calls(list):
    """What `explain` was called with, and the verdict it gives."""

    verdict = "vanishing"


@pytest.fixture
def calls(monkeypatch):
    """Stand in for the engine, which has its own tests."""
    recorded = Calls()

    def explain(*case, **options):
        recorded.append((case, options))
        return FakeReport(verdict=recorded.verdict, summary="The gradient vanishes.")

    monkeypatch.setattr(jaxgrad, "explain", explain, raising=False)
    return recorded


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's directory, left without a trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None) or ""
        paths = [file, *map(str, getattr(sys.modules[name], "__path__", []))]
        if any(path.startswith(str(tmp_path)) for path in paths):
            del sys.modules[name]


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(textwrap.dedent(text), encoding="utf-8")


def invoke(*arguments: str):
    return CliRunner().invoke(main, ["explain", *arguments])


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def refused(result, *patterns: str) -> None:
    """The command ended with status 2 and a message, not a traceback, that holds the patterns in this order."""
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr
    assert re.search(".*".join(patterns), words(result.stderr)), result.stderr


class TestRuns:
    def test_module_and_function(self, project, calls):
        write("train.py", CASE)
        result = invoke("train:make_case")
        assert result.exit_code == 0, result.stderr
        assert "the page of a report: vanishing" in result.stdout
        (loss_fn, params, x), options = calls[0]
        assert loss_fn(params, x).shape == ()
        assert options == {"level": "standard", "confirm_steps": 0, "verbose": True}

    @pytest.mark.parametrize("target", ["train", "train.py", "./train.py", "train.py:make_case", "./train:make_case"])
    def test_spellings(self, project, calls, target):
        write("train.py", CASE)
        assert invoke(target).exit_code == 0
        assert len(calls) == 1

    def test_absolute_path_with_its_neighbour(self, project, calls, monkeypatch):
        write("experiments/net.py", CASE)
        write("experiments/my-run.py", "from net import make_case")
        monkeypatch.chdir("/")
        assert invoke(f"{project}/experiments/my-run.py:make_case").exit_code == 0

    @pytest.mark.parametrize("target", ["study.net.train", "study/net/train.py", "study/net/train.py:make_case"])
    def test_in_a_package_with_relative_imports(self, project, calls, target):
        write("study/__init__.py", "")
        write("study/net/__init__.py", "")
        write("study/net/case.py", CASE)
        write("study/net/train.py", "from .case import make_case")
        result = invoke(target)
        assert result.exit_code == 0, result.stderr

    def test_file_named_like_a_known_module(self, project, calls):
        write("json.py", CASE)
        assert invoke("./json.py").exit_code == 0
        assert sys.modules["json"] is json

    def test_options_reach_explain(self, project, calls):
        write("train.py", CASE)
        assert invoke("train", "--level", "full", "--confirm", "50", "--quiet").exit_code == 0
        assert calls[0][1] == {"level": "full", "confirm_steps": 50, "verbose": False}

    @pytest.mark.parametrize("name", DEMOS)
    def test_demo(self, calls, name):
        assert invoke("--demo", name).exit_code == 0
        (loss_fn, _, x, labels), _ = calls[0]
        assert callable(loss_fn)
        assert len(x) == len(labels)

    def test_quiet_prints_one_line(self, calls):
        result = invoke("--demo", "rnn", "--quiet")
        assert result.stdout == "vanishing: The gradient vanishes.\n"
        assert not result.stderr

    @pytest.mark.parametrize(
        ("verdict", "status"), [("healthy", 0), ("vanishing", 1), ("nonfinite", 1), ("ill-conditioned", 1)]
    )
    def test_check(self, calls, verdict, status):
        calls.verdict = verdict
        assert invoke("--demo", "rnn", "--check").exit_code == status
        assert invoke("--demo", "rnn").exit_code == 0

    def test_files(self, project, calls):
        result = invoke("--demo", "rnn", "--html", "report.html", "--json", "report.json", "--check")
        assert result.exit_code == 1
        assert (project / "report.html").read_text().startswith("<!doctype html>")
        assert json.loads((project / "report.json").read_text())["verdict"] == "vanishing"
        assert "Wrote report.html" in result.stderr
        assert "Wrote report.json" in result.stderr

    def test_piped_output_has_no_escapes(self, calls):
        assert "\x1b" not in invoke("--demo", "rnn").output


class TestHelp:
    def test_examples_and_every_demo(self):
        result = invoke("--help")
        assert result.exit_code == 0
        assert "jaxgrad explain train:make_case" in result.stdout
        assert all(name in words(result.stdout) for name in DEMOS)
        assert "Exit status" in result.stdout

    def test_group(self):
        result = CliRunner().invoke(main, ["--help"])
        assert result.exit_code == 0
        assert "jaxgrad explain --demo deep-sigmoid" in result.stdout

    def test_version(self):
        result = CliRunner().invoke(main, ["--version"])
        assert result.exit_code == 0
        assert result.stdout.startswith(f"jaxgrad {jaxgrad.__version__} (jax ")

    def test_lines_fit_a_terminal(self):
        assert max(map(len, invoke("--help").stdout.splitlines())) <= 80


class TestUsage:
    def test_neither_module_nor_demo(self, calls):
        refused(
            invoke(), "jaxgrad explain: expected either MODULE:FUNCTION or --demo", "got neither", "To fix it", "--help"
        )

    def test_both_module_and_demo(self, calls):
        refused(invoke("train", "--demo", "rnn"), "expected either", "got both 'train' and --demo rnn", "To fix it")

    def test_unknown_level(self, calls):
        refused(invoke("--demo", "rnn", "--level", "deep"), "--level", "'deep'", "quick", "standard", "full")

    def test_unknown_option(self, calls):
        refused(invoke("--demo", "rnn", "--htlm", "x"), "No such option", "--htlm", "--html")

    def test_unknown_demo(self, calls):
        refused(
            invoke("--demo", "deep-sigmod"),
            "one of healthy, deep-sigmoid",
            "got 'deep-sigmod'",
            "did you mean deep-sig",
        )

    def test_unlike_any_demo(self, calls):
        refused(
            invoke("--demo", "transformer"), "one of healthy", "got 'transformer'", "To fix it: try .*--demo healthy"
        )

    @pytest.mark.parametrize("target", [":make_case", "train:", "train::make_case", "train:a b", ""])
    def test_not_a_target(self, project, calls, target):
        write("train.py", CASE)
        refused(invoke(target), "expected MODULE:FUNCTION", f"got {re.escape(repr(target))}", "To fix it: write")


class TestModule:
    def test_not_found(self, project, calls):
        write("train.py", CASE)
        refused(invoke("trian"), "a module 'trian'", "no such module", "holds train", "did you mean train\\?")

    def test_nothing_near(self, project, calls):
        refused(invoke("zebra"), "a module 'zebra'", "holds nothing", "project's directory")

    def test_not_in_the_package(self, project, calls):
        write("study/__init__.py", "")
        write("study/train.py", CASE)
        refused(
            invoke("study.trian"), "a module 'study.trian'", "package study holds train", "did you mean study.train\\?"
        )

    def test_below_a_module(self, project, calls):
        write("train.py", CASE)
        refused(invoke("train.make_case"), "a module 'train.make_case'", "no such module", "To fix it")

    def test_not_a_name(self, project, calls):
        refused(invoke("my-run"), "a module name", "'my-run'", "give its path: .*my-run.py")

    def test_no_such_file(self, project, calls):
        write("runs/train.py", CASE)
        refused(
            invoke("runs/trian.py:f"),
            "a Python file",
            "no such file",
            "holds train.py",
            "did you mean runs/train.py\\?",
        )

    def test_no_such_folder(self, project, calls):
        refused(invoke("nowhere/train.py"), "a Python file", "no such file, and no folder nowhere", "To fix it")

    def test_folder(self, project, calls):
        write("runs/train.py", CASE)
        refused(invoke("./runs"), "a Python file", "a folder", "holds train.py", "To fix it")

    def test_notebook(self, project, calls):
        write("train.ipynb", "{}")
        refused(invoke("train.ipynb"), "a Python file", "a .ipynb file", "To fix it")

    def test_import_of_something_missing(self, project, calls):
        write("train.py", "import jax\nimport flaxx_not_here\n")
        refused(
            invoke("train"),
            "no error while importing train; got ModuleNotFoundError",
            "To fix it: .*install it: .*pip install flaxx_not_here",
            'train.py", line 2',
            "import flaxx_not_here",
            "No module named 'flaxx_not_here'",
        )

    def test_module_imports_something_missing_within_itself(self, project, calls):
        write("study/__init__.py", "")
        write("study/train.py", "from study.modle import net")
        refused(
            invoke("study.train"), "importing study.train", 'study/train.py", line 1', "No module named 'study.modle'"
        )

    def test_import_of_a_name_missing(self, project, calls):
        write("train.py", "from jax.numpy import not_a_function")
        refused(invoke("train"), "got ImportError", "To fix it", 'train.py", line 1', "not_a_function")

    def test_raises(self, project, calls):
        write("train.py", "x = 1\n\nraise RuntimeError('no data here')\n")
        refused(invoke("train.py"), "importing train.py; got RuntimeError", 'train.py", line 3', "no data here")

    def test_syntax_error(self, project, calls):
        write("train.py", "def make_case(:\n    pass\n")
        refused(invoke("train"), "got SyntaxError", 'train.py", line 1', r"def make_case\(:")

    def test_script_that_exits(self, project, calls):
        write("train.py", "import sys\nsys.exit(3)\n")
        refused(invoke("train"), "got SystemExit", "__main__", 'train.py", line 2')


class TestFunction:
    def test_missing(self, project, calls):
        write("train.py", CASE)
        refused(
            invoke("train:make_csae"),
            "a function 'make_csae' in train",
            "a module with loss_fn, make_case",
            "did you mean make_case\\?",
        )

    def test_missing_with_nothing_near(self, project, calls):
        write("train.py", "x = 1")
        refused(invoke("train"), "a function 'make_case' in train", "with nothing", "def make_case")

    def test_not_callable(self, project, calls):
        write("train.py", "params = {}")
        refused(invoke("train:params"), "train:params to be a function", "of type a? ?dict", "To fix it: wrap it")

    def test_needs_arguments(self, project, calls):
        write("train.py", CASE)
        refused(
            invoke("train:loss_fn"), "without arguments", r"loss_fn\(params, x\)", "the loss itself", "def make_case"
        )

    def test_raises(self, project, calls):
        write("train.py", "def make_case():\n    return {}['weights']\n")
        refused(invoke("train"), r"calling make_case\(\); got KeyError", 'train.py", line 2, in make_case', "'weights'")

    def test_raises_in_a_library(self, project, calls):
        write("train.py", "import jax\n\ndef make_case():\n    return jax.numpy.zeros((2, 3)) @ jax.numpy.zeros(2)\n")
        refused(invoke("train"), "got TypeError", 'train.py", line 4, in make_case', "dot_general")

    @pytest.mark.parametrize(
        ("returned", "got"),
        [
            ("None", "got None"),
            ("{}", "got a dict"),
            ("[loss_fn, {}]", "got a list"),
            ("loss_fn", "got a function"),
            ("()", "a tuple of length 0"),
            ("(loss_fn,)", "a tuple of length 1"),
            ("({}, loss_fn)", "a tuple that starts with a dict"),
        ],
    )
    def test_returns_something_else(self, project, calls, returned, got):
        write("train.py", f"def loss_fn(): ...\n\ndef make_case():\n    return {returned}\n")
        refused(invoke("train"), r"make_case\(\) to return a tuple \(loss_fn, params", got, "To fix it")
        assert not calls

    @pytest.mark.parametrize(
        ("returned", "got"),
        [
            ("loss_fn, {}", r"got 1 of them for loss_fn\(params, x\): .*'x'"),
            ("loss_fn, {}, 1, 2", r"got 3 of them for loss_fn\(params, x\): too many"),
        ],
    )
    def test_arguments_do_not_fit_the_loss(self, project, calls, returned, got):
        write("train.py", f"def loss_fn(params, x): ...\n\ndef make_case():\n    return {returned}\n")
        refused(invoke("train"), "every argument of loss_fn", got, "To fix it: return them in order")
        assert not calls

    def test_loss_without_a_signature(self, project, calls):
        write("train.py", "def make_case():\n    return max, {}, 1\n")
        assert invoke("train").exit_code == 0


class TestOutputs:
    @pytest.mark.parametrize("option", ["--html", "--json"])
    def test_no_such_folder(self, project, calls, option):
        refused(
            invoke("--demo", "rnn", option, "out/r"),
            f"{option} to be a file",
            "out, which does not exist",
            "mkdir -p out",
        )
        assert not calls

    @pytest.mark.parametrize("option", ["--html", "--json"])
    def test_folder(self, project, calls, option):
        refused(invoke("--demo", "rnn", option, "."), f"{option} to be a file", "a folder", "To fix it: name a file")

    def test_file_in_the_place_of_a_folder(self, project, calls):
        write("out", "")
        refused(invoke("--demo", "rnn", "--html", "out/r.html"), "out, which is not a folder", "To fix it")

    def test_not_writable(self, project, calls, monkeypatch):
        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        refused(invoke("--demo", "rnn", "--json", "r.json"), "--json to be a file", "Permission denied", "To fix it")
        assert not calls

    def test_same_file_twice(self, project, calls):
        refused(invoke("--demo", "rnn", "--html", "r", "--json", "./r"), "two files", "got r for both")

    def test_checked_before_the_module_and_nothing_left(self, project, calls):
        write("train.py", "raise RuntimeError('late')")
        refused(invoke("train", "--html", "r.html"), "got RuntimeError")
        assert not Path("r.html").exists()

    def test_existing_file_kept_on_an_error(self, project, calls):
        write("r.html", "yesterday's")
        refused(invoke("zebra", "--html", "r.html"), "a module 'zebra'")
        assert Path("r.html").read_text() == "yesterday's"

    def test_disk_full_after_the_report(self, project, calls, monkeypatch):
        def refuse(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(FakeReport, "to_html", refuse)
        result = invoke("--demo", "rnn", "--html", "r.html")
        assert result.exit_code == 2
        assert "the page of a report" in result.stdout
        assert "No space left on device" in result.stderr


class TestExplainRefuses:
    @pytest.fixture
    def raises(self, project, monkeypatch):
        write("train.py", CASE)

        def install(error):
            def explain(loss_fn, params, *args, **_):
                raise error

            monkeypatch.setattr(jaxgrad, "explain", explain, raising=False)

        return install

    def test_its_message_is_shown_as_it_is(self, raises):
        raises(ValueError("explain: expected a scalar loss; got shape (8,).\nTo fix it: take the mean."))
        result = invoke("train")
        refused(result, "^explain: expected a scalar loss", "To fix it: take the mean")

    def test_memory(self, raises):
        raises(MemoryError())
        assert "To fix it" in invoke("train").stderr

    def test_bug_of_ours_shows_its_traceback(self, project, monkeypatch):
        write("train.py", CASE)
        monkeypatch.setattr("jaxgrad.cli._explain.user_frames", lambda error: [])
        monkeypatch.setattr(jaxgrad, "explain", lambda *_, **__: 1 // 0, raising=False)
        result = invoke("train")
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert "inside jaxgrad itself" in result.stderr

    def test_optional_dependency(self, raises):
        raises(ModuleNotFoundError("No module named 'matfree_not_here'", name="matfree_not_here"))
        refused(invoke("train"), "got ModuleNotFoundError", "pip install matfree_not_here")

    def test_loss_raises(self, project, monkeypatch):
        write("train.py", CASE.replace("jnp.ones((8, 4))", "jnp.ones((8, 5))"))
        monkeypatch.setattr(jaxgrad, "explain", lambda loss_fn, *args, **_: loss_fn(*args), raising=False)
        refused(invoke("train"), "running the loss; got TypeError", 'train.py", line 5, in loss_fn', "dot_general")

    def test_interrupt(self, raises):
        raises(KeyboardInterrupt())
        assert invoke("train", "--check").exit_code == 130


class TestProcess:
    """As a user's shell runs it."""

    @staticmethod
    def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        root = str(Path(jaxgrad.__file__).parents[1])
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_explain(self, tmp_path):
        (tmp_path / "train.py").write_text(textwrap.dedent(CASE), encoding="utf-8")
        done = self.run(
            "-m",
            "jaxgrad",
            "explain",
            "train.py",
            "--level",
            "quick",
            "--html",
            "r.html",
            "--json",
            "r.json",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["verdict"]
        assert "<html" in (tmp_path / "r.html").read_text(encoding="utf-8")

    def test_check(self, tmp_path):
        done = self.run("-m", "jaxgrad", "explain", "--demo", "deep-sigmoid", "--check", "--quiet", cwd=tmp_path)
        assert done.returncode == 1, done.stderr
        assert done.stdout.startswith("vanishing: ")
        assert done.stdout.count("\n") == 1

    def test_help_imports_no_jax(self, tmp_path):
        program = (
            "import sys; from jaxgrad.cli import main; main(['explain', '--help'], standalone_mode=False);"
            "print('jax imported:', 'jax' in sys.modules)"
        )
        done = self.run("-c", program, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("jax imported: False\n")
