"""SAM's answer to the specialist's prompts, for a batch of images: embed once, decode at every step, trust what it earned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.plan import Plan
from client.sam import load_sam
from client.sam_cache import EmbeddingCache
from client.site import Site
from strategies.records import Case
from strategies.semi.prompts import Prompts, jittered, mask_prompts, prompts_from
from strategies.semi.sam_gate import gate
from strategies.semi.sam_target import Target, target_from
from strategies.semi.sam_trust import advantages, trust_from

TRUST_BATCH = 16
"""Labelled images looked at together when trust is measured."""


class SamTeacher:
    """The frozen generalist of one site. Nothing of it crosses; what it says is made from images and the teacher alone.

    Args:
        generator: moves prompts where stability is asked for; the only randomness.
    """

    def __init__(self, site: Site, plan: Plan, *, generator: torch.Generator) -> None:
        self._sam = load_sam(site.settings.sam_checkpoint, device=site.device)
        self._settings = plan.sam
        self._classes = len(plan.classes)
        self._generator = generator
        self._cache = EmbeddingCache(site.workspace / "cache" / "sam", self._sam)
        self.trust = torch.ones(self._classes + 1)
        """(C + 1,) in [0, 1]: how much SAM counts, by class; full until `earn_trust` says otherwise."""

    @property
    def is_trusted(self) -> bool:
        """Whether SAM counts in any class at all."""
        return bool((self.trust[1:] > 0).any())

    @torch.no_grad()
    def earn_trust(self, cases: Sequence[Case], images: Tensor, labels: Tensor, *, specialist: nn.Module) -> None:
        """Set `trust` by what SAM adds to the specialist's own Dice on labelled cases.

        Args:
            cases: N labelled cases, with `images` (N, K, H, W) and `labels` (N, H, W) int64.
            specialist: asked in evaluation mode, and left in the mode that it was in.
        """
        shown, mode = [], specialist.training
        specialist.eval()
        for start in range(0, len(cases), TRUST_BATCH):
            some = slice(start, start + TRUST_BATCH)
            probs = specialist(images[some]).softmax(1)
            prompts, masks, kept = self._ask(cases[some], images[some], probs)
            truth = labels[some].to(probs.device)
            shown.append(advantages(probs.argmax(1), prompts, masks, kept, truth, classes=self._classes))
        specialist.train(mode)
        self.trust = trust_from(torch.cat(shown).cpu(), [case.patient for case in cases])

    @torch.no_grad()
    def target(self, cases: Sequence[Case], images: Tensor, teacher_probs: Tensor) -> Target:
        """What SAM says of unlabelled images (B, K, H, W), in their frame; IGNORE where it is silent or not trusted."""
        prompts, masks, kept = self._ask(cases, images, teacher_probs)
        return target_from(prompts, masks, kept, teacher_probs, trust=self.trust)

    def _ask(self, cases: Sequence[Case], images: Tensor, probs: Tensor) -> tuple[Prompts, Tensor, Tensor]:
        """Prompts from a prediction (B, C+1, H, W), SAM's masks (P, H, W) for them, and which pass the gate (P,)."""
        settings = self._settings
        prompts = prompts_from(probs, positives=settings.positives, negatives=settings.negatives)
        prompts = prompts.select(self.trust.to(probs.device)[prompts.class_index] > 0)
        size = (images.shape[-2], images.shape[-1])
        embeddings = self._cache.embeddings([case.id for case in cases], images)
        coarse = mask_prompts(prompts, probs) if settings.mask else None
        logits, iou = self._sam.decode(embeddings, prompts, size=size, box=settings.box, mask_logits=coarse)
        moved = None
        if settings.min_stability > 0:
            others = jittered(prompts, size=size, generator=self._generator)
            moved = self._sam.decode(embeddings, others, size=size, box=settings.box, mask_logits=coarse)[0] > 0
        kept = gate(
            logits > 0,
            prompts.components,
            iou,
            moved,
            min_iou=settings.min_iou,
            min_agreement=settings.min_agreement,
            min_stability=settings.min_stability,
        )
        return prompts, logits > 0, kept
