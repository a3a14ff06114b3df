"""What `explain`, `trace` and the command line say to input they cannot use, and what they take although it is odd.

Each refusal names the function, what it expected, what it got and what to do: `TABLE` holds the words that must come.
An error that the user's own code raises is theirs, and passes through as it is.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import jaxgrad
from jaxgrad.cli import main

# The annotations are checked in tests only, and would answer before the messages that users see.
pytestmark = pytest.mark.usefixtures("unchecked")

PARAMS = {"first": jnp.eye(4), "second": 0.5 * jnp.eye(4)}
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)


def network(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def loss_fn(params, x):
    return jnp.mean(jnp.square(network(params, x)))


def returning(change: Callable[[jax.Array], Any]) -> Callable[..., Any]:
    """The loss with its result changed."""
    return lambda params, x: change(loss_fn(params, x))


def explain(*args: Any, **options: Any) -> Any:
    return jaxgrad.explain(*args, **{"level": "quick", "verbose": False, **options})


def trace(*args: Any, **options: Any) -> Any:
    return jaxgrad.trace(*args, **options)


def capture(*args: Any, **options: Any) -> Any:
    return jaxgrad.trace(loss_fn, PARAMS, X).capture(*args, **options)


def explain_in_jit() -> Any:
    return jax.jit(lambda params: explain(loss_fn, params, X).loss)(PARAMS)


class Bad(NamedTuple):
    """One mistake: how it is made, and the words of the answer in their order."""

    mistake: str
    call: Callable[[], Any]
    words: str


TABLE = [
    # The loss.
    Bad(
        "loss is not callable", lambda: explain(3.0, PARAMS, X), "^explain: expected a function.*got float.*loss first"
    ),
    Bad("loss and params swapped", lambda: explain(PARAMS, loss_fn, X), "^explain: expected a function.*got dict"),
    Bad("loss is None", lambda: explain(None, PARAMS, X), "^explain: expected a function.*got None"),
    Bad("trace of no function", lambda: trace("loss", PARAMS, X), "^trace: expected a function.*got str"),
    Bad(
        "loss of each example",
        lambda: explain(lambda params, x: jnp.mean(network(params, x), axis=1), PARAMS, X),
        r"^explain: expected.*scalar.*got.*\(8,\).*To fix it: .*(mean|sum)",
    ),
    Bad(
        "loss of shape (1,)",
        lambda: explain(returning(lambda loss: loss[None]), PARAMS, X),
        r"^explain: expected.*scalar.*got.*\(1,\).*To fix it",
    ),
    Bad("logits for a loss", lambda: explain(network, PARAMS, X), r"^explain: expected.*scalar.*got.*\(8, 4\)"),
    Bad(
        "integer loss",
        lambda: explain(returning(lambda loss: loss.astype(jnp.int32)), PARAMS, X),
        "^explain: expected.*float.*got.*int32.*To fix it",
    ),
    Bad(
        "boolean loss",
        lambda: explain(returning(lambda loss: loss > 0), PARAMS, X),
        "^explain: expected.*float.*got.*bool.*To fix it",
    ),
    Bad(
        "complex loss",
        lambda: explain(returning(lambda loss: jax.lax.complex(loss, loss)), PARAMS, X),
        "^explain: expected.*float.*got.*complex64.*To fix it: .*(real|abs)",
    ),
    Bad(
        "loss is nothing",
        lambda: explain(returning(lambda loss: None), PARAMS, X),
        "^explain: expected.*scalar.*got None.*To fix it: .*return",
    ),
    Bad(
        "loss is a word",
        lambda: explain(returning(lambda loss: "low"), PARAMS, X),
        "^explain: expected.*scalar.*got.*(str|'low').*To fix it",
    ),
    Bad(
        "loss is a Python number",
        lambda: explain(returning(lambda loss: 1.0), PARAMS, X),
        "^explain: expected.*To fix it",
    ),
    # The auxiliary output.
    Bad(
        "aux without has_aux",
        lambda: explain(returning(lambda loss: (loss, {"accuracy": loss})), PARAMS, X),
        "^explain: expected.*scalar.*got.*tuple.*To fix it: .*has_aux=True",
    ),
    Bad(
        "dict for a loss",
        lambda: explain(returning(lambda loss: {"loss": loss}), PARAMS, X),
        "^explain: expected.*scalar.*got.*dict.*To fix it",
    ),
    Bad(
        "has_aux without aux",
        lambda: explain(loss_fn, PARAMS, X, has_aux=True),
        r"^explain: expected.*\(loss, aux\).*got.*\(\).*To fix it: .*has_aux",
    ),
    Bad(
        "has_aux with three",
        lambda: explain(returning(lambda loss: (loss, loss, loss)), PARAMS, X, has_aux=True),
        r"^explain: expected.*\(loss, aux\).*got.*tuple of (length )?3",
    ),
    Bad(
        "has_aux, and the loss not scalar",
        lambda: explain(lambda params, x: (network(params, x), 0), PARAMS, X, has_aux=True),
        r"^explain: expected.*scalar.*got.*\(8, 4\)",
    ),
    Bad(
        "trace: has_aux without aux",
        lambda: trace(loss_fn, PARAMS, X, has_aux=True),
        r"^trace: expected.*\(loss, aux\)",
    ),
    # The parameters.
    Bad("no parameters", lambda: explain(loss_fn, {}, X), "^explain: expected parameters.*got.*dict.*To fix it"),
    Bad("trace: no parameters", lambda: trace(loss_fn, [], X), "^trace: expected parameters.*got.*list.*To fix it"),
    Bad("parameters are None", lambda: explain(loss_fn, None, X), "^explain: expected parameters.*got.*None"),
    Bad("parameters are a name", lambda: explain(loss_fn, "weights.npz", X), "^explain: expected parameters.*got.*str"),
    Bad(
        "shapes for parameters",
        lambda: explain(loss_fn, jax.eval_shape(lambda: PARAMS), X),
        "^explain: expected parameters.*got.*(float32|ShapeDtypeStruct).*To fix it",
    ),
    Bad(
        "integer parameters",
        lambda: explain(loss_fn, jax.tree.map(lambda leaf: leaf.astype(jnp.int32), PARAMS), X),
        "^explain: expected parameters of a floating-point type.*got.*int32.*first.*To fix it: .*astype",
    ),
    Bad(
        "parameters that reach no layer",
        lambda: explain(lambda params, x: jnp.mean(x) + jnp.sum(params["bias"]), {"bias": jnp.ones(4)}, X),
        "^explain: expected.*multiply.*got.*bias.*no layer.*To fix it",
    ),
    Bad(
        "parameters that the loss leaves alone",
        lambda: trace(lambda params, x: jnp.mean(x), PARAMS, X),
        "^trace: expected.*multiply.*got.*first, second.*no layer",
    ),
    Bad(
        "gradient stopped everywhere",
        lambda: explain(returning(jax.lax.stop_gradient), PARAMS, X),
        "^explain: expected.*got.*no layer.*To fix it",
    ),
    # The other arguments.
    Bad("empty batch", lambda: explain(loss_fn, PARAMS, X[:0]), r"^explain: expected.*at least one example.*\(0, 4\)"),
    Bad(
        "trace: empty batch", lambda: trace(loss_fn, PARAMS, X[:0]), r"^trace: expected.*at least one example.*\(0, 4\)"
    ),
    Bad("within jit", explain_in_jit, "^explain: expected.*concrete.*got.*To fix it: .*outside.*jit"),
    # The options.
    Bad(
        "unknown level",
        lambda: explain(loss_fn, PARAMS, X, level="deep"),
        "^explain: expected.*quick.*full.*got 'deep'",
    ),
    Bad("level is a number", lambda: explain(loss_fn, PARAMS, X, level=2), "^explain: expected.*quick.*full.*got 2"),
    Bad(
        "optimizer by name",
        lambda: explain(loss_fn, PARAMS, X, optimizer="adam"),
        r"^explain: expected.*optax.*got.*(str|'adam').*To fix it: .*optax\.adam\(",
    ),
    Bad(
        "optimizer not called",
        lambda: explain(loss_fn, PARAMS, X, optimizer=optax.adam),
        "^explain: expected.*optax.*got.*function.*To fix it: .*optax",
    ),
    Bad(
        "learning rate",
        lambda: explain(loss_fn, PARAMS, X, optimizer=0.1),
        "^explain: expected.*optax.*got.*(float|0.1)",
    ),
    Bad(
        "negative confirm_steps",
        lambda: explain(loss_fn, PARAMS, X, confirm_steps=-1),
        "^explain: expected.*confirm_steps.*got -1.*To fix it",
    ),
    Bad(
        "half a step",
        lambda: explain(loss_fn, PARAMS, X, confirm_steps=2.5),
        "^explain: expected.*confirm_steps.*got 2.5.*To fix it",
    ),
    Bad(
        "key is a string",
        lambda: explain(loss_fn, PARAMS, X, key="seed"),
        r"^explain: expected.*key.*got.*(str|'seed').*To fix it: .*jax\.random\.key\(",
    ),
    Bad(
        "key is a number",
        lambda: explain(loss_fn, PARAMS, X, key=0),
        r"^explain: expected.*key.*got.*(int|0).*To fix it: .*jax\.random\.key\(",
    ),
    Bad(
        "several keys",
        lambda: explain(loss_fn, PARAMS, X, key=jax.random.split(jax.random.key(0))),
        r"^explain: expected.*key.*got.*\(2,\).*To fix it",
    ),
    Bad(
        "key of floats",
        lambda: explain(loss_fn, PARAMS, X, key=jnp.ones(2)),
        r"^explain: expected.*key.*got.*float32.*To fix it",
    ),
    # A traced network on other arguments.
    Bad(
        "another batch size",
        lambda: capture(PARAMS, X[:5]),
        r"^Network.*expected.*\(8, 4\).*got.*\(5, 4\).*trace again",
    ),
    Bad("another type", lambda: capture(PARAMS, X.astype(jnp.bfloat16)), "^Network.*expected.*float32.*got.*bfloat16"),
    Bad(
        "another parameter shape",
        lambda: capture({**PARAMS, "first": jnp.ones((4, 5))}, X),
        r"^Network.*expected.*\(4, 4\).*got.*\(4, 5\)",
    ),
    Bad("a parameter left out", lambda: capture({"first": jnp.eye(4)}, X), "^Network.*expected.*second.*got.*first"),
    Bad("an argument left out", lambda: capture(PARAMS), "^Network.*expected.*got.*To fix it: .*trace again"),
    Bad(
        "one tap", lambda: capture(PARAMS, X, taps=[(X,)]), r"^Network.capture: expected taps.*got 1.*network.taps\(\)"
    ),
]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.mistake)
def test_says_what_and_why(bad):
    with pytest.raises((TypeError, ValueError)) as caught:
        bad.call()
    text = str(caught.value)
    assert re.fullmatch(r"[\w.]+: expected .+; got .+\.\nTo fix it: .+", text, re.DOTALL), text
    assert re.search(bad.words, re.sub(r"\s+", " ", text)), text


def test_mistakes_have_different_names():
    assert len({bad.mistake for bad in TABLE}) == len(TABLE) >= 30


class OwnError(Exception):
    """An error of the user's."""


