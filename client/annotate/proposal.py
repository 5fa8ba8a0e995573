"""What an expert begins with: the mask that this site's model draws, to be corrected rather than drawn anew."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from client.evaluate import predicted_mask
from client.faults import SiteFault
from client.models import load_models
from client.plan import Plan, network_with
from client.site import Site, Slices
from client.store import Request
from strategies.global_model import parts_of


def propose(site: Site, plan: Plan, request: Request) -> NDArray[np.uint8] | None:
    """This site's model's mask of the slice, (rows, columns), made once and kept with the request.

    None before the first training, where the model finds nothing, or where the weights are of a run with another network.
    """
    row = next(image for image in site.store.images("pool") if image.id == request.case.image)
    shape = (site.ready(row.id, plan.preprocess).place.rows, site.ready(row.id, plan.preprocess).place.columns)
    kept = site.store.proposal(request.case.id, shape=shape)
    if kept is not None:
        return kept if kept.any() else None
    models = load_models(site.workspace / "models" / "local.safetensors")
    if models is None:
        return None
    try:
        network = network_with(plan, parts_of(models.model).specialist)
    except SiteFault:
        return None
    with torch.inference_mode():
        mask = predicted_mask(site, Slices(site, plan.preprocess), network.to(site.device), row, [request.case])[0]
    site.store.set_proposal(request.case.id, mask)
    return mask if mask.any() else None
