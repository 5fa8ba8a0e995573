"""One round of local training: a fixed number of steps from the global weights, on labelled and unlabelled cases.

    loss = supervised + λ(t)·consistency + μ·λ(T − t)·SAM + ½·mu_prox·‖w − w_global‖²

where λ(t) is a ramp or a straight line to λmax, as the framework has it, and SAM's term begins with the first round after
`sam.start`. Time t counts the local steps since the start of the run (of the cycle, where each begins anew) and comes with the
message, so no ramp starts again at a round. The optimiser is new in every round; what learned crosses (student, peer,
SAM's adapter), averages (EMA teacher) stay here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.plan import Plan, network_with
from client.sam_teacher import SAM, SamTeacher
from client.site import Site, Slices
from strategies.global_model import GlobalModel, parts_of
from strategies.randomness import derive, numpy_rng, torch_generator
from strategies.records import Case, Weights
from strategies.semi import FRAMEWORKS, Framework
from strategies.semi.augment import Intensity, Warp, draw_intensity, draw_warp
from strategies.semi.batch import Batch, Time
from strategies.semi.losses import evidential, supervised
from strategies.semi.mean_teacher import carry_over, make_teacher, update_teacher
from strategies.semi.ramps import line, ramp_down, ramp_up
from strategies.semi.sam_target import sam_loss

State = dict[str, Tensor]

LOSSES = {"softmax": supervised, "evidential": evidential}
"""What a network learns labels by, as its head has it."""

OF_UNLABELLED = ("consistency", "sam")
"""Terms that are of the unlabelled images of a batch, where it has any."""


@dataclass(frozen=True)
class Trained:
    """What a round leaves: what learned and the averages (on the CPU), mean losses by term, and what it learned from.

    `model` is what crosses, as `GlobalModel.arrays`. `helpers` stay: of an average the state that the round began with, as
    what the site's own student did to it since is not kept, and what `SamTeacher` keeps.
    `patients` are those behind each loss: who was drawn, and not who could have been.
    `trust` is how much SAM counted, by class, and `judges` the patients that showed it; None and 0 where SAM was not judged: it
    takes no part, has not begun yet, or nothing was left that it could have been asked about.
    """

    model: State
    helpers: dict[str, State]
    losses: dict[str, float]
    patients: dict[str, int]
    labelled: int
    unlabelled: int
    trust: list[float] | None
    judges: int
    seconds: float


@dataclass(frozen=True)
class When:
    """Where a round is in the run; everything random follows from the seed and from this."""

    cycle: int
    round: int
    step: int
    total_steps: int


def train(
    site: Site, plan: Plan, when: When, weights: Weights, *, helpers: Mapping[str, Mapping[str, Tensor]], since: int = 0
) -> Trained:
    """Train a round from the global `weights`.

    `helpers` are those that the site's last round left, none at the start; `since` is the step that it began with, and need
    not be a round ago: a site may have been away.

    Raises:
        FloatingPointError: the loss or the weights are no longer finite.
        SiteFault: the weights or settings don't fit.
    """
    started = time.monotonic()
    framework = FRAMEWORKS[plan.train.framework]
    labelled = site.store.cases("labelled")
    unlabelled = site.store.cases("unlabelled", "requested")
    given = parts_of(weights)
    adapter = {name: torch.from_numpy(array.copy()) for name, array in given.adapter.items()}
    student = network_with(plan, given.specialist).to(site.device).train()
    peers = {
        name: network_with(plan, given.peers.get(name, {})).to(site.device).train()
        for name, kind in framework.helpers.items()
        if kind == "peer"
    }
    averages = _averages(framework, student, helpers, since=since, step=when.step)
    carried = {name: _state(average) for name, average in averages.items()}  # what the next round's average goes on from
    draw = _Draw(site, plan, when, labelled)
    sam = None
    may_count = plan.sam.may_count(step=when.step, total_steps=when.total_steps) and bool(unlabelled)
    if plan.sam.enabled and (adapter or may_count):
        sam = SamTeacher(
            site,
            plan,
            (when.cycle, when.round),
            adapter=adapter,
            cycle_adapter=helpers.get(SAM),
            slices=draw.slices,
            specialists=[*averages.values()] or [student, *peers.values()],
        )
    if sam is not None and may_count:
        sam.meet(labelled, draw.labelled)
        if sam.verdict:
            site.log.info(sam.verdict)
    elif plan.sam.enabled and unlabelled and plan.sam.weight > 0:
        site.log.info(f"cycle {when.cycle}, round {when.round}: SAM is not asked before {100 * plan.sam.start:g} % of the steps")
    asked = sam is not None and may_count and sam.is_trusted
    learning = [parameter for network in (student, *peers.values()) for parameter in network.parameters()]
    anchor = [parameter.detach().clone() for parameter in learning] if plan.train.proximal_mu else []
    optimiser = torch.optim.AdamW(learning, plan.train.learning_rate, weight_decay=plan.train.weight_decay, fused=True)
    totals: dict[str, list[Tensor]] = {}
    behind: dict[str, set[str]] = {}
    with torch.random.fork_rng(devices=[site.device] if site.device.type == "cuda" else []):
        torch.manual_seed(derive(plan.seed, site.name, when.cycle, when.round, "dropout"))
        for index, (batch, known, cases) in enumerate(draw.batches(unlabelled if framework.uses_unlabelled or asked else [])):
            step = when.step + index
            now = _time(plan, step, when.total_steps)
            outcome = framework.terms(batch, student, {**averages, **peers}, time=now, generator=draw.generator)
            terms = dict(outcome.losses)
            if sam is not None and asked and index % plan.sam.every == 0:
                assert outcome.teacher_probs is not None
                assert outcome.logits_unlabelled is not None
                assert batch.unlabelled is not None
                target = sam.target(cases, batch.unlabelled, outcome.teacher_probs)
                terms["sam"] = sam_loss(outcome.logits_unlabelled, target if batch.warp is None else target.warped(batch.warp))
            if anchor:
                terms["proximal"] = _distance(learning, anchor)
            total = _weighted(terms, framework, plan, step, when.total_steps)
            optimiser.param_groups[0]["lr"] = plan.train.learning_rate * line(
                when.total_steps - step, total=when.total_steps, start=plan.train.learning_rate_end
            )
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()
            for average in averages.values():
                update_teacher(average, student, step)
            for name, term in {**terms, "total": total}.items():
                totals.setdefault(name, []).append(term.detach())
                of = cases if cases and name in OF_UNLABELLED else known
                behind.setdefault(name, set()).update(case.patient for case in of)
    if sam is not None:
        adapter, learned, behind["adapter"] = sam.learn(labelled, draw.labelled)
        if learned is not None:
            totals["adapter"] = [learned]
    losses = {name: float(torch.stack(values).mean()) for name, values in totals.items()}
    for name, mean in losses.items():
        if not np.isfinite(mean):
            raise FloatingPointError(
                f"the {name} loss became {mean} in cycle {when.cycle}, round {when.round}, so nothing of it is sent. Lower "
                f"train.learning_rate ({plan.train.learning_rate:g}) in the run's configuration; if {site.name} alone diverges, "
                "look at its labelled images and their masks"
            )
    return Trained(
        model=GlobalModel(_state(student), {name: _state(peer) for name, peer in peers.items()}, adapter).arrays,
        # before SAM is asked nothing of it is kept: the encoder of a cycle is the one that was first asked in it
        helpers=carried | (sam.kept if sam is not None and may_count else {}),
        losses=losses,
        patients={name: len(behind[name]) for name in losses},
        labelled=len(labelled),
        unlabelled=len(unlabelled),
        trust=[round(value, 4) for value in sam.trust[1:].tolist()] if sam is not None and sam.judges else None,
        judges=0 if sam is None else sam.judges,
        seconds=time.monotonic() - started,
    )


def _ramp_length(plan: Plan, total_steps: int) -> float:
    return max(1.0, plan.train.ramp_fraction * total_steps)


def _time(plan: Plan, step: int, total_steps: int) -> Time:
    """Where `step` is in the run, as frameworks see it."""
    return Time(progress=min(1.0, step / total_steps), ramp=ramp_up(step, length=_ramp_length(plan, total_steps)))


def _weighted(terms: dict[str, Tensor], framework: Framework, plan: Plan, step: int, total_steps: int) -> Tensor:
    """The total loss at time `step`."""
    length, peak = _ramp_length(plan, total_steps), plan.train.consistency_weight * framework.weight
    share = ramp_up(step, length=length)
    down = min(length, max(1.0, (1 - plan.sam.start) * total_steps))  # or it would begin on its way down
    factors = {
        "supervised": 1.0,
        "consistency": peak * (share if framework.start is None else line(step, total=total_steps, start=framework.start)),
        "sam": plan.sam.weight * ramp_down(step, total=total_steps, length=down),
        "proximal": plan.train.proximal_mu / 2,
    }
    return torch.stack([factors[name] * value for name, value in terms.items()]).sum()


def _averages(
    framework: Framework, student: nn.Module, states: Mapping[str, Mapping[str, Tensor]], *, since: int, step: int
) -> dict[str, nn.Module]:
    """The framework's averages, taken on from the last round's or new."""
    averages = {name: make_teacher(student) for name, kind in framework.helpers.items() if kind == "average"}
    for name in averages.keys() & states.keys():
        carry_over(averages[name], states[name], since=since, step=step)
    return averages


def _distance(weights: Sequence[Tensor], anchor: Sequence[Tensor]) -> Tensor:
    """‖w − w_global‖² (FedProx, Li et al., MLSys 2020)."""
    return torch.stack([(w - w0).square().sum() for w, w0 in zip(weights, anchor, strict=True)]).sum()


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


class _Draw:
    """The batches of a round: cases in shuffled passes, augmented on the device."""

    def __init__(self, site: Site, plan: Plan, when: When, labelled: Sequence[Case]) -> None:
        self.slices = Slices(site, plan.preprocess)
        self.generator = torch_generator(plan.seed, site.name, when.cycle, when.round, "augment")
        self._rng = numpy_rng(plan.seed, site.name, when.cycle, when.round, "batches")
        self._plan, self._device = plan, site.device
        self._labelled = labelled
        self._masks = self.slices.labels(labelled)

    def labelled(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[list[Case], Tensor, Tensor]:
        """The labelled cases of some rows (one at least), their images (N, K, H, W) and labels (N, H, W) int64."""
        cases = [self._labelled[row] for row in rows]
        return cases, self.slices.take(cases).to(self._device), self._masks[torch.as_tensor(rows)].to(self._device, torch.int64)

    def batches(self, unlabelled: Sequence[Case]) -> Iterator[tuple[Batch, list[Case], list[Case]]]:
        """`local_steps` batches, each with the labelled cases and those of `unlabelled` in it."""
        train = self._plan.train
        of_labelled = _passes(len(self._labelled), train.batch_labelled, train.local_steps, self._rng)
        of_unlabelled = _passes(len(unlabelled), train.batch_unlabelled, train.local_steps, self._rng)
        for rows, others in zip(of_labelled, of_unlabelled, strict=True):
            known, images, labels = self.labelled(rows)
            cases = [unlabelled[row] for row in others]
            others_seen = self.slices.take(cases).to(self._device) if cases else None
            warp, intensity = self._view(images)
            if warp is not None and intensity is not None:
                images, labels = intensity.images(warp.images(images)), warp.labels(labels)
            warp, intensity = (None, None) if others_seen is None else self._view(others_seen)
            yield Batch(images, labels, others_seen, warp, intensity, LOSSES[self._plan.network.head]), known, cases

    def _view(self, images: Tensor) -> tuple[Warp | None, Intensity | None]:
        if not self._plan.train.augment:
            return None, None
        size = (images.shape[-2], images.shape[-1])
        warp = draw_warp(len(images), size=size, generator=self.generator, flip=self._plan.train.flip)
        return warp, draw_intensity(images.shape, generator=self.generator)


def _passes(count: int, batch: int, steps: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`steps` batches of row numbers: the rows in shuffled passes, so that none is seen twice before all were seen once."""
    if count == 0:
        return [np.zeros(0, dtype=np.int64)] * steps
    passes = [rng.permutation(count) for _ in range(-(-batch * steps // count))]
    return list(np.concatenate(passes)[: batch * steps].reshape(steps, batch))
