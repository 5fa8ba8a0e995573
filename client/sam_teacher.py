"""SAM's answer to the teacher's prompts, for a batch of unlabelled images: embed once, decode at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from client.plan import Plan
from client.sam import load_sam
from client.sam_cache import EmbeddingCache
from client.site import Site
from strategies.records import Case
from strategies.semi.prompts import prompts_from
from strategies.semi.sam_target import target_from


class SamTeacher:
    """The frozen generalist of one site. Nothing of it crosses; what it says is made from images and the teacher alone."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self._sam = load_sam(site.settings.sam_checkpoint, device=site.device)
        self._settings = plan.sam
        self._cache = EmbeddingCache(site.workspace / "cache" / "sam", self._sam)

    @torch.no_grad()
    def target(self, cases: Sequence[Case], images: Tensor, teacher_probs: Tensor) -> Tensor:
        """Class map (B, H, W) int64 with IGNORE where SAM is silent or not trusted, in the frame of `images`."""
        embeddings = self._cache.embeddings([case.id for case in cases], images)
        prompts = prompts_from(teacher_probs)
        size = (images.shape[-2], images.shape[-1])
        masks, iou = self._sam.decode(embeddings, prompts, size=size)
        return target_from(
            prompts,
            masks,
            iou,
            teacher_probs,
            min_iou=self._settings.min_iou,
            min_agreement=self._settings.min_agreement,
        )
