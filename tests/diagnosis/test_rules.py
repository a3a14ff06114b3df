"""Rules on plain numbers: what each one needs to hold, what comes first, and what is shared out."""

from __future__ import annotations

import itertools
import math

import pytest

from jaxgrad.diagnosis._facts import BlockFacts, CarriedFacts, EntryFacts, Facts, LayerFacts, LossFacts
from jaxgrad.diagnosis._findings import decide, p_value
from jaxgrad.diagnosis._probe import probe, still_wrong
from jaxgrad.diagnosis._report import NonFinite
from tests.diagnosis.report_parts import block as statistics_of
from tests.diagnosis.report_parts import layer as layer_of

FINE_LOSS = LossFacts(confident=1.1, here=0.9, relative=1.1, mixing=0.0)


def layer(name: str, **changes) -> LayerFacts:
    return LayerFacts(name, 1.0, math.nan, False, None, 64, False)._replace(**changes)


def block(
    gain: float, number: int = 0, *, layers=None, sources=None, error: float = 0.05, skip: bool = False, **changes
):
    name = f"layer{number}"
    return BlockFacts(
        statistics_of(number, name, (name,), 0.0, gain, **changes),
        layers or (layer(name, activation="relu", slope=0.7),),
        skip,
        False,
        error,
        sources or {"activation": gain},
    )


def facts(*blocks: BlockFacts, **changes) -> Facts:
    return Facts(
        chains=(blocks,),
        layers=(),
        mixes_examples=False,
        has_signal=True,
        entries=(EntryFacts("layer0", 0.0, 0.1, -1.0),),
        log10_targets=math.nan,
        log10_target_scale=math.nan,
        log10_spread=math.nan,
        loss=FINE_LOSS,
        clip=1.0,
        nonfinite=None,
    )._replace(**changes)


def chain(gain: float, count: int, **options) -> list[BlockFacts]:
    return [block(gain, number, **options) for number in range(count)]


def causes(decision) -> list[str]:
    return [finding.cause for finding in decision.findings]


def test_network_within_its_band_is_healthy():
    decision = decide(facts(*chain(0.01, 12)))
    assert (decision.verdict, decision.findings) == ("healthy", ())


@pytest.mark.parametrize(("gain", "verdict"), [(-0.4, "vanishing"), (0.4, "exploding")])
def test_verdict_needs_both_an_effect_and_significance(gain, verdict):
    assert decide(facts(*chain(gain, 12))).verdict == verdict
    assert decide(facts(*chain(gain, 3))).verdict == "healthy"  # a factor of 16: no harm
    assert decide(facts(*chain(gain, 12, error=1.0))).verdict == "healthy"  # so narrow that chance does as much


def test_last_layer_scales_all_others_alike():
    head = block(-2.5, 4, layers=(layer("head"),))
    decision = decide(facts(*chain(0.0, 4), head))
    assert decision.verdict == "healthy"
    assert decision.log10_total_gain == pytest.approx(-2.5)
    assert decision.log10_body_gain == pytest.approx(0.0)


def test_p_value_is_that_of_a_normal():
    assert p_value(chain(0.0, 4, error=0.1), 0.392) == pytest.approx(0.05, abs=1e-3)
    assert p_value(chain(0.0, 4), -math.inf) == 0.0


def test_evidence_sets_the_measured_gain_beside_theory_and_criticality():
    (finding,) = decide(facts(*chain(-0.6, 20, predicted_log10_gain=-0.62))).findings
    for words in ("shrinks 3.98× a block", "theory for relu at this initialization: 4.17×", "criticality", "p < 1e-12"):
        assert words in finding.evidence


def test_causes_have_shares_that_add_up():
    shrinking = [
        block(-0.5, i, sources={"weights": -0.1, "activation": -0.1, "normalization": -0.3}) for i in range(10)
    ]
    decision = decide(facts(*shrinking))
    assert causes(decision) == ["normalization", "initialization"]
    assert [finding.share for finding in decision.findings] == pytest.approx([3.0 / 4.9, 1.9 / 4.9], abs=1e-3)


