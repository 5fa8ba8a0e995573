"""A grant becomes requests, requests become labels. Every step is stored, so asking twice does the work once."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence, Set
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.annotate.folder import Folder
from client.annotate.oracle import Oracle
from client.faults import SiteFault
from client.kinds import most_typical
from client.plan import Plan
from client.score import load_scores, score, strategy_of, unscored
from client.site import Site
from client.store import Request
from strategies.effort import Effort
from strategies.query import CAP, STRATEGIES
from strategies.query.cap import beside, capped
from strategies.query.choose import at_random
from strategies.query.parse import parse_query
from strategies.query.units import grouped, spread_out, unit_of
from strategies.randomness import numpy_rng
from strategies.records import Choice, Scores, Selection


class Annotator(Protocol):
    """Somebody who answers requests, now or in days."""

    name: str

    def publish(self, requests: Sequence[Request]) -> None:
        """Put open requests where the expert sees them; those already there stay as they are."""

    def answers(self, requests: Sequence[Request], *, cycle: int, tick: int) -> list[tuple[Request, NDArray[np.uint8] | str]]:
        """Answers that are there: a mask (rows, columns) on the image's grid, or a text that says what is wrong with it."""


ANNOTATORS: dict[str, Callable[..., Annotator]] = {"oracle": Oracle, "folder": Folder}

_LEAST_ANNOTATED = "the most typical left of its kind; kinds came first that all sites together have annotated least"
_LEAST_COVERED = "the most typical left of its kind; kinds came first that have most cases unlike any that a site has annotated"
"""What an expert is told where the coordinator shared kinds out, in the order of TypiClust and of ProbCover."""


def annotator_of(site: Site, plan: Plan, *, run: str) -> Annotator:
    """The site's annotator, by the name in its settings, for one message of a run."""
    return ANNOTATORS[site.settings.annotator](site, plan, run=run)


def carry_out(
    site: Site,
    plan: Plan,
    *,
    run: str,
    cycle: int,
    cases: int,
    tick: int,
    progress: float = 0.0,
    kinds: Sequence[int] = (),
    centroids: NDArray[np.generic] | None = None,
) -> int:
    """Choose the granted number of cases and request their labels, once; returns how many were requested.

    The choice follows the scores of this cycle. The very first cases are those that the site named, if it did, or follow
    `query.cold_start`. Where the pool was not scored (the site was away), a strategy that needs no model chooses all the same;
    in the place of another the choice is at random, and the reason says so.
    With `kinds` they are chosen kind by kind, as the coordinator shared them out (`budget.rule = "coordinated"`), but for the
    very first cases of a site that named some.
    """
    done = site.store.granted(run, cycle)
    if done is not None:
        return done
    selection = Selection(())
    named = site.start_cases() if cycle == 0 else set()
    if centroids is not None and not named:
        selection = _by_kind(site, plan, cycle=cycle, kinds=kinds[:cases], centroids=centroids)
    if len(selection.choices) < cases:
        rest = cases - len(selection.choices)
        without = set(selection.case_ids)
        others = _select(site, plan, run=run, cycle=cycle, cases=rest, progress=progress, named=named, without=without)
        selection = Selection((*selection.choices, *others.choices))
    requested = site.store.request(run, cycle, cases=cases, choices=selection.choices, tick=tick)
    site.store.check_conserved()
    site.log.info("cycle %d: granted %d, requested %d", cycle, cases, requested)
    return requested


def collect(site: Site, plan: Plan, *, run: str, cycle: int, tick: int) -> int:
    """Publish open requests and take in the answers that are there; returns how many labels came.

    Raises:
        SiteFault: the labelled set did not grow by exactly the labels that came.
    """
    annotator = annotator_of(site, plan, run=run)
    requests = site.store.open_requests()
    before = {case.id for case in site.store.cases("labelled")}
    annotator.publish(requests)
    came: list[str] = []
    for request, answer in annotator.answers(requests, cycle=cycle, tick=tick):
        if isinstance(answer, str):
            if answer != request.problem:
                site.store.set_problem(request.case.id, answer)
                site.log.warning("case %s: %s", request.case.id, answer)
            continue
        minutes = _minutes(site, plan, request, answer)
        site.store.add_label(request.case.id, answer, run=run, cycle=cycle, tick=tick, annotator=annotator.name, minutes=minutes)
        came.append(request.case.id)
    annotator.publish(site.store.open_requests())
    after = {case.id for case in site.store.cases("labelled")}
    lost, odd = sorted({*before, *came} - after), sorted(after - before - set(came))
    if lost or odd or len(after) - len(before) != len(came):
        named = f"case {lost[0]} is not in it" if lost else f"case {(odd or came)[0]} came not, or twice"
        raise SiteFault(
            "invariant-broken",
            f"{len(came)} labels came, but the labelled set grew from {len(before)} to {len(after)}; {named}",
        )
    site.store.check_conserved()
    return len(came)


