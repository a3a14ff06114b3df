"""The path of training: against NumPy's SVD, in planes that are known, and for a random walk."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.diagnosis import plot_trajectory, trajectory_pca, trajectory_point, trajectory_surface

NUM_SNAPSHOTS = 12


def tree(flat: np.ndarray) -> dict[str, object]:
    """Twenty numbers as the parameters of a model, with what a model also holds."""
    return {
        "layers": [{"w": jnp.asarray(flat[:12].reshape(3, 4)), "b": jnp.asarray(flat[12:16])}],
        "head": jnp.asarray(flat[16:]),
        "count": jnp.asarray(7),
        "activation": jnp.tanh,
    }


def flatten(parameters: dict[str, object]) -> np.ndarray:
    (layer,) = parameters["layers"]
    return np.concatenate([np.ravel(leaf) for leaf in (layer["w"], layer["b"], parameters["head"])])


def path(seed: int = 0, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(NUM_SNAPSHOTS, 20)) * np.linspace(1.0, 0.05, 20)
    return (scale * drawn + offset).astype(np.float32)


def planar(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A path in a known plane, its coordinates seen from the end, and the plane."""
    generator = np.random.default_rng(seed)
    plane = np.linalg.qr(generator.normal(size=(20, 2)))[0].T
    coordinates = generator.normal(size=(NUM_SNAPSHOTS, 2)) * [3.0, 1.0]
    rows = coordinates @ plane + generator.normal(size=20)
    return rows.astype(np.float32), coordinates - coordinates[-1], plane


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-30, 0.0), (1e-3, 5.0), (1e25, 0.0)])
def test_trajectory_is_that_of_numpy_svd(scale, offset, weighted):
    rows = path(scale=scale, offset=offset)
    weights = np.linspace(0.0, 2.0, NUM_SNAPSHOTS).astype(np.float32) if weighted else None
    result = trajectory_pca([tree(row) for row in rows], 3, weights=weights)

    wide = rows.astype(float)
    mass = np.ones(NUM_SNAPSHOTS) if weights is None else weights.astype(float)
    centred = wide - np.average(wide, axis=0, weights=mass)
    _, singular, vectors = np.linalg.svd(np.sqrt(mass)[:, None] * centred, full_matrices=False)
    away = (wide - wide[-1]) @ vectors[:3].T
    sign = np.sign(np.sum(away * np.asarray(result.coordinates, float) / scale, axis=0))
    size = np.abs(away).max()
    # The rounding of the snapshots themselves is the error where they lie far from zero.
    close = 1e-3 if offset else 1e-4
    np.testing.assert_allclose(np.asarray(result.coordinates) / size, sign * away / size, atol=close)
    np.testing.assert_allclose(result.explained_variance_ratio, (singular**2 / np.sum(singular**2))[:3], rtol=1e-3)
    rest = np.linalg.norm(wide - wide[-1] - away @ vectors[:3], axis=1)
    np.testing.assert_allclose(np.asarray(result.distances) / size, rest / size, atol=2e-3)
    for component in range(3):
        direction = flatten(jax.tree.map(lambda leaf: leaf[component], result.directions))  # noqa: B023
        np.testing.assert_allclose(direction, sign[component] * vectors[component], atol=20 * close)


def test_a_path_in_a_plane_is_found_with_its_plane():
    rows, coordinates, plane = planar()
    result = trajectory_pca([tree(row) for row in rows])
    assert float(jnp.sum(result.explained_variance_ratio)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(result.distances, 0, atol=5e-3)
    found = np.stack([flatten(jax.tree.map(lambda leaf: leaf[c], result.directions)) for c in range(2)])  # noqa: B023
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-4)
    # The same plane, turned: the coordinates keep all distances, and nothing of the plane is lost.
    np.testing.assert_allclose(np.linalg.svd(found @ plane.T)[1], 1, atol=1e-4)
    ours, theirs = np.asarray(result.coordinates, float), coordinates
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-3)


def test_a_point_of_the_plane_gives_the_snapshot_that_lies_there():
    rows, _, _ = planar()
    snapshots = [tree(row) for row in rows]
    result = trajectory_pca(snapshots)
    assert result.origin["activation"] is jnp.tanh
    assert result.directions["count"] is None
    for snapshot, coordinates in zip(snapshots, result.coordinates, strict=True):
        point = trajectory_point(result, coordinates)
        assert point["count"] == 7
        np.testing.assert_allclose(flatten(point), flatten(snapshot), atol=1e-4)