class TestErrorOfTheUser:
    """Passes through unchanged, from `explain` and from `trace`."""

    @pytest.fixture(params=[explain, trace])
    def function(self, request):
        return request.param

    def test_raised_in_the_loss(self, function):
        error = OwnError("no such split")

        def loss(params, x):
            raise error

        with pytest.raises(OwnError) as caught:
            function(loss, PARAMS, X)
        assert caught.value is error

    def test_value_error(self, function):
        def loss(params, x):
            raise ValueError("mine")

        with pytest.raises(ValueError, match=r"^mine($|\n---)"):
            function(loss, PARAMS, X)

    def test_shapes_that_do_not_match(self, function):
        with pytest.raises(TypeError, match=r"dot_general.*contracting"):
            function(loss_fn, PARAMS, X[:, :3])

    def test_batches_that_do_not_match(self, function):
        def loss(params, x, y):
            return jnp.mean(jnp.square(network(params, x) - y))

        with pytest.raises((TypeError, ValueError), match=r"(?s)(incompatible|sub).*\(8, 4\).*\(7, 4\)"):
            function(loss, PARAMS, X, X[:7])

    def test_missing_argument(self, function):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
            function(loss_fn, PARAMS)

    def test_numpy_on_a_tracer(self, function):
        def loss(params, x):
            return float(np.mean(np.asarray(network(params, x))))

        with pytest.raises(jax.errors.TracerArrayConversionError):
            function(loss, PARAMS, X)

    def test_branch_on_a_value(self, function):
        def loss(params, x):
            return loss_fn(params, x) if loss_fn(params, x) > 0 else jnp.zeros(())

        with pytest.raises(jax.errors.TracerBoolConversionError):
            function(loss, PARAMS, X)

    def test_unknown_option(self, function):
        with pytest.raises(TypeError, match="unexpected keyword argument 'levels'"):
            function(loss_fn, PARAMS, X, levels="full")