def _minutes(site: Site, plan: Plan, request: Request, mask: NDArray[np.uint8]) -> float:
    """What the label cost the expert, who began with the proposal that was kept, if any."""
    parts = plan.cost.model_dump(exclude={"proposals"})
    proposal = site.store.proposal(request.case.id, shape=(mask.shape[0], mask.shape[1]))
    return Effort(**parts).minutes(mask, proposal=proposal, opens_image=site.store.opens_image(request.case.id))


def _select(
    site: Site, plan: Plan, *, run: str, cycle: int, cases: int, progress: float, named: Container[str], without: Set[str]
) -> Selection:
    pool = site.store.cases("unlabelled")
    unlabelled = [case for case in pool if case.id not in without]
    if not unlabelled:
        return Selection(())
    rng = numpy_rng(plan.seed, site.name, cycle, "query")
    units_of = {case.id: unit_of(case, plan.query.unit) for case in unlabelled}
    scores = load_scores(site.workspace / "scores", run=run, cycle=cycle)
    strategy = strategy_of(plan, progress=progress)
    if cycle == 0 and not named:
        strategy = parse_query(plan.query.cold_start)
        scores = score(site, plan, strategy, {}, cycle=0)
    elif scores is None and "model" not in STRATEGIES[plan.query.strategy.split("+")[0]].needs and not named:
        scores = score(site, plan, strategy, {}, cycle=cycle)
    choose = strategy.choose
    if scores is None:
        scores = unscored(unlabelled)
        if named:
            choose = partial(at_random, first={units_of[case.id] for case in unlabelled if case.id in named})
        else:
            site.log.warning("cycle %d: the pool was not scored, so its cases are chosen at random", cycle)
            choose = partial(at_random, why="chosen at random: the pool was not scored here in this cycle")
            if plan.query.strategy.endswith(f"+{CAP}"):
                choose = partial(capped, choose=choose, cap=plan.query.per_patient)
    scores = scores.among(case.id for case in pool)  # cases that came since then wait a cycle; others were set aside
    if without:
        scores = beside(scores, [case.id for case in unlabelled], sorted(without))
    if not scores.case_ids:
        return Selection(())
    if plan.query.unit == "slice":
        return _chosen(choose, scores, cases, rng)
    selection = _chosen(choose, grouped(scores, units_of), cases, rng)
    members = {c.case_id: [case.id for case in unlabelled if units_of[case.id] == c.case_id] for c in selection.choices}
    return spread_out(selection, members)


def _by_kind(site: Site, plan: Plan, *, cycle: int, kinds: Sequence[int], centroids: NDArray[np.generic]) -> Selection:
    """Of each kind that the site was given, the most typical case; fewer where the pool has lost some since."""
    luck = numpy_rng(plan.seed, site.name, cycle, "kinds")
    cases = most_typical(site, plan, kinds=kinds, centroids=np.asarray(centroids, dtype=np.float64), luck=luck)
    covering = (plan.query.strategy if cycle else plan.query.cold_start) == "probcover"
    reason = _LEAST_COVERED if covering else _LEAST_ANNOTATED
    try:
        return Selection(tuple(Choice(case.id, 0.0, reason) for case in cases))
    except ValueError as error:
        raise SiteFault("invariant-broken", f"choosing {len(kinds)} cases failed: {error}") from error


def _chosen(
    choose: Callable[[Scores, int, np.random.Generator], Selection], scores: Scores, cases: int, rng: np.random.Generator
) -> Selection:
    """What a strategy chooses; it must be as many as were asked for, or all there are, none twice, of the pool, by finite scores.

    Raises:
        SiteFault: it is not, or the strategy fails in whatever way; names the case. A shortfall that went unnoticed would freeze
            the labelled set while the curve still looks normal, and a choice made again elsewhere would be another strategy's.
    """
    try:
        selection = choose(scores, cases, rng)
    except Exception as error:
        raise SiteFault("invariant-broken", f"choosing {cases} cases failed: {type(error).__name__}: {error}") from error
    foreign = sorted(set(selection.case_ids) - set(scores.case_ids))
    if foreign:
        raise SiteFault("invariant-broken", f"case {foreign[0]} was chosen, which is not in the pool")
    astray = [choice for choice in selection.choices if not np.isfinite(choice.score)]
    if astray:
        raise SiteFault("invariant-broken", f"case {astray[0].case_id} was chosen by the score {astray[0].score}: not finite")
    expected = min(cases, len(scores.case_ids))
    if len(selection.choices) != expected:
        raise SiteFault("invariant-broken", f"{len(selection.choices)} cases were chosen of the {expected} asked for")
    return selection
