"""What settings mean together: in which rounds SAM may count, and when what it learns is asked."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Federation, Run, Sam, Train


@given(hundredths=st.integers(0, 99), rounds=st.integers(1, 60), local_steps=st.integers(1, 60))
def test_sam_begins_with_the_first_round_at_or_after_its_share(hundredths: int, rounds: int, local_steps: int) -> None:
    """In fractions: 0.55 × 400 is a little more than 220 in floating point, and the round at 220 would be left out."""
    sam = Sam(start=hundredths / 100)
    for round_ in range(rounds):
        step, total = round_ * local_steps, rounds * local_steps
        assert sam.may_count(step=step, total_steps=total) == (step >= Fraction(hundredths, 100) * total)


def test_without_weight_it_never_counts() -> None:
    assert not Sam(weight=0, start=0).may_count(step=5, total_steps=5)


@given(start=st.sampled_from([0.0, 0.3, 0.5, 0.9]), cycles=st.integers(1, 4), rounds=st.integers(1, 5), anew=st.booleans())
def test_rounds_with_sam_are_those_of_the_run_or_of_each_cycle(start: float, cycles: int, rounds: int, anew: bool) -> None:
    federation = Federation(cycles=cycles, restart="initial" if anew else "continue")
    run = Run(classes={"a": 1}, train=Train(rounds_per_cycle=rounds), sam=Sam(start=start), federation=federation)
    each, share = rounds if anew else rounds * cycles, Fraction(str(start))
    begun = [Fraction(k % each, each) >= share for k in range(rounds * cycles)]
    assert run.rounds_with_sam == sum(begun)
    assert bool(run.warnings) == (not any(begun))
    off = run.model_copy(update={"sam": Sam(enabled=False)})
    assert (off.rounds_with_sam, off.warnings) == (0, [])


@pytest.mark.parametrize(
    ("start", "cycles", "restart", "asked"),
    [
        (0.0, 1, "continue", False),
        (0.0, 3, "initial", False),
        (0.0, 3, "continue", True),
        (0.5, 1, "continue", True),
        (0.5, 3, "initial", True),
    ],
)
def test_an_encoder_that_learns_but_is_never_asked_is_a_fault(start: float, cycles: int, restart: str, asked: bool) -> None:
    """A cycle keeps the encoder that it asks first: where that is of the first round of all, it has learned nothing."""
    federation = {"cycles": cycles, "restart": restart}

    def run(adapt: str) -> Run:
        return Run.model_validate({"classes": {"a": 1}, "sam": {"start": start, "adapt": adapt}, "federation": federation})

    run("decoder")
    if asked:
        run("lora")
    else:
        with pytest.raises(ValueError, match="an encoder that is never asked"):
            run("lora")


@pytest.mark.parametrize(
    ("strategy", "rule", "fault"),
    [
        ("feal", "adaptive", "feal scales its scores within each pool"),
        ("feal+cap", "adaptive", r"feal scales its scores within each pool"),
        ("coreset+cap", "adaptive", r"coreset\+cap gives its cases none"),
        ("kafal", "adaptive", "those of kafal are of different models"),
        ("logo+power", "adaptive", None),
        ("clasp_pe", "adaptive", None),
        ("feal", "proportional", None),
        ("coreset", "proportional", None),
    ],
)
def test_scores_of_different_sites_are_compared_where_they_mean_the_same(strategy: str, rule: str, fault: str | None) -> None:
    settings = {"classes": {"a": 1}, "query": {"strategy": strategy}, "budget": {"rule": rule}, "network": {"head": "evidential"}}
    if fault is not None:
        with pytest.raises(ValueError, match=fault):
            Run.model_validate(settings)
    else:
        Run.model_validate(settings)


@pytest.mark.parametrize("model", ["local", "both", "switch"])
def test_scores_of_different_models_are_not_compared_between_sites(model: str) -> None:
    settings = {"classes": {"a": 1}, "query": {"strategy": "entropy", "model": model}}
    Run.model_validate(settings)
    with pytest.raises(ValueError, match=f'with query.model = "{model}" those are of different models'):
        Run.model_validate({**settings, "budget": {"rule": "adaptive"}})
    asks_its_own = {**settings, "query": {"strategy": "logo", "model": model}}
    Run.model_validate({**asks_its_own, "budget": {"rule": "adaptive"}})  # logo scores by the federation's, whatever stands here


def test_a_cold_start_that_sites_name_themselves_is_not_chosen_as_well() -> None:
    chosen = {"classes": {"a": 1}, "query": {"cold_start": "typiclust"}}
    Run.model_validate(chosen)
    with pytest.raises(ValueError, match="has no first request to choose"):
        Run.model_validate({**chosen, "split": {"start": "foreground"}})