def test_what_weights_give_and_slopes_take_is_no_fault_of_either():
    growing = [block(0.3, i, sources={"weights": 0.4, "activation": -0.4, "normalization": 0.3}) for i in range(10)]
    assert causes(decide(facts(*growing))) == ["normalization"]


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"layers": (layer("l", activation="tanh", slope=0.2, saturates=True),)}, "saturating-activation"),
        (
            {"layers": (layer("l", activation="tanh", slope=0.2, saturates=True, weight_variance=9.0),)},
            "initialization",
        ),
        ({"layers": (layer("l", activation="relu", slope=0.7, weight_variance=0.5),)}, "initialization"),
        ({"layers": (layer("l", activation="relu", slope=1.0),)}, "depth"),
        ({"kind": "time"}, "recurrence"),
        ({"skip": True, "sources": {"residual": -0.6}}, "residual-scale"),
    ],
)
def test_cause_of_a_vanishing_signal(changes, cause):
    assert causes(decide(facts(*chain(-0.6, 12, **changes))))[0] == cause


def test_clipping_that_hides_an_explosion_comes_first():
    exploding = chain(0.6, 12, layers=(layer("l", activation="relu", slope=0.7, weight_variance=40.0),))
    assert causes(decide(facts(*exploding, clip=1e4))) == ["masked-by-clipping", "initialization"]
    assert causes(decide(facts(*exploding, clip=2.0))) == ["initialization"]
    assert decide(facts(*chain(0.0, 4), clip=1e4)).verdict == "healthy"


@pytest.mark.parametrize(
    ("changes", "verdict", "cause"),
    [
        ({"log10_targets": 3.0, "log10_target_scale": 3.0}, "exploding", "target-scale"),
        ({"log10_targets": -4.0, "log10_target_scale": -4.0}, "exploding", "target-scale"),
        ({"entries": (EntryFacts("l", 0.0, 3.0, -1.0),)}, "ill-conditioned", "input-scale"),
        ({"entries": (EntryFacts("l", 0.0, 0.0, 2.0),)}, "ill-conditioned", "input-scale"),
        ({"entries": (EntryFacts("l", 2.4, 0.0, 0.0),)}, "ill-conditioned", "input-scale"),
        ({"loss": FINE_LOSS._replace(confident=0.001)}, "vanishing", "loss"),
        ({"loss": FINE_LOSS._replace(mixing=0.02)}, "ill-conditioned", "loss"),
        ({"loss": FINE_LOSS._replace(relative=150.0)}, "exploding", "initialization"),
        ({"log10_spread": 8.0}, "ill-conditioned", "missing-residual"),
        ({"loss": FINE_LOSS._replace(out_of_reach=0.4, reach=(0.0, 1.0))}, "vanishing", "target-scale"),
        ({"loss": FINE_LOSS._replace(out_of_reach=0.4, reach=(0.0, 3e4))}, "dead", "dead-relu"),
        ({"loss": FINE_LOSS._replace(bottomless=True)}, "exploding", "loss"),
        ({"carried": (CarriedFacts("f.py:3", 70, -11.0),)}, "vanishing", "recurrence"),
        ({"carried": (CarriedFacts("f.py:3", 70, 4.0),)}, "exploding", "recurrence"),
    ],
)
def test_faults_that_leave_the_signal_alone(changes, verdict, cause):
    decision = decide(facts(*chain(0.0, 6), **changes))
    assert (decision.verdict, causes(decision)) == (verdict, [cause])


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": FINE_LOSS._replace(out_of_reach=0.05, reach=(0.0, 1.0))},
        {"loss": FINE_LOSS._replace(out_of_reach=1.0, reach=(0.0, 0.0))},  # an output that never changes is flat
        {"carried": (CarriedFacts("f.py:3", 70, -4.0),)},  # a short memory is no fault
        {"carried": (CarriedFacts("f.py:3", 70, 2.0),)},
    ],
)
def test_what_is_no_fault(changes):
    assert decide(facts(*chain(0.0, 6), **changes)).verdict == "healthy"


def test_saturation_at_half_the_layers_is_blamed_on_large_weights():
    def decision(share, variance):
        blocks = [
            block(0.0, i, layers=(layer(f"layer{i}", activation="tanh", weight_variance=variance),)) for i in range(5)
        ]
        layers = tuple(layer_of(f"layer{i}", i, saturated_fraction=share) for i in range(5))
        return decide(facts(*blocks, layers=layers))

    assert (decision(0.9, 50.0).verdict, causes(decision(0.9, 50.0))) == ("ill-conditioned", ["initialization"])
    assert causes(decision(0.9, 2.0)) == ["saturating-activation"]
    assert decision(0.6, 50.0).verdict == "healthy"


