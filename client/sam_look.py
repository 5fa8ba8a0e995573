"""What SAM says of a site's own images, for people of that hospital to look at: `wardround site sam`.

Asked with the settings of the site's last round, in every class, trusted or not, by whoever asks in training: the averages
as that round began, or the student and its peers as it left them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.faults import SiteFault
from client.models import LocalModels, load_models
from client.plan import Plan, network_with
from client.predict import batches
from client.sam_teacher import SAM, Asked, SamTeacher
from client.site import Site, Slices, own_channels
from client.upright import Turn, upright
from configs.schema import Sam
from strategies.global_model import parts_of
from strategies.metrics import dice_by_class
from strategies.networks import class_map, mean_probabilities
from strategies.records import Case
from strategies.semi import FRAMEWORKS
from strategies.semi.sam_gate import agreement, stability
from strategies.semi.sam_target import target_from
from strategies.semi.sam_trust import advantages


@dataclass(frozen=True)
class Answer:
    """One question to SAM and what it said; positions in pixels of the slice as it is shown, where pixel i covers [i, i + 1].

    Attributes:
        class_: 1..C.
        box: left, top, right, bottom.
        clicks: (N, 2) x and y; `inside`: (N,), whether a click says "of the object" or "not of it".
        mask: (H, W) bool.
        doubts: why the gate does not let it pass, in words; empty where it does.
    """

    class_: int
    box: tuple[float, ...]
    clicks: NDArray[np.float32]
    inside: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """One slice on the network's grid, turned as a radiologist looks at it.

    Attributes:
        image: (H, W) in [0, 1], or (H, W, 3).
        prediction: (H, W) uint8, the classes that SAM is asked about: the specialist's, smoothed over slices with `sam.beside`.
        truth: the same of an expert; None of an unlabelled slice.
        answers: class by class, the largest component first.
        target: (H, W) uint8 with IGNORE, what the specialist would be taught; all of it IGNORE where SAM is not trusted.
        dice: by class (C,), of the prediction, and of the prediction with the masks that pass in place of the components
            that were asked about; NaN where neither truth nor prediction shows a class. None without a truth.
    """

    image: NDArray[np.float32]
    prediction: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    answers: tuple[Answer, ...]
    target: NDArray[np.uint8]
    dice: tuple[NDArray[np.float64], NDArray[np.float64]] | None


@dataclass(frozen=True)
class Looks:
    """Some slices of a site after a round; `trust` is how much SAM counted in it, by class, `unused` why it was not asked.

    Where the round did not judge SAM, trust is what it would earn now. `unused` is empty where the round asked it.
    """

    cycle: int
    round: int
    classes: tuple[str, ...]
    trust: Mapping[str, float]
    unused: str
    slices: tuple[Look, ...]


def look_at(site: Site, *, count: int) -> Looks:
    """Ask SAM about `count` slices (fewer if there are not so many), evenly spread over those that show a class.

    They are of validation patients, whose truth is known; of a site without any, unlabelled ones.

    Raises:
        SiteFault: the site has not trained yet, no slice shows anything, or the run's prompts say nothing.
        SamUnavailable: its checkpoint can't be read.
    """
    models = load_models(site.workspace / "models" / "local.safetensors")
    if models is None or not models.settings:
        raise SiteFault(
            "bad-request",
            f"{site.name} has kept no round of training with its settings, so there is no model that could ask SAM: look again "
            "after its next round",
        )
    torch.set_num_threads(site.settings.threads)
    plan = Plan.read(models.settings)
    if not (plan.sam.box or plan.sam.positives or plan.sam.mask):
        raise SiteFault("bad-request", "the run does not ask SAM, and its sam.box, positives and mask leave nothing to ask with")
    slices = Slices(site, plan.preprocess)
    specialists = _specialists(site, plan, models)
    held_out = site.store.cases("validation")
    cases = _some(site, plan, slices, specialists, held_out, count)
    paths = {image.id: Path(image.path) for image in site.store.images()}
    turn_of = {image: upright(site.read(paths[image]).affine) for image in {case.image for case in cases}}
    turns = [turn_of[case.image] for case in cases]
    teacher = _teacher(site, plan, models, slices, specialists)
    told = models.reply.get("trust")
    trust = teacher.trust if told is None else torch.tensor([0.0, *told])
    teacher.trust = torch.ones_like(trust)
    images = slices.take(cases).to(site.device)
    asked = teacher.ask(cases, images, mean_probabilities(specialists, images))
    target = target_from(asked.prompts, asked.masks, asked.kept, asked.probs, trust=trust)
    prediction = class_map(asked.probs)
    truth = slices.truths(cases).to(site.device, torch.int64) if held_out else None
    dice = None if truth is None else _dice(asked, prediction, truth, classes=len(plan.classes))
    own = own_channels(images, plan.preprocess)
    answers = _answers(asked, plan.sam, turns)
    return Looks(
        cycle=models.cycle,
        round=models.round,
        classes=tuple(plan.classes),
        trust=dict(zip(plan.classes, trust[1:].tolist(), strict=True)),
        unused=_why_unused(plan, models),
        slices=tuple(
            Look(
                image=turn.plane(own[row].movedim(0, -1).squeeze(-1).cpu().numpy()),
                prediction=turn.plane(_bytes(prediction[row])),
                truth=None if truth is None else turn.plane(_bytes(truth[row])),
                answers=tuple(answer for image, answer in answers if image == row),
                target=turn.plane(_bytes(target.classes[row])),
                dice=None if dice is None else (dice[0][row], dice[1][row]),
            )
            for row, turn in enumerate(turns)
        ),
    )


def _why_unused(plan: Plan, models: LocalModels) -> str:
    if not (plan.sam.enabled and plan.sam.weight > 0):
        return "This run does not ask SAM"
    if not plan.sam.may_count(step=models.step, total_steps=models.total_steps):
        return f"That round was in the first {100 * plan.sam.start:g} % of training (sam.start), in which SAM is not asked"
    return "" if models.reply.get("unlabelled", 1) else "Nothing was unlabelled in that round, so SAM was not asked"


def _specialists(site: Site, plan: Plan, models: LocalModels) -> list[nn.Module]:
    """Who asks SAM: the framework's averages where it has any, else the student and its peers."""
    given = parts_of(models.model)
    averages = [name for name, kind in FRAMEWORKS[plan.train.framework].helpers.items() if kind == "average"]
    states = [models.helpers[name] for name in averages] or [given.specialist, *given.peers.values()]
    return [network_with(plan, state).to(site.device).eval() for state in states]


