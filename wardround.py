"""The command line of wardround: one function per command, no logic."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from configs.arguments import spread
from configs.faults import ConfigError
from configs.files import FolderInUse, StorageFault

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Federated active learning for medical image segmentation.\n\n"
    "Hospitals train one model together: each scores its own unlabelled images, asks its own experts for the few "
    "annotations worth having, and shares nothing but model updates.\n\n"
    "Start with [bold]wardround simulate configs/demo.toml[/]: four simulated hospitals, a few minutes, one report.",
)
site_app = typer.Typer(no_args_is_help=True, help="Look into one hospital's workspace.")
app.add_typer(site_app, name="site")

Config = Annotated[Path, typer.Argument(help="TOML file, e.g. configs/demo.toml", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. --set query.strategy=random; repeatable"),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"wardround {version('wardround')}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")] = False,
) -> None:
    """Options of all commands."""


@app.command()
def simulate(
    config: Config,
    settings: Set = None,
    engine: Annotated[str, typer.Option(help="inline: one process; cluster: Flower SuperLink and Ray")] = "inline",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: what the run's folder holds is deleted")] = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="Only make the hospitals, for `flwr run .`")] = False,
) -> None:
    """Simulate a federation of hospitals on this machine, and write its report.

    [bold]wardround simulate configs/demo.toml[/]                         four phantom hospitals
    [bold]wardround simulate configs/demo.toml --set query.strategy=random --out runs/random[/]
    [bold]wardround simulate configs/demo.toml --resume[/]                after Ctrl-C or a crash
    """
    from simulation.run import simulate as run

    run(config, settings or [], engine=engine, out=out, resume=resume, fresh=fresh, prepare_only=prepare)


@app.command()
def check(
    config: Annotated[Path | None, typer.Argument(help="TOML file to validate", show_default=False)] = None,
    settings: Set = None,
    explain: Annotated[bool, typer.Option("--explain", help="List every setting, its default and its meaning")] = False,
) -> None:
    """Validate a configuration without running it: all faults at once, with the nearest valid name."""
    from client.query_check import check as check_query
    from client.sam_checkpoint import check as check_sam
    from configs.show import check as run

    if config is None and not explain:
        raise typer.BadParameter("name a configuration, or ask for --explain")
    run(config, settings or [], Console(), explained=explain, further=[check_query, check_sam])


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a run, e.g. runs/demo")]) -> None:
    """Rebuild a run's report.html from its record; works on an interrupted run too."""
    from server.report import build_report

    typer.echo(build_report(run))


@app.command()
def compare(
    config: Config,
    query: Annotated[
        list[str] | None,
        typer.Option(
            "--query",
            help="Strategies, e.g. --query entropy feal+stochastic; after an @ whose model scores, e.g. bald@both; both randoms "
            "always take part",
        ),
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seeds", help="Seeds; default 0 1 2")] = None,
    settings: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison; default runs/compare-NAME")] = None,
) -> None:
    """Compare query strategies on the same hospitals: learning curves, minutes, and which differences are real.

    [bold]wardround compare configs/demo.toml --query entropy coreset --seeds 0 1 2[/]

    The same command goes on where it stopped, and may be started twice to use two processors.
    """
    from simulation.compare.run import compare as run

    run(config, settings or [], queries=query or [], seeds=seeds or [0, 1, 2], out=out)


@app.command()
def strategies() -> None:
    """List the query strategies: what each chooses, what it costs, and who published it."""
    from configs.show_strategies import show

    show(Console())


@app.command("pretrain-sam")
def pretrain_sam(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, the log and the weights")] = Path("runs/pretrain-sam"),
    steps: Annotated[int, typer.Option(min=0, help="Training steps; 0, with --start, trains the IoU head alone")] = 10_000,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and images")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="The image encoder in bfloat16: quicker where the processor has it")
    ] = False,
    start: Annotated[str, typer.Option(help='Weights to start from: a file, or "small" for the shipped ones')] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint")] = False,
) -> None:
    """Pre-train the small SAM on synthetic images. What the shipped weights came from is in client/weights/small_sam.md."""
    from simulation.pretrain_sam import pretrain

    pretrain(out, steps=steps, batch=batch, seed=seed, device=device, bfloat16=bfloat16, start=start, resume=resume)


@site_app.command()
def egress(workspace: Annotated[Path, typer.Argument(help="A site's workspace, e.g. runs/demo/sites/ward-a")]) -> None:
    """Show all that ever left a site, and whether the log is intact."""
    from client.egress import render

    render(workspace / "egress.jsonl", Console())


@site_app.command()
def worklist(workspace: Annotated[Path, typer.Argument(help="A site's workspace")]) -> None:
    """Show what the site's experts are asked for, why, and what was wrong with an answer."""
    from client.annotate.show import render_worklist

    render_worklist(workspace, Console())


@site_app.command()
def sam(
    workspace: Annotated[Path, typer.Argument(help="A site's workspace")],
    cases: Annotated[int, typer.Option(min=1, max=100, help="How many slices to look at")] = 6,
    out: Annotated[Path | None, typer.Option(help="PNG to write; default sam.png in the workspace")] = None,
) -> None:
    """Draw what SAM is asked about the site's own images, what it answers, and what of that is believed and taught."""
    from client.sam_picture import show

    show(workspace, Console(), cases=cases, out=out)


@site_app.command()
def clear(workspace: Annotated[Path, typer.Argument(help="A site's workspace")]) -> None:
    """Let a site go on that stopped because its pool did not add up; shows why, and what to check."""
    from client.stop import clear as run

    run(workspace, Console())


def main() -> None:
    """Entry point: what a user can mend gives a message and exit code 2, never a traceback."""
    try:
        app(args=spread(sys.argv[1:]))
    except Exception as fault:
        if not isinstance(fault, _mendable()):
            raise
        Console(stderr=True).print(f"[red]wardround:[/] {escape(str(fault))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _mendable() -> tuple[type[Exception], ...]:
    """Errors whose message says what to do; looked up only when something failed, so that --help starts at once."""
    from client.faults import SiteFault
    from client.formats.image import FormatError
    from client.sam_checkpoint import SamUnavailable
    from server.report_data import NotARun
    from server.sites import FederationFault
    from simulation.cluster import ClusterFault
    from simulation.pretrain_recipe import PretrainFault
    from simulation.run import RunFolderError
    from simulation.split import DataFault

    own = (ClusterFault, DataFault, FederationFault, FormatError, NotARun, PretrainFault, RunFolderError, SiteFault)
    return (ConfigError, FolderInUse, SamUnavailable, StorageFault, *own)


if __name__ == "__main__":
    main()