def test_stacked_snapshots_are_the_same_and_jit_changes_nothing():
    rows = jnp.asarray(path())
    parameters = {"w": rows[:, :12].reshape(-1, 3, 4), "b": rows[:, 12:]}
    listed = [jax.tree.map(lambda leaf: leaf[i], parameters) for i in range(NUM_SNAPSHOTS)]  # noqa: B023
    expected = trajectory_pca(listed)
    for fit in (trajectory_pca, jax.jit(trajectory_pca, static_argnames=("num_components", "stacked"))):
        result = fit(parameters, stacked=True)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, expected)


def test_a_random_walk_explains_what_the_closed_form_says():
    count = 40
    walk = jnp.cumsum(jax.random.normal(jax.random.key(0), (count, 30000)), axis=0)
    result = trajectory_pca(walk, 4, stacked=True)
    component = np.arange(1, count)
    exact = 1 / (4 * np.sin(np.pi * component / (2 * count)) ** 2)
    np.testing.assert_allclose(result.random_walk_ratio, (exact / exact.sum())[:4], rtol=1e-3)
    np.testing.assert_allclose(result.random_walk_ratio, 6 / (np.pi * component[:4]) ** 2, rtol=0.01)
    np.testing.assert_allclose(result.explained_variance_ratio, result.random_walk_ratio, rtol=0.1)
    assert float(jnp.min(result.walk_correlation)) > 0.99
    assert (
        float(jnp.max(trajectory_pca(walk[::-1] * 0 + jnp.eye(count, 30000), 4, stacked=True).walk_correlation)) < 0.99
    )


def test_half_precision_is_computed_in_single_and_directions_keep_shapes():
    rows = jnp.asarray(path(), jnp.bfloat16)
    result = trajectory_pca({"w": rows, "z": rows.astype(jnp.complex64) * (1 + 2j)}, stacked=True)
    assert result.coordinates.dtype == jnp.float32
    assert result.directions["z"].shape == (2, 20)
    assert trajectory_point(result, [0.0, 0.0])["w"].dtype == jnp.bfloat16
    total = sum(jnp.sum(jnp.abs(leaf[0]) ** 2) for leaf in jax.tree.leaves(result.directions))
    assert float(total) == pytest.approx(1, abs=1e-4)


def test_training_that_stands_still_has_no_direction():
    result = trajectory_pca([jnp.ones(3)] * 4)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(result))
    assert float(jnp.max(jnp.abs(result.coordinates))) == 0
    assert float(jnp.sum(result.explained_variance_ratio)) == 0


def test_a_traced_snapshot_that_is_not_finite_takes_no_part():
    rows = jnp.asarray(path())
    broken = rows.at[-1, 3].set(jnp.nan)
    fit = jax.jit(lambda rows: trajectory_pca(rows, stacked=True))
    result, expected = fit(broken), trajectory_pca(rows[:-1], stacked=True)
    np.testing.assert_allclose(result.coordinates[:-1], expected.coordinates, atol=1e-4)
    np.testing.assert_allclose(result.origin, expected.origin)
    assert bool(jnp.all(jnp.isnan(result.coordinates[-1])))


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_surface_is_the_loss_of_the_points(chunk_size):
    rows, _, _ = planar()
    result = trajectory_pca([tree(row) for row in rows], 3)

    def loss_fn(parameters, target, unit):
        assert unit == "nats"
        return jnp.sum(jnp.square(parameters["activation"](parameters["layers"][0]["w"]) - target)), parameters["count"]

    target = jnp.ones((3, 4), jnp.float32)
    surface = trajectory_surface(
        loss_fn,
        result,
        target,
        "nats",
        num_points=4,
        margin=0.5,
        components=(1, 0),
        has_aux=True,
        chunk_size=chunk_size,
    )
    first, second = np.asarray(result.coordinates[:, 0]), np.asarray(result.coordinates[:, 1])
    np.testing.assert_allclose(surface.y[0], first.min() - 0.5 * np.ptp(first), rtol=1e-5)
    np.testing.assert_allclose(surface.x[-1], second.max() + 0.5 * np.ptp(second), rtol=1e-5)
    point = trajectory_point(result, [float(surface.y[1]), float(surface.x[2]), 0.0])
    expected, _ = loss_fn(point, target, "nats")
    np.testing.assert_allclose(surface.losses[1, 2], expected, rtol=1e-4)