def test_normalization_over_the_batch_answers_for_a_spread_that_no_skip_could_mend():
    spread = {"log10_spread": 8.0, "mixes_examples": True}
    assert causes(decide(facts(*[b._replace(normalization=True) for b in chain(0.0, 6)], **spread))) == [
        "normalization"
    ]
    assert causes(decide(facts(*chain(0.0, 6), **spread))) == ["missing-residual"]


@pytest.mark.parametrize(
    ("skip", "kind", "cause"),
    [(True, "depth", "residual-scale"), (False, "depth", "initialization"), (False, "time", "recurrence")],
)
def test_growth_to_overflow_comes_before_the_operation_that_overflows(skip, kind, cause):
    sizes = [1.0, 1e5, 1e15, 1e30, math.nan, math.nan]
    growing = [
        block(0.0, i, skip=skip, kind=kind, input_rms=before, output_rms=after)
        for i, (before, after) in enumerate(itertools.pairwise(sizes))
    ]
    origin = NonFinite("forward", "dot_general", "f.py:3", "layer3", None)
    decision = decide(facts(*growing, nonfinite=origin))
    assert (decision.verdict, causes(decision)) == ("nonfinite", [cause, "nonfinite-op"])
    sudden = [block(0.0, i, input_rms=1.0, output_rms=1.0 if i < 3 else math.nan) for i in range(5)]
    assert causes(decide(facts(*sudden, nonfinite=origin))) == ["nonfinite-op"]


def test_outputs_that_are_off_do_not_blame_targets_of_size_one():
    assert decide(facts(*chain(0.0, 6), log10_targets=0.0, log10_target_scale=-3.0)).verdict == "healthy"


def test_zero_and_equal_weights_are_found():
    zero = block(-math.inf, 1, layers=(layer("layer1", weight_variance=0.0),))
    assert causes(decide(facts(block(0.0), zero, block(0.0, 2))))[0] == "initialization"
    alike = block(0.0, 1, layers=(layer("layer1", alike=True),))
    assert causes(decide(facts(block(0.0), alike, block(0.0, 2)))) == ["initialization"]


def runs(**by_rate):
    """Losses of a run by what the rate is multiplied by."""
    table = {float(rate.removeprefix("x").replace("_", ".")): losses for rate, losses in by_rate.items()}
    return lambda rate: table[rate]


FALLS, RISES, STANDS = [1.0, 0.9, 0.8, 0.7, 0.6], [1.0, 4.0, 9.0, 20.0, 50.0], [1.0, 1.0, 1.0, 1.0, 0.9999]


def test_rate_is_too_high_where_the_loss_runs_away_and_falls_at_a_lower_one():
    found = probe(runs(x1=RISES, x0_1=FALLS), [layer_of("l", 0, update_ratio=0.5)])
    assert found is not None
    assert found.too_high
    assert found.ruling.findings[0].cause == "learning-rate"
    assert probe(runs(x1=[1.0, math.nan, math.nan], x0_1=RISES, x0_01=FALLS), []) is not None
    assert probe(runs(x1=RISES, x0_1=RISES, x0_01=RISES), []) is None  # then the rate is not to blame


def test_rate_is_too_low_where_the_loss_stands_and_falls_at_a_higher_one():
    small = [layer_of("l", 0, update_ratio=1e-6)]
    found = probe(runs(x1=STANDS, x100=FALLS), small)
    assert found is not None
    assert not found.too_high
    assert probe(runs(x1=STANDS, x100=STANDS, x10000=STANDS), small) is None
    assert probe(runs(x1=FALLS), small) is None


def test_coarse_parameters_lose_updates_that_finer_ones_keep():
    small = [layer_of("l", 0, update_ratio=1e-3)]
    runs_of = runs(x1=STANDS, x100=FALLS)
    assert probe(runs_of, small) is None
    assert probe(runs_of, small, rounding=2.0**-7) is not None


def test_schedule_that_fades_within_few_steps_is_found():
    fading, lasting = [0.8**step for step in range(64)], [0.99**step for step in range(64)]
    found = probe(runs(x1=FALLS), [], fade=lambda: fading)
    assert found is not None
    assert found.fading == tuple(fading)
    assert found.ruling.findings[0].cause == "learning-rate"
    assert probe(runs(x1=FALLS), [], fade=lambda: lasting) is None


def test_other_rate_is_judged_by_the_same_steps():
    found = probe(runs(x1=RISES, x0_1=FALLS), [])
    assert found is not None
    assert still_wrong(RISES, found) is found.ruling
    assert still_wrong(FALLS, found) is None
