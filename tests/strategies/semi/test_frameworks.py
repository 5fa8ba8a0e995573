"""The table of frameworks: what every one of them must do, and what a batch cannot hold."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from configs.schema import Train
from strategies.networks import build_network
from strategies.semi import FRAMEWORKS, Framework, losses, mean_teacher, unimatch
from strategies.semi.augment import Warp, draw_intensity, draw_warp
from strategies.semi.batch import Batch, Outcome, Time
from strategies.semi.mean_teacher import make_teacher

from monai.networks.layers.simplelayers import SkipConnection  # isort: skip  (after ours, which prepare torchvision)

ROOT = Path(__file__).parents[3]

SEMI = [name for name, framework in FRAMEWORKS.items() if framework.uses_unlabelled]
PEAK = Time(progress=0.5, ramp=1.0)


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained network is sure of nothing, so that UniMatch would have nothing to learn."""
    monkeypatch.setattr(unimatch, "THRESHOLD", 0.0)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers see no noise, which would differ with the place in the batch."""
    monkeypatch.setattr(mean_teacher, "NOISE_STD", 0.0)


class Pixelwise(nn.Module):
    """A network with a bottleneck, as UniMatch needs, that treats every pixel alone: it commutes with what moves pixels."""

    def __init__(self) -> None:
        super().__init__()
        below = SkipConnection(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh()))
        self.model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Tanh(), below, nn.Conv2d(8, 3, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(*, labelled: int = 2, unlabelled: int = 3, classes: int = 2) -> Batch:
    drawn = generator()
    images = torch.rand(labelled, 1, 32, 32, generator=drawn)
    labels = torch.randint(0, classes + 1, (labelled, 32, 32), generator=drawn)
    if not unlabelled:
        return Batch(images, labels)
    pool = torch.rand(unlabelled, 1, 32, 32, generator=drawn)
    warp = draw_warp(unlabelled, size=(32, 32), generator=drawn)
    return Batch(images, labels, pool, warp, draw_intensity(pool.shape, generator=drawn))


def chosen(batch: Batch, rows: list[int]) -> Batch:
    """The batch with these of its unlabelled images, each with its view."""
    assert batch.unlabelled is not None
    assert batch.warp is not None
    assert batch.intensity is not None
    intensity = type(batch.intensity)(*(value[rows] for value in vars(batch.intensity).values()))
    warp = Warp(batch.warp.theta[rows], batch.warp.size)
    return dataclasses.replace(batch, unlabelled=batch.unlabelled[rows], warp=warp, intensity=intensity)


def network(seed: int = 0, *, classes: int = 2, dropout: float = 0.0) -> nn.Module:
    return build_network("unet_tiny", in_channels=1, classes=classes, norm="instance", dropout=dropout, seed=seed)


def helpers_of(framework: Framework, *, classes: int = 2) -> dict[str, nn.Module]:
    """Helpers with weights of their own, so that there is something to be consistent with."""
    made = {name: network(7, classes=classes) for name in framework.helpers}
    return {name: make_teacher(made[name]) if kind == "average" else made[name] for name, kind in framework.helpers.items()}


def run(name: str, batch: Batch, student: nn.Module, helpers: dict[str, nn.Module] | None = None, time: Time = PEAK) -> Outcome:
    framework = FRAMEWORKS[name]
    helpers = helpers_of(framework) if helpers is None else helpers
    return framework.terms(batch, student, helpers, time=time, generator=generator(3))


def answers(outcome: Outcome) -> list[Tensor]:
    """What it says of the unlabelled images: the student's logits and the guess, where it looks at them."""
    both = (outcome.logits_unlabelled, outcome.teacher_probs)
    return [answer for answer in both if answer is not None]


def total(outcome: Outcome) -> Tensor:
    return torch.stack(list(outcome.losses.values())).sum()


def grads(loss: Tensor, network: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros(()) if gradient is None else gradient for gradient in found]


# ------------------------------------------------------------------------------------------------------------ the table


def test_the_table_says_what_each_framework_needs() -> None:
    told = {name: (dict(f.helpers), f.uses_unlabelled, f.weight, f.start, f.mixes_patients) for name, f in FRAMEWORKS.items()}
    assert told == {
        "supervised": ({}, False, 1.0, None, False),
        "mean_teacher": ({"teacher": "average"}, True, 0.1, None, False),
        "uncertainty_aware": ({"teacher": "average"}, True, 0.1, None, False),
        "cross_pseudo": ({"second": "peer"}, True, 1.0, None, False),
        "unimatch": ({}, True, 1.0, 4.0, True),
        "copy_paste": ({"teacher": "average"}, True, 1.0, 1.0, True),
    }


