"""What an expert begins with: the mask that this site's model draws, to be corrected rather than drawn anew."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.evaluate import predicted_mask
from client.models import load_models
from client.plan import Plan, network_with
from client.site import Site, Slices
from client.store import ImageRow, Request
from strategies.global_model import parts_of


class Proposals:
    """The proposals of a site's requests, for the length of one message.

    The model is this site's after its last round of this run: what an earlier run left in the workspace proposes nothing, or a
    run's first labels would cost what the run before had learned. It is read when the first request asks that has no proposal
    yet, and never twice.
    """

    def __init__(self, site: Site, plan: Plan, *, run: str) -> None:
        self._site, self._plan, self._run = site, plan, run
        self._slices = Slices(site, plan.preprocess)

    def of(self, request: Request) -> NDArray[np.uint8] | None:
        """The model's mask of the slice, (rows, columns), made once and kept with the request.

        None before the run's first training here, and where the model finds nothing.
        """
        if request.proposed:
            place = self._slices.image(request.case.image).place
            kept = self._site.store.proposal(request.case.id, shape=(place.rows, place.columns))
            return kept if kept is not None and kept.any() else None
        if self._network is None:
            return None
        row = next(image for image in self._images if image.id == request.case.image)
        with torch.inference_mode():
            mask = predicted_mask(self._site, self._slices, self._network, row, [request.case])[0]
        self._site.store.set_proposal(request.case.id, mask)
        return mask if mask.any() else None

    @cached_property
    def _network(self) -> nn.Module | None:
        models = load_models(self._site.workspace / "models" / "local.safetensors", run=self._run)
        return None if models is None else network_with(self._plan, parts_of(models.model).specialist).to(self._site.device)

    @cached_property
    def _images(self) -> list[ImageRow]:
        return self._site.store.images("pool")
