"""Trust follows what SAM has shown: nothing shown, nothing trusted; no advantage, no weight; more patients, more trust."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

from strategies.semi.losses import IGNORE
from strategies.semi.prompts import prompts_from
from strategies.semi.sam_trust import advantages, gain_from, judges_from, trust_from

SIDE = 24


def square(top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    mask[top:bottom, left:right] = 1
    return mask


def one_hot(classes: Tensor, *, of: int) -> Tensor:
    return torch.nn.functional.one_hot(classes, of + 1).movedim(-1, 1).float()


def dice(mask: Tensor, truth: Tensor) -> float:
    mask, truth = mask.bool(), truth.bool()
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def test_the_advantage_is_the_difference_that_sams_masks_make_by_image_and_class() -> None:
    predicted, better, other = square(4, 4, 12, 12), square(4, 4, 12, 14), 2 * square(14, 14, 22, 22)
    prediction = torch.stack([predicted + other, predicted])
    truth = torch.stack([square(4, 4, 12, 16) + other, square(4, 4, 12, 12)])
    prompts = prompts_from(one_hot(prediction, of=2))
    assert prompts.class_index.tolist() == [1, 2, 1]
    masks = torch.stack([better, other, better]).bool()
    got = advantages(prediction, prompts, masks, torch.ones(3, dtype=torch.bool), truth, classes=2)
    gain, loss = dice(better, truth[0] == 1) - dice(predicted, truth[0] == 1), dice(better, predicted) - 1
    assert gain > 0 > loss
    assert got[:, 0].tolist() == pytest.approx([gain, loss])
    assert float(got[0, 1]) == 0
    assert math.isnan(float(got[1, 1])), "the class was not asked for there"


def test_masks_that_do_not_pass_the_gate_say_nothing_and_other_components_stay() -> None:
    first, second = square(2, 2, 8, 8), square(12, 12, 22, 22)
    prediction = (first + second)[None]
    prompts = prompts_from(one_hot(prediction, of=1))
    masks = torch.stack([second, torch.zeros_like(first)]).bool()  # the larger comes first; the other would be erased
    truth = prediction.clone()
    kept = advantages(prediction, prompts, masks, torch.tensor([True, False]), truth, classes=1)
    assert float(kept) == 0
    erased = advantages(prediction, prompts, masks, torch.tensor([True, True]), truth, classes=1)
    assert float(erased) == pytest.approx(dice(second, truth[0]) - 1)
    silent = advantages(prediction, prompts, masks, torch.tensor([False, False]), truth, classes=1)
    assert math.isnan(float(silent))


def test_a_mask_that_does_not_pass_the_gate_is_not_drawn_either() -> None:
    """Neither what is right of it nor what is wrong counts; its component stays as the specialist drew it."""
    first, second = square(2, 2, 8, 8), square(12, 12, 22, 22)
    prediction = (first + second)[None]
    prompts = prompts_from(one_hot(prediction, of=1))
    answers = torch.stack([square(12, 12, 22, 20), square(2, 2, 8, 20)]).bool()  # of the second, which is larger, and the first
    kept = torch.tensor([True, False])
    for truth in (prediction, prediction | square(2, 2, 8, 20)):
        shown = advantages(prediction, prompts, answers, kept, truth, classes=1)
        expected = dice(first + square(12, 12, 22, 20), truth[0]) - dice(prediction[0], truth[0])
        assert float(shown) == pytest.approx(expected)


def test_ignored_pixels_of_the_truth_count_nowhere() -> None:
    prediction = square(4, 4, 12, 12)[None]
    truth = prediction.clone()
    truth[:, :, 12:] = IGNORE
    prompts = prompts_from(one_hot(prediction, of=1))
    spilled = square(4, 4, 12, 20)[None].bool()
    assert float(advantages(prediction, prompts, spilled, torch.ones(1, dtype=torch.bool), truth, classes=1)) == 0


def test_nothing_shown_is_not_trusted() -> None:
    assert trust_from(torch.zeros(0, 3), []).tolist() == [0, 0, 0, 0]
    assert trust_from(torch.full((2, 1), torch.nan), ["a", "b"]).tolist() == [0, 0]


def test_the_formula_by_hand() -> None:
    shown = torch.tensor([[0.1], [0.2], [0.0]])
    mean = 0.1
    spread = (4 * 0.01 + 0.01 + 0.01) / (4 + 3)
    shrunk = 3 * mean / 4
    expected = 2 * norm.cdf(shrunk * math.sqrt(4) / math.sqrt(spread)) - 1
    assert float(trust_from(shown, ["a", "b", "c"])[1]) == pytest.approx(expected, rel=1e-5)


@given(st.lists(st.floats(-1, 0), min_size=1, max_size=8))
def test_no_advantage_no_weight(shown: list[float]) -> None:
    values = torch.tensor(shown)[:, None]
    assert float(trust_from(values, [str(i) for i in range(len(shown))])[1]) == 0


@given(st.floats(0.01, 0.5), st.integers(1, 20))
def test_trust_grows_with_the_patients_that_agree(advantage: float, patients: int) -> None:
    def trust(count: int) -> float:
        return float(trust_from(torch.full((count, 1), advantage), [str(i) for i in range(count)])[1])

    assert 0 < trust(patients) <= trust(patients + 1) <= 1
    assert trust(200) > 0.75


def test_slices_of_one_patient_are_one_piece_of_evidence() -> None:
    many = trust_from(torch.full((30, 1), 0.05), ["a"] * 30)
    one = trust_from(torch.full((1, 1), 0.05), ["a"])
    assert torch.allclose(many, one)


@given(st.permutations(range(6)))
def test_the_order_of_images_does_not_matter(order: list[int]) -> None:
    shown = torch.linspace(-0.1, 0.3, 12).view(6, 2)
    shown[2, 0] = torch.nan
    patients = ["a", "a", "b", "c", "b", "d"]
    assert torch.allclose(trust_from(shown[order], [patients[i] for i in order]), trust_from(shown, patients), atol=1e-6)


def test_a_class_is_trusted_for_what_was_shown_of_it_alone() -> None:
    """What SAM adds to one class is no reason to follow it in another, which it harms."""
    helped, harmed = torch.full((4, 1), 0.2), torch.full((4, 1), -0.2)
    trust = trust_from(torch.cat([helped, harmed], dim=1), list("abcd"))
    assert trust[0] == trust[2] == 0
    assert torch.equal(trust[1:2], trust_from(helped, list("abcd"))[1:])
    assert float(trust[1]) > 0.5


def test_rows_and_patients_must_match() -> None:
    with pytest.raises(ValueError, match="2 rows of advantages for 1 patients"):
        trust_from(torch.zeros(2, 1), ["a"])


def test_as_many_judge_as_stand_behind_the_class_with_the_fewest() -> None:
    """A trust that one patient alone made would tell of that patient."""
    nan = float("nan")
    shown = torch.tensor([[0.1, nan, nan], [0.2, 0.2, nan], [0.1, 0.3, nan], [nan, nan, nan]])
    assert judges_from(shown, ["a", "b", "b", "c"]) == 1, "class 2 rests on b"
    assert judges_from(shown[:, :1], ["a", "b", "b", "c"]) == 2
    assert judges_from(shown[:, 2:], ["a", "b", "b", "c"]) == 3, "nobody saw anything: no trust, which tells of nobody"


def test_a_gain_is_the_sum_over_the_classes_that_are_helped() -> None:
    nan = float("nan")
    shown = torch.tensor([[0.3, -0.2, nan], [0.1, -0.4, nan], [nan, 0.3, 0.2]])
    assert gain_from(shown, ["a", "a", "b"]) == pytest.approx(0.2 / 2 + 0.0 + 0.2 / 2), (
        "a's images are one; b alone knows class 3"
    )
    assert gain_from(torch.zeros(0, 2), []) == 0.0