class TestTaken:
    """Odd, and right."""

    def test_strings_none_and_numbers_among_the_arguments(self):
        def loss(params, x, mode, mask, scale, options):
            assert mode == "train"
            assert mask is None
            return scale * options["weight"] * loss_fn(params, x)

        report = explain(loss, PARAMS, X, "train", None, 2.0, {"weight": 3, "name": "run"})
        assert report.loss == pytest.approx(float(6 * loss_fn(PARAMS, X)), rel=1e-5)

    @pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)], ids=["typed", "raw"])
    def test_dropout_key_among_the_arguments(self, key):
        def loss(params, x, key):
            return loss_fn(params, jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x, 0.0))

        assert len(explain(loss, PARAMS, X, key).layers) == 2

    def test_constants_among_the_parameters(self):
        report = explain(loss_fn, {**PARAMS, "name": "net", "nothing": None, "activation": jnp.tanh}, X)
        assert [layer.name for layer in report.layers] == ["first", "second"]

    def test_numpy_arrays(self):
        report = explain(loss_fn, jax.tree.map(np.asarray, PARAMS), np.asarray(X))
        assert report.loss == pytest.approx(float(loss_fn(PARAMS, X)), rel=1e-5)

    def test_one_example(self):
        assert explain(loss_fn, PARAMS, X[:1]).num_examples == 1

    def test_data_in_the_closure(self):
        assert len(explain(lambda params: loss_fn(params, X), PARAMS).layers) == 2

    def test_aux(self):
        report = explain(returning(lambda loss: (loss, {"shown": "as text"})), PARAMS, X, has_aux=True)
        assert report.loss == pytest.approx(float(loss_fn(PARAMS, X)), rel=1e-5)

    def test_jitted_loss(self):
        assert len(explain(jax.jit(loss_fn), PARAMS, X).layers) == 2

    @pytest.mark.parametrize("key", [None, jax.random.key(1), jax.random.PRNGKey(1)], ids=["none", "typed", "raw"])
    def test_keys(self, key):
        assert explain(loss_fn, PARAMS, X, key=key).verdict == "healthy"

    @pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
    def test_parameter_that_is_not_finite(self, value):
        report = explain(loss_fn, {**PARAMS, "second": PARAMS["second"].at[0, 0].set(value)}, X)
        assert report.verdict == "nonfinite"
        assert "second" in str(report)

    def test_batch_that_is_not_finite(self):
        assert explain(loss_fn, PARAMS, X.at[0, 0].set(jnp.nan)).verdict == "nonfinite"

    def test_parameters_of_zeros(self):
        assert explain(loss_fn, jax.tree.map(jnp.zeros_like, PARAMS), X).verdict != "healthy"

    @pytest.mark.usefixtures("third_party_model")
    def test_inputs_are_left_alone(self):
        params, x = jax.tree.map(jnp.copy, PARAMS), jnp.copy(X)
        explain(loss_fn, params, x, optimizer=optax.adam(1e-3))
        assert all(map(np.array_equal, jax.tree.leaves((params, x)), jax.tree.leaves((PARAMS, X))))