def test_a_file_and_a_line_of_the_table_make_a_framework() -> None:
    """What the table does not name is refused; a line more, and a configuration may name it."""
    code = """
import strategies.semi
strategies.semi.FRAMEWORKS["mine"] = strategies.semi.Framework("supervised", uses_unlabelled=False)
from configs.schema import Train
print(Train(framework="mine").framework, strategies.semi.FRAMEWORKS["mine"].terms.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mine", "strategies.semi.supervised"]
    with pytest.raises(ValueError, match="'copy_paste'"):
        Train(framework="mine")


def test_every_file_with_terms_is_in_the_table() -> None:
    files = (ROOT / "strategies" / "semi").glob("*.py")
    with_terms = {file.stem for file in files if "\ndef terms(" in file.read_text()}
    assert with_terms == {framework.file for framework in FRAMEWORKS.values()}


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize(("labelled", "unlabelled"), [(2, 3), (1, 3), (3, 1), (1, 1), (2, 0), (1, 0)])
@pytest.mark.parametrize("classes", [1, 3])
def test_every_framework_learns_from_every_batch(name: str, labelled: int, unlabelled: int, classes: int) -> None:
    """All terms are finite and reach the student; all that was promised about the unlabelled images is there."""
    batch = make_batch(labelled=labelled, unlabelled=unlabelled, classes=classes)
    student, helpers = network(classes=classes), helpers_of(FRAMEWORKS[name], classes=classes)
    for time in (Time(0.0, 0.0067), PEAK, Time(1.0, 1.0)):
        outcome = run(name, batch, student, helpers, time)
        looks = FRAMEWORKS[name].uses_unlabelled and unlabelled > 0
        pretrains = name == "copy_paste" and time.progress == 0
        assert ("consistency" in outcome.losses) == ((looks and not pretrains) or name == "cross_pseudo")
        assert {"supervised"} <= set(outcome.losses) <= {"supervised", "consistency"}
        for term, loss in outcome.losses.items():
            assert loss.shape == ()
            assert loss.isfinite()
            unsure = name == "uncertainty_aware" and term == "consistency" and time.ramp < 1
            assert any((g != 0).any() for g in grads(loss, student)) or unsure, term
        assert all(gradient.isfinite().all() for gradient in grads(total(outcome), student))
        shape = (unlabelled, classes + 1, 32, 32)
        for answer in (outcome.logits_unlabelled, outcome.teacher_probs):
            assert (answer is not None) == (unlabelled > 0), "SAM asks about them whether or not the framework looks"
            assert answer is None or tuple(answer.shape) == shape
        if outcome.logits_unlabelled is not None and outcome.teacher_probs is not None:
            assert any((g != 0).any() for g in grads(outcome.logits_unlabelled.square().sum(), student))
            assert not outcome.teacher_probs.requires_grad
            torch.testing.assert_close(outcome.teacher_probs.sum(1), torch.ones(unlabelled, 32, 32))


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_averages_never_learn_and_peers_do(name: str) -> None:
    student, helpers = network(), helpers_of(FRAMEWORKS[name])
    total(run(name, make_batch(), student, helpers)).backward()
    for helper, kind in FRAMEWORKS[name].helpers.items():
        for parameter in helpers[helper].parameters():
            assert (parameter.grad is not None) == (kind == "peer")


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_the_generator_decides_everything_and_the_global_one_is_left_alone(name: str, progress: float) -> None:
    student, batch, state = network(), make_batch(), torch.get_rng_state()
    first, second = (run(name, batch, student, time=Time(progress, 1.0)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first.losses[term], second.losses[term]) for term in first.losses)
    for one, other in zip(answers(first), answers(second), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_batch_and_the_networks_come_out_as_they_went_in(name: str) -> None:
    """Guesses are made in evaluation mode; a student left in it would train without its dropout."""
    student, helpers, batch = network(dropout=0.2), helpers_of(FRAMEWORKS[name]), make_batch()
    modes = {key: helper.training for key, helper in helpers.items()}
    before, weights = copy.deepcopy(batch), copy.deepcopy(student.state_dict())
    run(name, batch, student, helpers)
    assert all(module.training for module in student.modules())
    assert modes == {key: helper.training for key, helper in helpers.items()}
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())
    assert torch.equal(batch.images, before.images)
    assert torch.equal(batch.labels, before.labels)
    assert batch.unlabelled is not None
    assert before.unlabelled is not None
    assert torch.equal(batch.unlabelled, before.unlabelled)


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize("name", SEMI)
def test_what_is_said_of_unlabelled_images_does_not_depend_on_any_label(name: str) -> None:
    student, batch = network(), make_batch()
    other = dataclasses.replace(batch, labels=(batch.labels + 1) % 3)
    one, two = run(name, batch, student), run(name, other, student)
    assert not torch.equal(one.losses["supervised"], two.losses["supervised"])
    assert torch.equal(one.losses["consistency"], two.losses["consistency"])
    assert len(answers(one)) == 2
    assert all(torch.equal(a, b) for a, b in zip(answers(one), answers(two), strict=True))


@pytest.mark.usefixtures("sure", "quiet")
@pytest.mark.parametrize("name", SEMI)
def test_permuting_the_unlabelled_images_permutes_what_is_said_of_them(name: str) -> None:
    student, batch, order = network(), make_batch(), [2, 0, 1]
    one, two = run(name, batch, student), run(name, chosen(batch, order), student)
    assert one.teacher_probs is not None
    assert two.teacher_probs is not None
    torch.testing.assert_close(one.teacher_probs[order], two.teacher_probs)
    if name != "copy_paste":  # its answer is put together from mixed images
        assert one.logits_unlabelled is not None
        assert two.logits_unlabelled is not None
        torch.testing.assert_close(one.logits_unlabelled[order], two.logits_unlabelled, rtol=1e-4, atol=1e-5)
    if not FRAMEWORKS[name].mixes_patients:
        torch.testing.assert_close(one.losses["consistency"], two.losses["consistency"])


@pytest.mark.usefixtures("sure", "quiet")
@pytest.mark.parametrize("name", SEMI)
def test_patients_are_mixed_where_the_table_says_so_and_nowhere_else(name: str) -> None:
    """Where they are not, the loss of a batch is the mean of its images' losses, so that each can be clipped by itself."""
    student, batch = network(), make_batch()
    together = run(name, batch, student).losses["consistency"]
    alone = [run(name, chosen(batch, [row]), student).losses["consistency"] for row in range(3)]
    apart = torch.stack(alone).mean()
    assert torch.allclose(together, apart, rtol=1e-4) != FRAMEWORKS[name].mixes_patients


