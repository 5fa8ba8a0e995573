"""Settings that are right each by itself, and not together: a sentence each, that says what to set instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from strategies.query import STRATEGIES, incomparable

if TYPE_CHECKING:
    from configs.schema import Run


def conflicts(run: Run) -> list[str]:
    """All of a run's."""
    return [*_of_classes(run.classes, run.data.format), *_of_data(run), *_of_query(run), *_of_learning(run)]


def _of_classes(classes: dict[str, int | list[str]], format: str) -> Iterator[str]:
    """What is wrong with [classes] for files of this format."""
    if not classes:
        yield "classes is empty: name at least one structure to segment"
    numbers: dict[int, str] = {}
    for name, value in classes.items():
        if isinstance(value, int):
            if format == "dicom":
                yield f'classes.{name} = {value} is a number, but DICOM masks have names: e.g. {name} = ["{name}*"]'
            elif not 1 <= value <= 254:
                yield f"classes.{name} = {value}: label values go from 1 to 254"
            elif value in numbers:
                yield f"classes.{numbers[value]} and classes.{name} both claim the label value {value}"
            numbers.setdefault(value, name)
        elif format in ("nifti", "picture"):
            yield f"classes.{name} lists ROI names, but {format} masks hold numbers: e.g. {name} = 1"
        elif not value:
            yield f"classes.{name} lists no ROI or segment name"


def _of_data(run: Run) -> Iterator[str]:
    folds = run.split.folds
    if folds == 1:
        yield "split.folds must be 2 or more, so that there is a part to train on; or 0, for split.test_fraction"
    if run.split.fold >= max(folds, 1):
        yield f"split.fold counts from 0, and stays below split.folds = {folds}"
    if (1 / folds if folds else run.split.test_fraction) + run.split.validation_fraction >= 1:
        yield "split.test_fraction + split.validation_fraction must stay below 1: no patient is left to train on"
    if run.split.sites == "scanner" and run.data.format in ("phantom", "dicom"):
        yield 'split.sites = "scanner" restyles NIfTI and pictures; for DICOM use "column"'
    phantom = run.data.phantom
    if run.data.format == "phantom":
        if len(phantom.patients) not in (1, phantom.hospitals):
            lists = f"lists {len(phantom.patients)} numbers for {phantom.hospitals} hospitals"
            yield f"data.phantom.patients {lists}: one, or one each"
        if min(phantom.patients, default=3) < 3:
            yield "data.phantom.patients must be at least 3: one to train on, one for validation, one for test"
    if run.data.window is not None and run.data.window[1] <= 0:
        yield "data.window is [centre, width], and the width must be above 0"


def _of_query(run: Run) -> Iterator[str]:
    query = STRATEGIES[run.query.strategy.split("+")[0]]
    if "dropout" in query.needs and run.query.passes == 1 and run.query.model != "both":
        yield (
            f"query.strategy {run.query.strategy} compares predictions, and query.passes = 1 leaves one: set it to 2 or "
            'more, or compare two models with query.model = "both"'
        )
    elif "dropout" in query.needs and run.query.passes > 1 and run.network.dropout == 0:
        yield (
            f"query.strategy {run.query.strategy} compares passes with dropout: set network.dropout above 0, e.g. 0.1; or "
            'compare two models without it, with query.model = "both" and query.passes = 1'
        )
    if "evidential head" in query.needs and run.network.head != "evidential":
        yield f'query.strategy {run.query.strategy} asks how much evidence there is: set network.head = "evidential"'
    if run.budget.rule == "coordinated":
        if run.query.strategy not in ("typiclust", "probcover"):
            yield (
                'budget.rule = "coordinated" shares out kinds of cases, by which a site then chooses: it takes '
                f'query.strategy = "typiclust" or "probcover", not "{run.query.strategy}"'
            )
        if run.query.unit != "slice":
            yield f'budget.rule = "coordinated" shares out slices: it takes query.unit = "slice", not "{run.query.unit}"'
    why = incomparable(run.query.strategy, model=run.query.model) if run.budget.rule == "adaptive" else None
    if why is not None:
        compares = f'budget.rule = "adaptive" compares scores of different sites, and {why}'
        yield f'{compares}: set budget.rule = "fixed" or "proportional"'
    if query.file == "badge" and run.network.head == "evidential":
        yield f'query.strategy {run.query.strategy} takes gradients of a softmax: set network.head = "softmax"'
    if run.split.start == "foreground" and run.query.cold_start != "random":
        yield (
            f'query.cold_start = "{run.query.cold_start}" has no first request to choose: with split.start = "foreground" every '
            'site names those cases itself. Set split.start = "any", or leave query.cold_start at "random"'
        )


def _of_learning(run: Run) -> Iterator[str]:
    sam = run.sam
    if sam.enabled and not (sam.box or sam.positives or sam.mask):
        yield (
            "sam asks for nothing (clicks outside alone don't say what is meant): switch on one of sam.box, sam.positives, "
            "sam.mask, or set sam.enabled = false"
        )
    if sam.enabled and sam.adapt != "none" and sam.weight == 0:
        yield 'sam.adapt trains a SAM that sam.weight = 0 never asks: give it a weight, or set sam.adapt = "none"'
    elif sam.enabled and sam.adapt != "none" and not run.rounds_with_sam:
        yield (
            f"sam.adapt trains a SAM that is never asked: no round begins at sam.start = {sam.start:g} of the steps or "
            'later. Take more rounds, an earlier start, or sam.adapt = "none"'
        )
    elif sam.enabled and sam.adapt == "lora" and sam.may_count(step=0, total_steps=1) and not _continues(run):
        yield (
            'sam.adapt = "lora" trains an encoder that is never asked: a cycle keeps the one that it asks first, which with '
            "sam.start = 0 has learned nothing yet where there is one cycle or each begins anew. Give sam.start, take more "
            'cycles that continue, or sam.adapt = "decoder"'
        )
    if sam.enabled and sam.adapt != "none" and sam.checkpoint == "small" and sam.size != "small":
        yield f'sam.checkpoint is "small", but sam.size = "{sam.size}": name a checkpoint of that size in sam.checkpoint'
    federation = run.federation
    if federation.server_optimiser == "adam" and federation.server_learning_rate > 0.1:
        yield (
            f"federation.server_learning_rate = {federation.server_learning_rate:g} moves every weight by about that much in "
            'each round with server_optimiser = "adam": 0.001 to 0.1 is usual'
        )
    if run.privacy.share == "updates" and run.budget.rule != "fixed":
        yield 'budget.rule must be "fixed" where privacy.share = "updates": sites then tell nothing of their pools'


def _continues(run: Run) -> bool:
    """Whether a cycle goes on from what an earlier one has learned."""
    return run.federation.cycles > 1 and run.federation.restart == "continue"
