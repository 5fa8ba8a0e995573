"""Dice of held-out volumes on their own grid, as sums and counts that can be added up across sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.predict import BATCH, predict
from client.preprocess import from_network
from client.site import Site, Slices
from client.store import ImageRow
from configs.schema import Preprocess
from strategies.metrics import dice_by_class
from strategies.networks import class_map
from strategies.records import Case, Sums

Seen = Callable[[ImageRow, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]], None]
"""Takes an image, its truth, its prediction, and the Dice of each class (C,), NaN where it is in neither."""


def predicted_mask(site: Site, slices: Slices, network: nn.Module, image: ImageRow, cases: Sequence[Case]) -> NDArray[np.uint8]:
    """The network's class map of a volume, (slices, rows, columns) uint8, on the image's grid."""
    place = slices.image(image.id).place
    parts = [
        class_map(from_network(predict(network, slices, cases[start : start + BATCH], device=site.device), place)).byte()
        for start in range(0, len(cases), BATCH)  # never all probabilities of a volume at full size
    ]
    mask: NDArray[np.uint8] = torch.cat(parts).numpy()
    return mask


def evaluate(
    site: Site, network: nn.Module, prepare: Preprocess, *, role: str, classes: int, seen: Seen | None = None
) -> Sums | None:
    """Sums over the held-out volumes of a role (`validation` or `test`).

    Returns None where the site has none of them or where fewer than `min_patients` patients stand behind the sums: such
    a metric would tell about a person. `seen` is called with what was seen of each image.
    """
    images = site.store.images(role)
    patients = len({image.patient for image in images})
    if not images or patients < site.settings.min_patients:
        return None
    slices = Slices(site, prepare)
    by_image: dict[str, list[Case]] = {}
    for case in site.store.cases(role):
        by_image.setdefault(case.image, []).append(case)
    dice, counts = np.zeros(classes), np.zeros(classes, dtype=int)
    behind: list[set[str]] = [set() for _ in range(classes)]
    for image in images:
        truth = site.truth(image)
        with torch.inference_mode():
            mask = predicted_mask(site, slices, network, image, by_image[image.id])
        of_volume = dice_by_class(mask, truth, classes=classes)
        dice += np.nan_to_num(of_volume)
        counts += np.isfinite(of_volume)
        for number in np.flatnonzero(np.isfinite(of_volume)):
            behind[number].add(image.patient)
        if seen is not None:
            seen(image, truth, mask, of_volume)
    few = np.array([len(patients_of) < site.settings.min_patients for patients_of in behind])
    dice[few], counts[few] = 0.0, 0  # a class that hardly any patient has would tell about those patients
    return Sums(tuple(map(float, dice)), tuple(map(int, counts)), patients)