@pytest.mark.usefixtures("sure", "quiet")
@pytest.mark.parametrize("name", SEMI)
def test_answers_are_in_the_frame_of_the_warp_and_guesses_in_the_original(name: str) -> None:
    """A student that treats pixels alone, and helpers like it: its answer is the guess, mirrored as the warp says."""
    torch.manual_seed(0)
    student, drawn = Pixelwise(), generator(5)
    for parameter in student.parameters():
        nn.init.normal_(parameter, generator=drawn)
    helpers: dict[str, nn.Module] = {helper: make_teacher(student) for helper in FRAMEWORKS[name].helpers}
    mirrored = Warp(torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).repeat(3, 1, 1), (32, 32))
    batch = dataclasses.replace(make_batch(), warp=mirrored, intensity=None)
    assert batch.unlabelled is not None
    for time in (Time(0.0, 1.0), PEAK):
        outcome = run(name, batch, student, helpers, time)
        assert outcome.logits_unlabelled is not None
        assert outcome.teacher_probs is not None
        torch.testing.assert_close(outcome.teacher_probs, student(batch.unlabelled).softmax(1).detach())
        torch.testing.assert_close(outcome.logits_unlabelled.softmax(1), outcome.teacher_probs.flip(3))
        assert not torch.allclose(outcome.teacher_probs, outcome.teacher_probs.flip(3))