def test_figure_shows_path_loss_and_the_walks_share():
    pytest.importorskip("matplotlib")
    snapshots = [jnp.array([2.0, 1.0]), jnp.array([1.0, -1.0]), jnp.zeros(2)]
    result = trajectory_pca(snapshots)
    surface = trajectory_surface(lambda w: jnp.sum(w**2) - 0.5, result, num_points=5)
    for figure in (plot_trajectory(result), plot_trajectory(result, surface)):
        figure.draw_without_rendering()
        assert figure.axes[0].get_ylabel() == "component 2: 25% of the variance (random walk: 25%)"
        np.testing.assert_allclose(figure.axes[0].lines[1].get_xydata(), result.coordinates)
    assert figure.axes[1].get_ylabel() == "loss in the plane"
    flat = surface._replace(losses=jnp.full((5, 5), jnp.nan))
    plot_trajectory(result, flat).draw_without_rendering()


def test_figures_without_matplotlib_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxgrad\[plots\]"):
        plot_trajectory(trajectory_pca(ROWS))


ROWS = (jnp.zeros(3), jnp.ones(3), jnp.arange(3.0))


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("error", "words", "snapshots", "options"),
        [
            (TypeError, "stacked=True", {"w": jnp.ones((3, 2))}, {}),
            (ValueError, "at least two snapshots; got none", [], {}),
            (ValueError, "at least two snapshots; got 1", [jnp.ones(3)], {"num_components": 1}),
            (ValueError, "number 1: PyTreeDef", [{"a": jnp.ones(2)}, {"b": jnp.ones(2)}], {}),
            (ValueError, r"number 2, leaf '': \(\(2,\)", [*ROWS[:2], jnp.ones(2)], {}),
            (ValueError, "one length", {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, {"stacked": True}),
            (ValueError, "one length", {"w": jnp.tanh}, {"stacked": True}),
            (ValueError, "floating-point", [jnp.arange(3)] * 3, {}),
            (ValueError, "1 of 3 snapshots.*first number 1", [ROWS[0], ROWS[0] * jnp.nan, ROWS[1]], {}),
            (ValueError, "num_components under 3", ROWS, {"num_components": 3}),
            (ValueError, "num_components of at least 1", ROWS, {"num_components": 0}),
            (TypeError, "an integer num_components", ROWS, {"num_components": 1.5}),
            (ValueError, r"weights of shape \(3,\)", ROWS, {"weights": jnp.ones(2)}),
            (ValueError, "finite weights", ROWS, {"weights": jnp.array([1.0, -1.0, 1.0])}),
        ],
    )
    def test_trajectory_says_what_is_wrong(self, error, words, snapshots, options):
        with pytest.raises(error, match=words):
            trajectory_pca(snapshots, **options)

    @pytest.mark.parametrize(
        ("error", "words", "options"),
        [
            (TypeError, "a loss of", {"loss_fn": 3}),
            (ValueError, "a scalar loss", {"loss_fn": lambda w: w}),
            (ValueError, "num_points of at least 2", {"num_points": 1}),
            (TypeError, "an integer num_points", {"num_points": 2.0}),
            (ValueError, "margin in", {"margin": -1.0}),
            (ValueError, "components=", {"components": (0, 2)}),
            (ValueError, "components=", {"components": (1, 1)}),
        ],
    )
    def test_surface_says_what_is_wrong(self, error, words, options):
        loss_fn = options.pop("loss_fn", jnp.sum)
        with pytest.raises(error, match=words):
            trajectory_surface(loss_fn, trajectory_pca(ROWS), **options)

    def test_point_and_figure_say_what_is_wrong(self):
        result = trajectory_pca(ROWS, 1)
        with pytest.raises(ValueError, match=r"coordinates of shape \(1,\)"):
            trajectory_point(result, [1.0, 2.0])
        with pytest.raises(ValueError, match="fit at least 2"):
            plot_trajectory(result)