def _some(
    site: Site, plan: Plan, slices: Slices, specialists: Sequence[nn.Module], held_out: Sequence[Case], count: int
) -> list[Case]:
    """Evenly spread ones of those that show a class: held-out ones by their truth, else unlabelled ones as they are seen."""
    cases = held_out or site.store.cases("unlabelled", "requested")
    if not cases:
        raise SiteFault("bad-data", f"{site.name} has no validation patient and nothing unlabelled, so no slice to look at")
    shows = [
        (slices.truths(part) > 0 if held_out else class_map(mean_probabilities(specialists, images)) > 0).flatten(1).any(1).cpu()
        for part, images in batches(slices, cases, device=site.device)
    ]
    found = np.flatnonzero(torch.cat(shows).numpy())
    if not len(found):
        raise SiteFault("bad-data", f"{site.name} has no slice to look at: none seems to show {' or '.join(plan.classes)}")
    places = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(np.int64)
    return [cases[row] for row in found[places]]


def _teacher(site: Site, plan: Plan, models: LocalModels, slices: Slices, specialists: Sequence[nn.Module]) -> SamTeacher:
    """SAM with what it has learned, or without where that adds less, and trusted as far as it helps."""
    labelled = site.store.cases("labelled")

    def take(rows: Sequence[int] | NDArray[np.int64]) -> tuple[list[Case], Tensor, Tensor]:
        cases = [labelled[row] for row in rows]
        return cases, slices.take(cases).to(site.device), slices.labels(cases).to(site.device, torch.int64)

    teacher = SamTeacher(
        site,
        plan,
        (models.cycle, models.round),
        adapter=parts_of(models.model).adapter,
        cycle_adapter=models.helpers.get(SAM),
        slices=slices,
        specialists=specialists,
        tidy=False,
    )
    teacher.meet(labelled, take)
    return teacher


def _dice(asked: Asked, prediction: Tensor, truth: Tensor, *, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(B, C) each: before and after the masks that pass take the place of what was asked about."""
    pairs = zip(prediction.cpu().numpy(), truth.cpu().numpy(), strict=True)
    before = np.stack([dice_by_class(seen, real, classes=classes) for seen, real in pairs])
    change = advantages(prediction, asked.prompts, asked.masks, asked.kept, truth, classes=classes).double().cpu().numpy()
    return before, before + np.nan_to_num(change)


def _answers(asked: Asked, settings: Sam, turns: Sequence[Turn]) -> list[tuple[int, Answer]]:
    """Each with the row of its image; `turns` are those of the images."""
    prompts = asked.prompts.to("cpu")
    masks, components = asked.masks.cpu(), prompts.components
    marks = {
        "predicted IoU": (asked.iou.cpu(), settings.min_iou),
        "agreement": (agreement(masks, components), settings.min_agreement),
    }
    if asked.moved is not None:
        marks["stability"] = stability(masks, asked.moved.cpu()), settings.min_stability
    found = []
    for row in range(len(prompts)):
        doubts = [
            f"{what} {_below(float(of[row]), least)} < {least:g}"
            for what, (of, least) in marks.items()
            if least > 0 and of[row] < least
        ]
        if not masks[row].any():
            doubts = ["empty"]
        given, image = prompts.point_labels[row] >= 0, int(prompts.image_index[row])
        turn, shape = turns[image], tuple(masks.shape[1:])
        corners = turn.points(prompts.boxes[row].view(2, 2).numpy(), shape=shape)
        answer = Answer(
            class_=int(prompts.class_index[row]),
            box=(*corners.min(0).tolist(), *corners.max(0).tolist()),
            clicks=turn.points(prompts.points[row][given].numpy(), shape=shape),
            inside=(prompts.point_labels[row][given] == 1).numpy(),
            mask=turn.plane(masks[row].numpy()),
            doubts=tuple(doubts),
        )
        found.append((image, answer))
    return found


def _below(value: float, least: float) -> str:
    """With two decimals, or as many as it takes to be below `least` in print too."""
    return next((text for digits in range(2, 8) if float(text := f"{value:.{digits}f}") < least), f"{value}")


def _bytes(classes: Tensor) -> NDArray[np.uint8]:
    return classes.to("cpu", torch.uint8).numpy()
