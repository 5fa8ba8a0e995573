"""A run killed at any step and resumed has the history of a run that was never killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import TINY, events, of_one_site, timeless

Kill = tuple[str, int, str]
"""Of which function, at which call since the process began, before or after it."""

KILLS: list[list[Kill]] = [
    [
        ("simulation.prepare:write_text", 2, "before"),
        ("client.app:train", 2, "before"),  # one site trained, the next did not
    ],
    [
        # one site has its images, the next made one ready and did not take it in
        ("client.store:Store.add_image", 7, "before"),
        ("client.app:save_models", 2, "before"),  # trained, nothing saved
    ],
    [
        ("client.store:Store.add_image", 7, "after"),  # it took it in, and some are still to come
        ("client.app:save_models", 2, "after"),  # saved, not answered
    ],
    [
        ("server.history:History.append", 1, "before"),  # the start
        ("server.checkpoint:write_bytes", 2, "before"),  # aggregated, not checkpointed
    ],
    [
        ("server.history:History.append", 1, "after"),  # recorded, not checkpointed
        ("server.checkpoint:write_text", 5, "before"),  # weights written, state not
    ],
    [
        ("client.store:Store.request", 2, "after"),  # one site asked its experts, the next did not
        ("client.app:save_scores", 2, "after"),  # one site assessed
    ],
    [
        ("client.store:Store.add_label", 3, "after"),  # half of a site's labels are in
        ("client.app:save_models", 8, "after"),  # second cycle
    ],
    [
        ("server.history:History.append", 3, "after"),  # annotate
        ("server.rounds:save_weights", 1, "after"),  # best weights written
    ],
    [("server.checkpoint:write_text", 5, "after")],  # checkpointed, old weights still there
    [("server.history:History.append", 6, "after")],  # assess
    [("server.history:History.append", 7, "before")],  # grant
    [("client.store:Store.request", 5, "before")],  # second annotate
    [("client.app:collect", 5, "after")],  # one site was polled again, the next was not
    [("server.history:History.append", 12, "after")],  # end
]
"""Each a run that is killed, and where there are two, killed again after it was resumed: a second for less than a run."""

SAM_KILLS: list[list[Kill]] = [
    [("client.sam_cache:EmbeddingCache._append", 2, "after")],  # some embeddings of a site are kept
    [("client.app:save_models", 5, "before")],  # second cycle: a site trained its network and its SAM, nothing is saved
]
"""With a SAM that learns with the federation."""

LORA_KILLS: list[list[Kill]] = [
    [("client.app:save_models", 3, "before")],  # trained with the encoder that was asked first, which has learned since
]
"""With a SAM whose encoder learns; a site keeps the one of the cycle from round to round."""

KINDS_KILLS: list[list[Kill]] = [
    [("server.rounds:find_kinds", 1, "after")],  # kinds are found and shared out, and not recorded
    [("server.history:History.append", 7, "after")],  # recorded, not checkpointed
    [("client.annotate.worklist:_by_kind", 2, "after")],  # one site asked for its kinds, the next has chosen and not asked
]
"""Where sites find kinds of cases together and share them out."""

CHILD = """
import importlib, os, signal, sys
from pathlib import Path
import simulation.run
from simulation.run import simulate

simulation.run.build_report = lambda folder: folder / "report.html"  # a second a run, and no kill is about it

def killer(target, call, when):
    module, _, name = target.partition(":")
    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    honest, calls = getattr(owner, name), [0]
    def patched(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = honest(*args, **kwargs)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, patched)

def forked(work):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(status)
    return os.waitpid(child, 0)[1]

late = ["experts.delay=2", "federation.deadline_polls=2"]  # so that a step has several polls
for root, kills in eval(sys.argv[1]):
    root = Path(root)
    config = root / "tiny.toml"
    assert forked(lambda: simulate(config, late, out=root / "whole")) == 0
    for number, times in enumerate(kills):
        out = root / f"killed{number}"
        for before, (target, call, when) in enumerate(times):
            def killed():
                killer(target, call, when)
                simulate(config, late, out=out, resume=before > 0)
            status = forked(killed)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{target} was never reached: {status}"
        assert forked(lambda: simulate(config, late, out=out, resume=True)) == 0, f"resuming after {times}"
