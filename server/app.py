"""The Flower ServerApp: reads the configuration, puts the parts together, starts the rounds.

It finds the run's folder in the run configuration (`run-dir`, absolute), because a Flower app's code is unpacked
somewhere else and its working directory is not the project.
"""

from __future__ import annotations

import os
import platform
import secrets
import subprocess
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from configs.files import locked
from configs.load import load
from configs.schema import Run
from server.checkpoint import Ledger, State, save_weights
from server.history import History, event
from server.progress import progress_for
from server.rounds import Federation, Progress, run_rounds
from server.sites import FederationFault, join
from strategies.global_model import GlobalModel
from strategies.networks import build_network
from strategies.randomness import derive
from strategies.records import Weights
from strategies.sam_adapters import initial_adapter
from strategies.semi import FRAMEWORKS

JOIN_SECONDS = 120.0
"""How long to wait for the expected sites before starting with those that are there."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, the run in `run-dir`."""
    folder = context.run_config.get("run-dir")
    if not folder:
        raise FederationFault(
            "the run configuration names no run-dir: prepare a run with `wardround simulate CONFIG --prepare`, then "
            "`flwr run . --run-config 'run-dir=\"/absolute/path\"'`"
        )
    coordinate(grid, Path(str(folder)), engine=str(context.run_config.get("engine", "flower")))


def coordinate(grid: Grid, folder: Path, *, engine: str, shown: Progress | None = None) -> None:
    """The run in `folder` from its configuration and checkpoint to its end; `shown` takes the place of a display of its own.

    Raises:
        FederationFault: too few sites; what was done is kept.
        FolderInUse: another process runs this folder.
    """
    run = load(folder / "config.toml")
    torch.set_num_threads(run.threads)
    with locked(folder / "checkpoint"), nullcontext(shown) if shown else progress_for(run.name) as progress:
        history = History(folder / "history.jsonl")
        if history.ended:
            return
        ledger = Ledger.open(
            folder / "checkpoint", history, lambda: State(weights=initial_weights(run)), run=secrets.token_hex(8)
        )
        expected = len(list((folder / "sites").glob("*/site.toml")))
        sites, pools, problems = join(
            grid,
            run=ledger.run,
            settings=settings_for_sites(run),
            classes=run.class_names,
            expected=expected,
            timeout_s=run.federation.reply_timeout_s,
            wait_s=JOIN_SECONDS,
            waiting=lambda count: progress.step(f"{count} of {expected} sites are here", done=0, total=1),
        )
        if len(pools) < run.federation.min_sites:
            why = "; ".join(f"{name}: {what['code']} ({what['reference']})" for name, what in problems.refused.items())
            raise FederationFault(
                f"{len(pools)} of at least {run.federation.min_sites} sites joined"
                + (f". Refused: {why}. {problems.remedy}" if why else "")
            )
        if ledger.resumed:
            ledger.state = with_newcomers(ledger.state, pools)
            ledger.note(event("resume", sites={name: {} for name in pools}), *problems.events("join", cycle=0, round=0))
        ledger.once(
            lambda state: (
                with_newcomers(state, pools),
                [
                    event("start", **about(run, engine)),
                    event("join", sites=pools),
                    *problems.events("join", cycle=0, round=0),
                ],
            )
        )
        federation = Federation(run, sites, lambda: initial_weights(run), folder, progress)
        run_rounds(federation, ledger)
        finish(ledger, folder, run)


def with_newcomers(state: State, pools: Mapping[str, Mapping[str, Any]]) -> State:
    """The state with what sites told of their pools as they joined, where it knows nothing of them yet.

    A site that could not join at first does so at a resume, and may be granted something before it is asked anything else.
    """
    told = {key: {name: pool[key] for name, pool in pools.items()} for key in ("unlabelled", "labelled")}
    return replace(
        state,
        unlabelled={**told["unlabelled"], **state.unlabelled},
        labelled={**told["labelled"], **state.labelled},
    )


def finish(ledger: Ledger, folder: Path, run: Run) -> None:
    """Write the final weights and the end of the record."""
    state = ledger.state
    save_weights(folder / "weights" / "final.safetensors", state.weights)
    ledger.once(
        lambda state: (
            state,
            [
                {
                    **event("end", cycle=run.federation.cycles, best_cycle=state.best_cycle),
                    **state.last,
                    "labels_total": state.labels_total,
                    "seconds": round(state.seconds, 3),
                }
            ],
        )
    )


def initial_weights(run: Run) -> Weights:
    """What every run with this seed, network and framework starts from: a peer elsewhere than the specialist."""

    def drawn(seed: int) -> Weights:
        network = build_network(
            run.network.name,
            in_channels=run.preprocess.in_channels,
            classes=len(run.classes),
            norm=run.network.norm,
            dropout=run.network.dropout,
            seed=seed,
            head=run.network.head,
        )
        return {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}

    helpers = FRAMEWORKS[run.train.framework].helpers
    return GlobalModel(
        specialist=drawn(run.seed),
        peers={name: drawn(derive(run.seed, name)) for name, kind in helpers.items() if kind == "peer"},
        adapter=initial_adapter(run.sam.size, adapt=run.sam.adapt, rank=run.sam.lora_rank) if run.sam.enabled else {},
    ).arrays


def settings_for_sites(run: Run) -> dict[str, Any]:
    """What sites need to know of the run, and nothing about where the coordinator keeps things."""
    shared = run.model_dump(mode="json", include={"seed", "preprocess", "network", "train", "query", "cost"})
    sam = run.sam.model_dump(mode="json", exclude={"checkpoint"})
    rules = {rule: run.budget.rule == rule for rule in ("coordinated", "adaptive")}
    ours = {"needs_one_sam": run.needs_one_sam, "cycles": run.federation.cycles, **rules}
    return {**shared, **ours, "sam": sam, "classes": run.class_names}


def about(run: Run, engine: str) -> dict[str, Any]:
    """What a reader of the record wants to know of where it came from."""
    return {
        "name": run.name,
        "seed": run.seed,
        "classes": run.class_names,
        "engine": engine,
        "threads": run.threads,
        "device": run.device if run.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu"),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("torch", "flwr", "monai", "numpy")},
    }


def _processor() -> str:
    """Its kind and the instructions that torch uses on it: with others, the last digits of a run are others."""
    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"


def _commit() -> str | None:
    """The commit of the code, with a + where files were changed since; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
