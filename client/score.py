"""Score the pool: what models say of each case becomes numbers, and these are kept until the grant comes.

The scores stay at the site (`scores/`), because the cases are chosen when the grant arrives, in a later message.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.faults import SiteFault
from client.look import class_pixels, looks
from client.plan import Plan
from client.site import Site, Slices
from configs.files import write_bytes
from strategies.query.parse import parse_query
from strategies.query.reduce import with_border
from strategies.query.strategy import Columns, Model, Strategy
from strategies.query.units import means_of_units, unit_of
from strategies.randomness import derive
from strategies.records import Case, Demand, Scores
from strategies.wire import CASES_A_QUANTILE, DIGITS, QUANTILES

_Given = TypeVar("_Given")


def strategy_of(plan: Plan, *, progress: float = 0.0) -> Strategy:
    """The run's query strategy; `progress` is 0 at its first query and 1 at its last."""
    query = plan.query
    return parse_query(
        query.strategy, passes=query.passes, power_beta=query.power_beta, per_patient=query.per_patient, progress=progress
    )


def score(site: Site, plan: Plan, strategy: Strategy, models: Mapping[Model, nn.Module], *, cycle: int) -> Scores:
    """Scores of all unlabelled cases by a committee of `models` (`client/committee.py`); those that need none take none.

    The pool is scored by slices, whatever is asked for at a time; features of what is annotated or asked for are of these units.
    Dropout passes are seeded by the cycle. Pixels of the padding do not count. Foreground next to a case counts wherever it is:
    what the model sees in the pool and in cases that wait for an expert, and what experts have drawn in labelled ones.

    Raises:
        SiteFault: a score is missing or not finite, or the strategy fails in whatever way; a choice without it would be another
            strategy's.
    """
    cases = site.store.cases("unlabelled")
    labelled = site.store.cases("labelled", "requested") if strategy.labelled else []
    slices = Slices(site, plan.preprocess)
    annotated = site.store.cases("labelled") if strategy.look is not None else []
    drawn = class_pixels(slices, annotated, classes=len(plan.classes))
    pixels: list[float] = drawn.sum(axis=0).tolist()
    with torch.inference_mode(), torch.random.fork_rng(devices=[site.device] if site.device.type == "cuda" else []):
        torch.manual_seed(derive(plan.seed, site.name, cycle, "dropout passes"))

        def columns(of: Sequence[Case]) -> Columns:
            parts: list[Columns] = []
            if strategy.look is not None:
                seen = looks(site, plan, slices, of, strategy=strategy, models=models, labelled_pixels=pixels)
                parts = [_done_by(strategy.look, batch) for _, batch in seen]
            return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}

        found = columns(cases)
        known = columns(labelled).get("features")
        if known is not None:
            _stop_unless_finite("features", known, labelled)
            known = means_of_units(known, [unit_of(case, plan.query.unit) for case in labelled])
        waiting = site.store.cases("requested") if "foreground" in found else []
        expected = columns(waiting).get("foreground", ())
    for name, column in found.items():
        _stop_unless_finite(name, column, cases)
    if found:
        found = _done_by(strategy.finish, found)
    if "foreground" in found:
        beside = [*zip(annotated, drawn[:, 1:].sum(axis=1).tolist(), strict=True), *zip(waiting, expected, strict=True)]
        found["foreground"] = with_border(
            found["foreground"],
            images=[case.image for case in cases],
            indices=[case.index for case in cases],
            elsewhere=[(case.image, case.index) for case, shows in beside if shows],
        )
    try:
        return Scores(
            case_ids=[case.id for case in cases],
            patients=[case.patient for case in cases],
            labelled_features=known,
            labelled_pixels=np.array(pixels[1:]) if strategy.look is not None else None,
            **found,
        )
    except (FloatingPointError, ValueError) as error:
        raise SiteFault("invariant-broken", str(error)) from error


def _done_by(step: Callable[[_Given], Columns], given: _Given) -> Columns:
    """What a step of a strategy makes of what it is given."""
    try:
        return step(given)
    except Exception as error:  # whoever writes a strategy may have written anything
        raise SiteFault("invariant-broken", f"scoring failed: {type(error).__name__}: {error}") from error


def _stop_unless_finite(name: str, column: NDArray[Any], cases: Sequence[Case]) -> None:
    """What is looked at is finite before it is set against the pool's: beyond that nobody could say whose it was."""
    if len(column) != len(cases):
        raise SiteFault("invariant-broken", f"{name} has {len(column)} rows for {len(cases)} cases")
    finite = np.isfinite(column).reshape(len(cases), -1).all(axis=1)
    if not finite.all():
        case = cases[int(np.argmin(finite))]
        raise SiteFault("invariant-broken", f"{name} of case {case.id} is not finite: the model diverged or an image holds NaN")


def unscored(cases: Sequence[Case]) -> Scores:
    """The pool where nothing is known of it."""
    return Scores([case.id for case in cases], [case.patient for case in cases])


def demand_of(scores: Scores, *, units: int, min_patients: int) -> Demand:
    """How many cases wait, how many `units` they are, and five coarse quantiles of their scores, to `DIGITS` significant digits.

    No quantiles for fewer than `CASES_A_QUANTILE` cases to each, or where fewer than `min_patients` patients stand behind them.
    """
    quantiles: tuple[float, ...] = ()
    patients = len(set(scores.patients))
    enough = patients >= min_patients and len(scores.case_ids) >= CASES_A_QUANTILE * QUANTILES
    if scores.values is not None and enough:
        found = np.quantile(scores.values, np.linspace(0.1, 0.9, QUANTILES))
        quantiles = tuple(float(f"{quantile:.{DIGITS}g}") for quantile in found)
    return Demand(len(scores.case_ids), units, quantiles, patients if quantiles else None)


def save_scores(folder: Path, scores: Scores, *, run: str, cycle: int) -> None:
    """Keep the scores of a cycle, atomically; they replace those of the cycle before."""
    about = {"run": run, "cycle": cycle, "case_ids": list(scores.case_ids), "patients": list(scores.patients)}
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **scores.arrays()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(folder / "scores.npz", buffer.getvalue())


def load_scores(folder: Path, *, run: str, cycle: int) -> Scores | None:
    """The scores of that run and cycle, or None where the site has none (it was away when the pool was scored)."""
    path = folder / "scores.npz"
    if not path.exists():
        return None
    with np.load(path) as file:
        about = json.loads(file["about"].tobytes())
        if (about["run"], about["cycle"]) != (run, cycle):
            return None
        arrays = {name: file[name] for name in file.files if name != "about"}
    return Scores(case_ids=about["case_ids"], patients=about["patients"], **arrays)