class TestCommandLine:
    """The same mistakes in a user's file: the message alone, and status 2."""

    CASE = """
        import jax.numpy as jnp

        def loss_fn(params, x):
            return jnp.mean(jnp.square(jnp.tanh(x @ params["first"]) @ params["second"]))

        def make_case():
            params = {"first": jnp.eye(4), "second": jnp.eye(4)}
            x = jnp.ones((8, 4))
            return loss_fn, params, x
    """

    @pytest.mark.parametrize(
        ("written", "instead", "words"),
        [
            ("return jnp.mean(", "return 0, (", r"^explain: expected.*scalar.*has_aux.*command line.*\[0\]"),
            ("return jnp.mean(", "return (", r"^explain: expected.*scalar.*got.*\(8, 4\).*To fix it"),
            ("return loss_fn, params, x", "return loss_fn, {}, x", "^explain: expected parameters.*To fix it"),
            ("return loss_fn, params, x", "return params, loss_fn, x", "^jaxgrad explain: expected make_case.*a dict"),
            ("jnp.ones((8, 4))", "jnp.ones((0, 4))", r"^explain: expected.*at least one example.*\(0, 4\)"),
            ("jnp.ones((8, 4))", "jnp.ones((8, 5))", "running the loss; got TypeError.*train.py.*line 5, in loss_fn"),
            ("jnp.ones((8, 4))", "'digits.npz'", "running the loss; got TypeError.*train.py.*line 5, in loss_fn"),
            (
                "return loss_fn, params, x",
                "return loss_fn, params",
                r"every argument of loss_fn; got 1 of them for loss_fn\(params, x\).*'x'",
            ),
            ('first": jnp.eye(4)', 'first": jnp.eye(4, dtype=int)', "^explain: expected parameters of a floating"),
        ],
    )
    def test_message_and_status(self, tmp_path, monkeypatch, written, instead, words):
        assert self.CASE.count(written) == 1
        case = textwrap.dedent(self.CASE.replace(written, instead))
        monkeypatch.setattr(sys, "path", list(sys.path))
        path = tmp_path / "train.py"
        path.write_text(case, encoding="utf-8")
        result = CliRunner().invoke(main, ["explain", str(path), "--level", "quick"])
        sys.modules.pop("train", None)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert re.search(words, re.sub(r"\s+", " ", result.stderr)), result.stderr
