"""What holds in every test: shapes and types checked at run time, no silent promotion, warnings are errors.

Set `JAX_ENABLE_X64=1` to run everything in double precision, and `JAXTYPING_DISABLE=1` to leave the annotations alone
(in a debugger the checker's frames are noise).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import hypothesis
import jax
import jaxtyping
import pytest

import tests.typechecking  # noqa: F401  the hook names it

# Before any test imports the package.
jaxtyping.install_import_hook("jaxgrad", "tests.typechecking.checker")

# Half the time of the tests goes into compiling small programs that run once or twice: LLVM need not polish them.
_quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__[:2] == (0, 10):  # a third faster there; gone in 0.12, and an unknown flag ends the process
    _quick += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_quick}".strip()

# What XLA compiles is kept, however little: for other modules and workers, processes tests start, and the next run.
# Not with jax 0.6, where a loop that comes out of the cache may end before its first step.
if jax.__version_info__ >= (0, 7):
    _cache = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache"))
    jax.config.update("jax_compilation_cache_dir", _cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a test compiles, which no deadline survives; in CI a failure must be the same one twice.
hypothesis.settings.register_profile("jaxgrad", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("jaxgrad")


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_module() -> Iterator[None]:
    """Let go of what a module's tests compiled: Linux maps only so many pieces of code into one process."""
    yield
    jax.clear_caches()


@pytest.fixture
def third_party_model() -> Iterator[None]:
    """JAX's usual promotion, for a test whose model comes from a library that counts on it (flax, equinox)."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test, whatever JAX_ENABLE_X64 says."""
    if hasattr(jax, "enable_x64"):
        context = jax.enable_x64(True)
    else:  # before jax 0.8
        from jax.experimental import enable_x64

        context = enable_x64(True)
    with context:
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations unchecked, as users have them, for a test of what the package itself says of bad input."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