@pytest.mark.parametrize("name", SEMI)
def test_without_augmentation_every_framework_still_learns(name: str) -> None:
    batch = dataclasses.replace(make_batch(), warp=None, intensity=None)
    assert all(loss.isfinite() for loss in run(name, batch, network()).losses.values())


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_few_steps_reduce_the_supervised_loss(name: str) -> None:
    framework, student = FRAMEWORKS[name], network()
    helpers = helpers_of(framework)
    rows = torch.arange(32).view(1, -1, 1) + torch.tensor([0, 4, 8]).view(-1, 1, 1)
    labels = (rows // 12 % 3).expand(3, 32, 32).contiguous()
    images = labels.unsqueeze(1) / 3 + 0.05 * torch.rand(3, 1, 32, 32, generator=generator())
    batch = Batch(images[:2], labels[:2], images[2:])
    learning = [parameter for network in (student, *helpers.values()) for parameter in network.parameters()]
    optimiser = torch.optim.AdamW([parameter for parameter in learning if parameter.requires_grad], 1e-2)
    drawn, seen = generator(1), []
    for step in range(25):
        seen.append(float(losses.supervised(student(batch.images), batch.labels).detach()))
        outcome = framework.terms(batch, student, helpers, time=Time(step / 25, 1.0), generator=drawn)
        optimiser.zero_grad()
        total(outcome).backward()
        optimiser.step()
        for helper, kind in framework.helpers.items():
            if kind == "average":
                mean_teacher.update_teacher(helpers[helper], student, step)
    assert seen[-1] < 0.7 * seen[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_cuda_gives_the_losses_of_the_cpu(name: str, progress: float) -> None:
    """The generator stays on the CPU, so that both draw the same."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batch, student, helpers = make_batch(), network(), helpers_of(FRAMEWORKS[name])
    here = run(name, batch, student, helpers, Time(progress, 1.0))
    assert batch.unlabelled is not None
    there_batch = dataclasses.replace(
        batch, images=batch.images.cuda(), labels=batch.labels.cuda(), unlabelled=batch.unlabelled.cuda()
    )
    there_helpers = {helper: copy.deepcopy(network).cuda() for helper, network in helpers.items()}
    there = run(name, there_batch, copy.deepcopy(student).cuda(), there_helpers, Time(progress, 1.0))
    for term, loss in here.losses.items():
        torch.testing.assert_close(there.losses[term].cpu(), loss, rtol=1e-2, atol=1e-3)


# ------------------------------------------------------------------------------------------------- batches, times


@pytest.mark.parametrize("name", [name for name, framework in FRAMEWORKS.items() if not framework.uses_unlabelled])
def test_a_framework_that_uses_no_unlabelled_images_does_not_look_at_them(name: str) -> None:
    student, batch = network(), make_batch()
    assert batch.unlabelled is not None
    broken = dataclasses.replace(batch, unlabelled=torch.full_like(batch.unlabelled, float("nan")))
    first, second = (run(name, b, student).losses for b in (batch, broken))
    assert torch.equal(first["supervised"], second["supervised"])


def test_a_batch_has_no_room_for_labels_of_unlabelled_images() -> None:
    """The leak of the published code cannot be written: as many labels as labelled images, and no other field."""
    batch = make_batch()
    assert {field.name for field in dataclasses.fields(Batch)} == {
        "images",
        "labels",
        "unlabelled",
        "warp",
        "intensity",
        "loss",  # a function
    }
    with pytest.raises(ValueError, match="one for each labelled image"):
        dataclasses.replace(batch, labels=torch.zeros(5, 32, 32, dtype=torch.int64))


def test_a_batch_that_does_not_fit_is_refused() -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match="at least one image"):
        Batch(images=torch.zeros(0, 1, 32, 32), labels=torch.zeros(0, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match="int64"):
        dataclasses.replace(batch, labels=batch.labels.to(torch.uint8))
    with pytest.raises(ValueError, match="unlabelled must be"):
        dataclasses.replace(batch, unlabelled=torch.zeros(3, 2, 32, 32))
    with pytest.raises(ValueError, match="there are none"):
        dataclasses.replace(batch, unlabelled=None)


@pytest.mark.parametrize(("progress", "ramp"), [(-0.1, 1.0), (1.1, 1.0), (0.5, 0.0), (0.5, 1.1), (float("nan"), 1.0)])
def test_a_time_outside_of_the_run_is_refused(progress: float, ramp: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Time(progress, ramp)


def test_the_student_s_view_is_warped_then_changed_in_intensity() -> None:
    batch = make_batch()
    assert batch.unlabelled is not None
    assert batch.warp is not None
    assert batch.intensity is not None
    view = batch.student_view()
    assert view is not None
    assert torch.equal(view, batch.intensity.images(batch.warp.images(batch.unlabelled)))
    plain = dataclasses.replace(batch, warp=None, intensity=None)
    assert plain.student_view() is plain.unlabelled
    assert make_batch(unlabelled=0).student_view() is None
