"""Query strategies by name: which of its cases a site asks its experts for. A new one is a file with its `Strategy` and a line
in the table.

The table alone is read for a configuration's sake, so it imports nothing; `parse.py` makes a strategy of a name.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

Need = Literal["model", "dropout", "local model", "training alone", "evidential head", "embeddings"]
"""What a strategy asks for beside the pool: the network's predictions, several of them with dropout, those of the site's own
model as well, of one that is trained for it at the site alone, a network that says how much evidence it has, SAM's embeddings."""


@dataclass(frozen=True)
class Entry:
    """A strategy in the table.

    Attributes:
        file: the file in this folder that has it, under its name in capitals.
        source: who published it, as a reader would look it up.
        rule: what it chooses, in a line.
        needs: what it asks for.
        scored: whether each case has a score of its own, by which a wrapper can choose.
    """

    file: str
    source: str
    rule: str
    needs: tuple[Need, ...] = ("model",)
    scored: bool = False


STRATEGIES: dict[str, Entry] = {
    "random": Entry("random_choice", "every study's comparator", "all cases alike", needs=()),
    "random_fg": Entry("random_choice", "nnActive, TMLR 2025", "two thirds where the model sees a structure or its end"),
    "least_confidence": Entry("uncertainty", "survey: Wang et al. 2024", "the best answer is least sure", scored=True),
    "margin": Entry("uncertainty", "survey: Wang et al. 2024", "two answers are level", scored=True),
    "entropy": Entry("uncertainty", "survey: Wang et al. 2024", "the model is unsure", scored=True),
    "bald": Entry(
        "uncertainty", "Gal et al., ICML 2017", "the model contradicts itself", needs=("model", "dropout"), scored=True
    ),
    "vote_entropy": Entry(
        "uncertainty", "Dagan and Engelson 1995", "a committee is divided", needs=("model", "dropout"), scored=True
    ),
    "coreset": Entry("coreset", "Sener and Savarese, ICLR 2018", "unlike all annotated cases"),
    "badge": Entry("badge", "Ash et al., ICLR 2020", "large gradients that point apart"),
    "typiclust": Entry("typiclust", "Hacohen et al., ICML 2022", "typical of kinds least annotated", needs=("embeddings",)),
    "probcover": Entry(
        "probcover", "Yehuda et al., NeurIPS 2022", "like most that none annotated is like", needs=("embeddings",)
    ),
    "clasp_pe": Entry("clasp_pe", "TMLR 2026", "unsure, class by class, with waning chance"),
    "feal": Entry(
        "feal",
        "Chen et al., CVPR 2024",
        "little evidence, neighbours apart",
        needs=("model", "local model", "evidential head"),
        scored=True,
    ),
    "logo": Entry(
        "logo",
        "Kim et al., CVPR 2023",
        "unsure, of each kind that a model of this site alone tells apart",
        needs=("model", "training alone"),
        scored=True,
    ),
    "kafal": Entry(
        "kafal",
        "Cao et al., ICCV 2023",
        "the site's model and the federation's contradict each other",
        needs=("model", "local model"),
        scored=True,
    ),
}
"""Both randoms first: every other strategy has to beat them."""

CHOOSERS: dict[str, tuple[str, str]] = {
    "stochastic": ("Gaillochet et al. 2023", "of random batches the one with the highest mean score"),
    "power": ("Kirsch et al. 2023", "drawn in proportion to the score's power query.power_beta"),
    "balanced": ("", "the best of the class that is least annotated, in turn"),
}
"""Other ways to choose by a score, written after a +, one at most: source and rule."""

CAP = "cap"
"""At most query.per_patient cases of a patient in a batch; written last, for any strategy."""

BEFORE_TRAINING = ("random", "typiclust", "probcover")
"""Those that need no model, for the first request of a run."""


def incomparable(strategy: str, *, model: str) -> str | None:
    """Why scores of different sites can't be weighed against each other; None where they can.

    Args:
        strategy: a name that `fault_of` has nothing against.
        model: whose prediction is scored, as `query.model` has it; of no account for strategies that have no choice.
    """
    entry = STRATEGIES[strategy.split("+")[0]]
    if entry.file == "feal":
        return "feal scales its scores within each pool"
    if not entry.scored and entry.file != "clasp_pe":
        return f"{strategy} gives its cases none"
    if "local model" in entry.needs:
        return f"those of {strategy} are of different models"
    if "training alone" not in entry.needs and model != "global":
        return f'with query.model = "{model}" those are of different models'
    return None


def query_names() -> list[str]:
    """Every name that is understood, wrappers included."""
    bases = [*STRATEGIES, *(f"{name}+{how}" for name, entry in STRATEGIES.items() if entry.scored for how in CHOOSERS)]
    return [*bases, *(f"{name}+{CAP}" for name in bases)]


def fault_of(text: str) -> str | None:
    """What is wrong with a strategy's name, with the nearest right one; None where nothing is."""
    if text in query_names():
        return None
    valid = (
        f"Valid: {', '.join(STRATEGIES)}; with {', '.join('+' + how for how in CHOOSERS)} where cases have a score, and +{CAP}"
    )
    base, *wrappers = text.split("+")
    if base in STRATEGIES and not STRATEGIES[base].scored and wrappers and wrappers[0] in CHOOSERS:
        return f"unknown query strategy {text!r}: {wrappers[0]} chooses by a score, and {base} gives its cases none. {valid}"
    last = "+".join([base, *(wrapper for wrapper in wrappers if wrapper != CAP), CAP])
    if CAP in wrappers[:-1] and last in query_names():
        return f"unknown query strategy {text!r}: +{CAP} comes last, as in {last!r}"
    near = difflib.get_close_matches(text, query_names(), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    if "," in text:
        hint = ": names stand apart by spaces, not commas."
    return f"unknown query strategy {text!r}{hint} {valid}"
