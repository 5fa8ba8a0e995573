"""The hospitals of a comparison, made once for each seed, and lent to every run.

A run has a database and models of its own, and experts who answer when its own configuration says. Hidden labels, the cut and
scaled images, held-out truth and SAM's embeddings are those of the comparison: they follow from the images alone, and making
them anew would take longer than many a run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from client.site import Site
from client.store import Store
from configs.files import write_bytes, write_text
from configs.load import dump
from configs.schema import Run
from simulation.prepare import prepare, write_schedule, write_site_toml
from simulation.sources import Progress
from strategies.query.budget import proportional
from strategies.query.units import unit_of
from strategies.records import Demand


def hospitals(run: Run, folder: Path, *, progress: Progress) -> tuple[Path, list[str]]:
    """Where the hospitals for this run's seed and fold lie, and their names; they are made, and their images taken in, where that
    is not done."""
    made = folder / "hospitals" / (f"seed{run.seed}" + (f"-fold{run.split.fold}" if run.split.folds else ""))
    names = prepare(run, made, progress=progress)
    for done, name in enumerate(names):
        read = made / "sites" / name / "images_read"
        if not read.exists():  # a database alone is there from the first image on
            progress(f"reading the images of {name}", done, len(names))
            _link(made / "sites" / name / "cache", folder / "cache" / name)
            with Site(made / "sites" / name) as site:
                site.take_in(run.preprocess)
            write_text(read, "")
    return made, names


def lend(made: Path, names: Sequence[str], run: Run, folder: Path, *, cache: Path) -> None:
    """A run's folder with the sites `names`, as `simulation.run.start` takes it; what is there stays.

    Args:
        made: as `hospitals` gives it.
        cache: the comparison's, with a folder for each site.
    """
    for name in names:
        own, site = made / "sites" / name, folder / "sites" / name
        write_site_toml(run, site)
        shutil.copyfile(own / "images.csv", site / "images.csv")
        _link(site / "hidden", own / "hidden")
        _link(site / "cache", cache / name)
        write_schedule(run, site, json.loads((own / "schedule.json").read_text())["delay"])
        if not (site / "site.db").exists():
            write_bytes(site / "site.db", (own / "site.db").read_bytes())  # closed, so that its journal is empty
    write_text(folder / "config.toml", dump(run))  # last: a folder without it was not finished


def lone_runs(run: Run, made: Path, names: Sequence[str]) -> list[Run]:
    """Configurations of sites that train alone, in the order of their names, each with the budget that it has among the others.

    By `budget.rule = "proportional"` that follows from the pools after the first request, and later ones shrink alike; all other
    rules give sites that choose by chance equal budgets.

    Args:
        made: as `hospitals` gives it.
    """
    per_site = dict.fromkeys(names, run.budget.per_cycle)
    if run.budget.rule == "proportional":
        pools = {}
        for name in names:
            with closing(Store.at(made / "sites" / name / "site.db")) as store:
                waiting = store.cases("unlabelled")
            units = len({unit_of(case, run.query.unit) for case in waiting})
            pools[name] = Demand(len(waiting), max(0, units - run.budget.cold_start))
        per_site = proportional(pools, per_site=run.budget.per_cycle)
    budgets = {name: run.budget.model_copy(update={"rule": "fixed", "per_cycle": cases}) for name, cases in per_site.items()}
    return [run.model_copy(update={"budget": budgets[name]}) for name in names]


def _link(link: Path, target: Path) -> None:
    """Where the comparison's folder was moved since, links are made anew."""
    target.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() != target.resolve():
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(target.resolve(), target_is_directory=True)
