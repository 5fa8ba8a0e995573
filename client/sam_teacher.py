"""SAM's part in a round: it shows what it can where the truth is known, answers the specialist's prompts, and may learn.

Embeddings are computed once and kept; prompts are decoded in batches at every step. Draws are SAM's own, so that a SAM
that is not trusted leaves the rest of the round bit-identical.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.faults import SiteFault
from client.plan import Plan
from client.sam import Sam, load_sam
from client.sam_adapt import BATCH, Lesson, fold, train_adapter
from client.sam_cache import EmbeddingCache
from client.site import Site, Slices, own_channels
from strategies.networks import class_map, mean_probabilities
from strategies.randomness import numpy_rng, torch_generator
from strategies.records import Case
from strategies.semi.prompts import Prompts, jittered, mask_prompts, prompts_from
from strategies.semi.sam_gate import gate
from strategies.semi.sam_target import Target, target_from
from strategies.semi.sam_trust import advantages, gain_from, judges_from, trust_from

SAM = "sam"
"""Under this name the adapter whose encoder a cycle uses stays at the site between its rounds."""

TRUST_CASES = 32
"""Cases with a known mask, drawn anew in every round, on which SAM shows what it adds."""

TRUST_BATCH = 16
"""Of which so many are looked at together."""

Take: TypeAlias = Callable[[Sequence[int] | NDArray[np.int64]], tuple[list[Case], Tensor, Tensor]]
"""From rows of the labelled cases to the cases, their images (N, K, H, W) and their labels (N, H, W) int64."""


@dataclass(frozen=True)
class Asked:
    """What SAM was asked about a batch of B images, P prompts in all, and what it said.

    Attributes:
        probs: (B, C+1, H, W), what the prompts were made from: the prediction, or that smoothed with those of the slices
            beside.
        masks: (P, H, W) bool; `iou`: (P,), how good SAM expects them to be.
        moved: (P, H, W) bool, the answers to jittered prompts; None where stability is not asked for.
        kept: (P,) bool, which masks pass the gate.
    """

    prompts: Prompts
    probs: Tensor
    masks: Tensor
    iou: Tensor
    moved: Tensor | None
    kept: Tensor


class SamTeacher:
    """The generalist of one site for one round. What it says is made from images and the specialist alone.

    Args:
        when: cycle and round.
        adapter: what the federation trained of SAM so far, by name; empty where nothing is trained.
        cycle_adapter: with `adapt = "lora"`, the adapter that was first asked in this cycle, if a round before this one
            asked: its encoder embeds the images until the cycle ends.
        slices: where the images of cases come from.
        specialists: whose mean prediction is compared with SAM, the one that SAM is asked with; and who predict slices
            beside the asked ones. Their mode is left as it is.
        tidy: whether embeddings by older adapters are removed; who only looks leaves them to the round that may be running.

    Raises:
        SiteFault: the site's checkpoint is not of the size that the run adapts.
    """

    def __init__(
        self,
        site: Site,
        plan: Plan,
        when: tuple[int, int],
        *,
        adapter: Mapping[str, Tensor],
        cycle_adapter: Mapping[str, Tensor] | None,
        slices: Slices,
        specialists: Sequence[nn.Module],
        tidy: bool = True,
    ) -> None:
        self._site, self._plan, self._settings, self._when = site, plan, plan.sam, when
        self._slices, self._specialists = slices, specialists
        self._base = load_sam(site.settings.sam_checkpoint, device=site.device)
        if adapter and self._base.name != plan.sam.size:
            raise SiteFault(
                "sam-unavailable",
                f"the run adapts a SAM of size {plan.sam.size}, but {site.settings.sam_checkpoint} is a {self._base.name}: "
                f"set sam_checkpoint in site.toml to a checkpoint of that size, or sam.size = {self._base.name!r} in the run",
            )
        self._adapter = dict(adapter)
        self.kept: dict[str, dict[str, Tensor]] = {}
        """What must stay at the site until the next round, once SAM is asked."""
        learned = adapter
        if plan.sam.adapt == "lora":
            learned = self.kept[SAM] = dict(adapter if cycle_adapter is None else cycle_adapter)
        self._sam = self._base.adapted(learned, seed=plan.seed)
        self._cache = _cache(site, self._sam, adapted=plan.sam.adapt == "lora", tidy=tidy)
        self._has_learned = any(bool((value != 0).any()) for value in learned.values())
        self._generator = torch_generator(plan.seed, site.name, *when, "sam")
        self._calls = 0
        self.trust = torch.ones(len(plan.classes) + 1)
        """(C + 1,) in [0, 1]: how much SAM counts, by class; full until `meet` says otherwise."""
        self.judges = 0
        """On how many patients that rests, in the class that rests on the fewest."""
        self.verdict = ""
        """What `meet` found, for the site's log; empty where nothing was asked."""

    @property
    def is_trusted(self) -> bool:
        """Whether SAM counts in any class at all."""
        return bool((self.trust[1:] > 0).any())

    @torch.no_grad()
    def meet(self, labelled: Sequence[Case], take: Take) -> None:
        """Set `trust` by what SAM adds to the specialist's Dice on cases that neither has trained on.

        These are the site's validation patients: both are met there as on an unlabelled image. A site without any compares
        them on labelled cases that have not taught SAM; the specialist has trained on these, and SAM is trusted too little.

        What SAM has learned must earn its place as well: where the checkpoint's own SAM adds more, that is asked in this
        round. From a few labels a decoder may learn to follow its prompt, and a SAM that repeats the specialist is none.
        """
        if not self._settings.trust:
            return
        held_out = self._site.store.cases("validation")
        judges = np.arange(len(held_out)) if held_out else np.setdiff1d(np.arange(len(labelled)), self._lessons(labelled))
        show = self._held_out(held_out) if held_out else take
        rng = numpy_rng(self._plan.seed, self._site.name, *self._when, "trust")
        rows = np.sort(rng.permutation(judges)[:TRUST_CASES].astype(np.int64))
        classes = len(self._plan.classes)
        candidates = [(self._sam, self._cache)]
        if self._has_learned:
            candidates.append((self._base, _cache(self._site, self._base)))
        shown, patients = [[torch.zeros(0, classes)] for _ in candidates], list[str]()
        for start in range(0, len(rows), TRUST_BATCH):
            cases, images, labels = show(rows[start : start + TRUST_BATCH])
            probs = mean_probabilities(self._specialists, images)
            for candidate, so_far in zip(candidates, shown, strict=True):
                self._sam, self._cache = candidate
                asked = self.ask(cases, images, probs)
                added = advantages(class_map(asked.probs), asked.prompts, asked.masks, asked.kept, labels, classes=classes)
                so_far.append(added.cpu())
            patients += [case.patient for case in cases]
        gains = [gain_from(torch.cat(each), patients) for each in shown]
        best = gains.index(max(gains))  # the one that has learned, where both add as much
        self._sam, self._cache = candidates[best]
        evidence = torch.cat(shown[best])
        self.trust, self.judges = trust_from(evidence, patients), judges_from(evidence, patients)
        told = ", ".join(f"{name} {float(t):.2f}" for name, t in zip(self._plan.classes, self.trust[1:], strict=True))
        whose = ", without what it has learned, which adds less" if best else ""
        self.verdict = f"cycle {self._when[0]}, round {self._when[1]}: trust in SAM{whose}: {told}"

    @torch.no_grad()
    def target(self, cases: Sequence[Case], images: Tensor, teacher_probs: Tensor) -> Target:
        """What SAM says of unlabelled images (B, K, H, W), in their frame; IGNORE where it is silent or not trusted."""
        asked = self.ask(cases, images, teacher_probs)
        return target_from(asked.prompts, asked.masks, asked.kept, asked.probs, trust=self.trust)

    def learn(self, labelled: Sequence[Case], take: Take) -> tuple[dict[str, Tensor], Tensor | None, set[str]]:
        """Train the adapter on those labelled cases that it learns from: the new one, its mean loss, and the patients in it;
        nothing without one."""
        lessons = self._lessons(labelled)
        if not lessons:
            return self._adapter, None, set()
        # a round looks at so many at most; more would be read, and embedded, for nothing
        order = torch.randperm(len(lessons), generator=self._generator)[: self._settings.adapt_steps * BATCH]
        cases, images, labels = take([lessons[row] for row in sorted(order.tolist())])
        images, embeddings = own_channels(images, self._plan.preprocess), None
        if self._settings.adapt == "decoder":
            embeddings = self._cache.embeddings([case.id for case in cases], images)
        learned, loss, rows = train_adapter(
            self._base,
            self._adapter,
            Lesson(images, labels, embeddings),
            self._settings,
            classes=len(self._plan.classes),
            seed=self._plan.seed,
            generator=self._generator,
        )
        return learned, None if loss is None else torch.tensor(loss), {cases[row].patient for row in rows}

    def _lessons(self, labelled: Sequence[Case]) -> list[int]:
        """Rows of the labelled cases that SAM learns from: none where nothing of it is trained."""
        return _taught_by(self._site, labelled) if self._adapter else []

    def _held_out(self, held_out: Sequence[Case]) -> Take:
        """From rows of the held-out cases to what `Take` gives of labelled ones."""

        def take(rows: Sequence[int] | NDArray[np.int64]) -> tuple[list[Case], Tensor, Tensor]:
            cases = [held_out[row] for row in rows]
            truths = self._slices.truths(cases).to(self._site.device, torch.int64)
            return cases, self._slices.take(cases).to(self._site.device), truths

        return take

    @torch.no_grad()
    def ask(self, cases: Sequence[Case], images: Tensor, probs: Tensor) -> Asked:
        """Ask about the components of a prediction (B, C+1, H, W) of images (B, K, H, W), in the classes that SAM is trusted
        in.

        Raises:
            FloatingPointError: the prediction holds NaN or Inf.
        """
        if not bool(probs.isfinite().all()):
            cycle, round_ = self._when
            raise FloatingPointError(
                f"the prediction that SAM is to be asked about holds NaN or Inf in cycle {cycle}, round {round_}: training has "
                f"diverged. Lower train.learning_rate ({self._plan.train.learning_rate:g}) in the run's configuration; if "
                f"{self._site.name} alone diverges, look at its labelled images and their masks"
            )
        settings = self._settings
        images = own_channels(images, self._plan.preprocess)
        if settings.beside:
            probs = self._smoothed(cases, probs)
        prompts = prompts_from(probs, positives=settings.positives, negatives=settings.negatives)
        prompts = prompts.select(self.trust.to(probs.device)[prompts.class_index] > 0)
        size = (images.shape[-2], images.shape[-1])
        embeddings = self._cache.embeddings([case.id for case in cases], images)
        both = prompts
        if settings.min_stability > 0:  # in one batch
            both = prompts.followed_by(jittered(prompts, size=size, generators=self._of_their_own(cases)))
        coarse = mask_prompts(both, probs) if settings.mask else None
        logits, iou = self._sam.decode(embeddings, both, size=size, box=settings.box, mask_logits=coarse)
        masks, iou = logits[: len(prompts)] > 0, iou[: len(prompts)]
        moved = logits[len(prompts) :] > 0 if settings.min_stability > 0 else None
        kept = gate(
            masks,
            prompts.components,
            iou,
            moved,
            min_iou=settings.min_iou,
            min_agreement=settings.min_agreement,
            min_stability=settings.min_stability,
        )
        return Asked(prompts, probs, masks, iou, moved, kept)

    def _of_their_own(self, cases: Sequence[Case]) -> list[torch.Generator]:
        """A generator for each case, other ones at each call."""
        self._calls += 1
        return [torch_generator(self._plan.seed, self._site.name, *self._when, "jitter", self._calls, case.id) for case in cases]

    def _smoothed(self, cases: Sequence[Case], probs: Tensor) -> Tensor:
        """Predictions (B, C+1, H, W) of cases, half their own and a quarter of each slice's beside them."""
        before, behind = (
            mean_probabilities(self._specialists, self._slices.take(self._slices.beside(cases, step)).to(probs.device))
            for step in (-1, 1)
        )
        return 0.5 * probs + 0.25 * (before + behind)


def _taught_by(site: Site, labelled: Sequence[Case]) -> list[int]:
    """Rows of the labelled cases that an adapter learns from: all, or half where the others must judge it."""
    if site.store.counts().get("validation"):
        return list(range(len(labelled)))
    return fold(labelled, site.store.requested_patients())[0]


def _cache(site: Site, sam: Sam, *, adapted: bool = False, tidy: bool = False) -> EmbeddingCache:
    """Where embeddings of this SAM lie. Those of an adapted encoder are of one cycle: older ones are removed by `tidy`."""
    folder = site.workspace / "cache" / ("sam-adapted" if adapted else "sam")
    cache = EmbeddingCache(folder, sam)
    if adapted and tidy:
        for other in folder.iterdir():
            if other != cache.folder:
                shutil.rmtree(other, ignore_errors=True)
    return cache
