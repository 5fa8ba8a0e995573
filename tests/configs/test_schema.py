"""What settings mean together: in which rounds SAM may count."""

from __future__ import annotations

from fractions import Fraction

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
