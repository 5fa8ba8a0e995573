"""Score the pool: per-pixel maps to one number a case, features and predicted foreground, by global and local model.

The scores are kept at the site (`scores/`), because the cases are chosen when the grant arrives, in a later message.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from client.faults import SiteFault
from client.plan import Plan
from client.predict import batches
from client.preprocess import inside
from client.site import Site, Slices
from configs.files import write_bytes
from strategies.networks import forward_features
from strategies.query import Strategy, parse_query
from strategies.query.reduce import predicts_foreground, with_border
from strategies.randomness import derive
from strategies.records import Case, Demand, Scores
from strategies.wire import QUANTILES


def strategy_of(plan: Plan) -> Strategy:
    """The run's query strategy."""
    return parse_query(plan.query.strategy, passes=plan.query.passes, power_beta=plan.query.power_beta)


def score(site: Site, plan: Plan, networks: Sequence[nn.Module], *, cycle: int) -> Scores:
    """Scores of all unlabelled cases by the committee `networks` (global, local or both).

    Dropout passes are seeded by the cycle. Pixels of the padding do not count.

    Raises:
        SiteFault: a score is not finite; a choice without it would be another strategy's.
    """
    strategy = strategy_of(plan)
    cases = site.store.cases("unlabelled")
    slices = Slices(site, plan.preprocess)
    values: list[float] = []
    features: list[np.ndarray] = []
    foreground: list[np.bool_] = []
    with torch.inference_mode(), torch.random.fork_rng(devices=[site.device] if site.device.type == "cuda" else []):
        torch.manual_seed(derive(plan.seed, site.name, cycle, "dropout passes"))
        for part, images in batches(slices, cases, device=site.device) if strategy.needs_model else ():
            probabilities, of_images = _committee(networks, images, passes=strategy.passes)
            features.extend(of_images)
            maps = None if strategy.pixel is None else strategy.pixel(probabilities)
            foreground.extend(predicts_foreground(probabilities))
            for row, case in enumerate(part):
                rows, columns = inside(slices.image(case.image).place)
                if maps is not None:
                    values.extend(strategy.reduce(maps[row : row + 1, rows, columns]))
        labelled = _features(networks, slices, site) if strategy.features else None
    try:
        return Scores(
            case_ids=[case.id for case in cases],
            patients=[case.patient for case in cases],
            values=np.array(values, dtype=np.float64) if strategy.pixel is not None else None,
            features=np.array(features, dtype=np.float32) if strategy.features and features else None,
            labelled_features=labelled,
            foreground=_with_border(cases, foreground) if strategy.foreground else None,
        )
    except FloatingPointError as error:
        raise SiteFault("invariant-broken", f"strategy {strategy.name}: {error}") from error


def demand_of(scores: Scores, *, min_patients: int) -> Demand:
    """How many cases wait, and five coarse quantiles of their scores.

    No quantiles for fewer than four cases to each, or where fewer than `min_patients` patients stand behind them.
    """
    quantiles: tuple[float, ...] = ()
    enough = len(set(scores.patients)) >= min_patients and len(scores.case_ids) >= 4 * QUANTILES
    if scores.values is not None and enough:
        quantiles = tuple(float(q) for q in np.quantile(scores.values, np.linspace(0.1, 0.9, QUANTILES)).round(3))
    return Demand(len(scores.case_ids), quantiles)


def save_scores(folder: Path, scores: Scores, *, run: str, cycle: int) -> None:
    """Keep the scores of a cycle, atomically; they replace those of the cycle before."""
    arrays = {
        name: getattr(scores, name)
        for name in ("values", "features", "labelled_features", "foreground")
        if getattr(scores, name) is not None
    }
    about = {"run": run, "cycle": cycle, "case_ids": list(scores.case_ids), "patients": list(scores.patients)}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays)
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


def _committee(networks: Sequence[nn.Module], images: Tensor, *, passes: int) -> tuple[Tensor, np.ndarray]:
    """Probabilities (M, B, C + 1, H, W) of all members and passes, and the last network's features (B, F)."""
    members = []
    for network in networks:
        network.train(passes > 1)  # only dropout behaves differently; no network here has BatchNorm
        for _ in range(passes):
            logits, features = forward_features(network, images)
            members.append(logits.softmax(dim=1))
    return torch.stack(members).cpu(), features.float().cpu().numpy()


def _with_border(cases: Sequence[Case], foreground: Sequence[np.bool_]) -> np.ndarray:
    images, indices = [case.image for case in cases], [case.index for case in cases]
    return with_border(np.array(foreground, dtype=np.bool_), images=images, indices=indices)


def _features(networks: Sequence[nn.Module], slices: Slices, site: Site) -> np.ndarray | None:
    """Features of the labelled cases (L, F) by the same network as the pool's, or None where nothing is labelled."""
    labelled: list[Case] = site.store.cases("labelled", "requested")
    networks[-1].eval()
    parts = [
        forward_features(networks[-1], images)[1].float().cpu().numpy()
        for _, images in batches(slices, labelled, device=site.device)
    ]
    return np.concatenate(parts) if parts else None