print("done")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """All killed and resumed runs and, in `whole`, the one that was not; in `plain`, `kinds`, `decoder` and `lora`.

    By one process that imports once and forks for each. With lora a single site, and a single cycle of three rounds,
    of which the second is the first that asks SAM.
    """
    root = tmp_path_factory.mktemp("killed")
    plain = TINY.format(root=tiny_data)
    sam = '[sam]\nenabled = true\nadapt = "{adapt}"\nadapt_steps = 1\nmin_iou = 0.0\nmin_agreement = 0.0\n'
    decoder = plain.replace("rounds_per_cycle = 2", "rounds_per_cycle = 1")
    decoder = decoder.replace("[sam]\nenabled = false\n", sam.format(adapt="decoder"))
    lora = TINY.format(root=of_one_site(tiny_data, root / "data")).replace("cycles = 2", "cycles = 1")
    lora = lora.replace("rounds_per_cycle = 2", "rounds_per_cycle = 3").replace("start = 0.0", "start = 0.3")
    lora = lora.replace("[sam]\nenabled = false\n", sam.format(adapt="lora") + "trust = false\n")
    kinds = plain.replace("rounds_per_cycle = 2", "rounds_per_cycle = 1")
    kinds = kinds.replace("[budget]\n", '[query]\nstrategy = "typiclust"\n[budget]\nrule = "coordinated"\n')
    configurations = {
        "plain": (plain, KILLS),
        "kinds": (kinds, KINDS_KILLS),
        "decoder": (decoder, SAM_KILLS),
        "lora": (lora, LORA_KILLS),
    }
    told = []
    for name, (config, kills) in configurations.items():
        (root / name).mkdir()
        (root / name / "tiny.toml").write_text(config)
        told.append((str(root / name), kills))
    command = [sys.executable, "-c", CHILD, repr(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def names(kills: list[list[Kill]]) -> list[str]:
    return [", ".join(f"{when} {target.split(':')[1]} {call}" for target, call, when in times) for times in kills]


@pytest.mark.parametrize("number", range(len(KILLS)), ids=names(KILLS))
def test_a_killed_run_goes_on_where_it_was(runs: Path, number: int) -> None:
    killed, whole = (runs / "plain" / run for run in (f"killed{number}", "whole"))
    assert timeless(killed) == timeless(whole)
    for name in ("final", "best"):
        path = Path("weights") / f"{name}.safetensors"
        assert (killed / path).read_bytes() == (whole / path).read_bytes()


@pytest.mark.parametrize(
    ("adapt", "number"),
    [("decoder", number) for number in range(len(SAM_KILLS))] + [("lora", number) for number in range(len(LORA_KILLS))],
    ids=[f"decoder {name}" for name in names(SAM_KILLS)] + [f"lora {name}" for name in names(LORA_KILLS)],
)
def test_a_killed_run_with_a_sam_that_learns_goes_on_where_it_was(runs: Path, adapt: str, number: int) -> None:
    killed, whole = (runs / adapt / run for run in (f"killed{number}", "whole"))
    assert timeless(killed) == timeless(whole)
    for name in ("final", "final_sam"):
        path = Path("weights") / f"{name}.safetensors"
        assert (killed / path).read_bytes() == (whole / path).read_bytes()


@pytest.mark.parametrize("number", range(len(KINDS_KILLS)), ids=names(KINDS_KILLS))
def test_a_killed_run_whose_sites_share_kinds_goes_on_where_it_was(runs: Path, number: int) -> None:
    killed, whole = (runs / "kinds" / run for run in (f"killed{number}", "whole"))
    assert timeless(killed) == timeless(whole)
    assert any("by_kind" in site for event in events(whole) if event["event"] == "grant" for site in event["sites"].values())


def test_the_record_says_that_it_was_resumed(runs: Path) -> None:
    folders = [runs / "plain" / f"killed{number}" for number in range(len(KILLS))]
    resumed = [folder for folder in folders if any(event["event"] == "resume" for event in events(folder))]
    assert len(resumed) > len(KILLS) / 2
