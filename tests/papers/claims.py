"""Compares what a test computed with what the record of a paper says."""

from __future__ import annotations

import os

from jaxgrad import papers


def check(key, quantity, computed, rounding=1e-6):
    """Hold a number against a claim: the library's as recorded, and the paper's within the claim's tolerance.

    ``rounding`` is relative to the recorded number, absolute where that is 0; for a number that was sampled with a
    fixed key it allows for what another version of JAX may draw.
    """
    claim = {claim.quantity: claim for claim in papers.get(key).claims}[quantity]
    running = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
    assert claim.test == running, f"the claim {quantity!r} of {key} names another test"
    assert abs(float(computed) - claim.ours) <= rounding * (abs(claim.ours) or 1.0), (computed, claim.ours)
    assert abs(claim.ours - claim.value) <= claim.tolerance, (claim.ours, claim.value)
