"""Typed settings of a run. A configuration is values: everything a run does follows from one TOML file and its overrides.

`load` (in `configs/load.py`) reads a file and reports all faults at once; the models here say what is allowed.
Every field's description is shown by `wardround check --explain`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from configs.conflicts import conflicts
from strategies.query import STRATEGIES, fault_of
from strategies.semi import FRAMEWORKS

if TYPE_CHECKING:
    FrameworkName = str
else:
    FrameworkName = Literal[tuple(FRAMEWORKS)]
"""As the table has them: a type checker can't read it, whoever loads a configuration can."""


def _known_query(name: str) -> str:
    fault = fault_of(name)
    if fault is not None:
        raise ValueError(fault)
    return name


QueryName = Annotated[str, AfterValidator(_known_query)]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
HeldOut = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
NAME = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$"
"""Names become folders: no path, no leading dot."""


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Phantom(Settings):
    """Synthetic hospitals, written as DICOM by `simulation/phantom.py`; used when `data.format = "phantom"`."""

    hospitals: Positive = Field(4, description="how many hospitals; each has its own scanner, size and case mix")
    patients: list[Positive] = Field([12], description="patients per hospital; one number for all, or one each")
    slices: Positive = Field(8, description="slices per patient")
    size_px: Positive = Field(96, description="rows and columns of a slice")


class Data(Settings):
    """Where images and the truth for simulated experts come from."""

    format: Literal["phantom", "dicom", "nifti", "picture"] = Field("phantom", description="kind of files")
    root: str = Field("", description='folder of the set, e.g. "${WARDROUND_DATA}/acdc"; not needed for phantoms')
    index: str = Field("index.csv", description="table of cases under root: case or patient, optional site")
    slice_axis: Literal[0, 1, 2] = Field(2, description="NIfTI axis that is cut into slices; DICOM keeps its own slices")
    window: tuple[float, float] | None = Field(
        None, description="[centre, width] of the intensities that the network sees, in the files' units; none: all"
    )
    phantom: Phantom = Phantom()

    @model_validator(mode="after")
    def _root_is_given(self) -> Data:
        if self.format != "phantom" and not self.root:
            raise ValueError(f'root is empty: format = "{self.format}" needs the folder that holds the images')
        return self


class Split(Settings):
    """How patients are spread over sites, and which are held out. Patients never stand on two sides of a split."""

    sites: Literal["column", "dirichlet", "size", "scanner"] = Field(
        "column",
        description="column: the index's site column; dirichlet: label skew; size: size skew; scanner: equal parts, "
        "each seen through an appearance of its own",
    )
    count: Positive = Field(4, description="number of sites where the split makes them")
    alpha: Annotated[float, Field(gt=0)] = Field(0.5, description="Dirichlet concentration: small is skewed")
    split_seed: Count = Field(0, description="draws sites and held-out patients; does not move with seed")
    test_fraction: HeldOut = Field(0.25, description="share of each site's patients held out for test; one at least")
    validation_fraction: HeldOut = Field(0.15, description="share of each site's patients for validation; one at least")
    folds: Count = Field(
        0, description="part each site's patients into so many, and hold out one part for test instead of test_fraction; 0: don't"
    )
    fold: Count = Field(0, description="the part that is held out, from 0 on; `wardround compare` runs them all")
    start: Literal["any", "foreground"] = Field(
        "any", description="what a site's first cases are drawn from: its whole pool, or the slices in it that show a class"
    )


class Preprocess(Settings):
    """From a file's grid to the network's grid; invertible, and the same everywhere."""

    size_px: Annotated[int, Field(ge=32, multiple_of=16)] = Field(128, description="side of the network's input")
    channels: Literal[1, 3] = Field(1, description="1: grey (colour is averaged); 3: RGB pictures")
    neighbours: Literal[0, 1, 2] = Field(
        0, description="2.5D: slices on either side of a volume's slice that the network sees as further channels"
    )
    spacing_mm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="resample in-plane to this pixel size before fit and pad; none: scale to fit"
    )
    low_percentile: Annotated[float, Field(ge=0, lt=50)] = Field(0.5, description="intensity clip, per image")
    high_percentile: Annotated[float, Field(gt=50, le=100)] = Field(99.5, description="intensity clip, per image")

    @property
    def in_channels(self) -> int:
        """Channels of what the network sees: the slice's own, and those of its neighbours."""
        return self.channels * (2 * self.neighbours + 1)


class Network(Settings):
    """The specialist that is trained."""

    name: Literal["unet_tiny", "unet_small", "unet"] = Field("unet", description="MONAI UNet: 0.1, 0.4, 1.6 M parameters")
    norm: Literal["instance", "group"] = Field("instance", description="normalisation; never BatchNorm")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout in the two deepest levels, needed above 0 by bald and vote_entropy"
    )
    head: Literal["softmax", "evidential"] = Field(
        "softmax", description="evidential: the network says how much evidence it has (and is trained to), as feal needs it"
    )


class Train(Settings):
    """Local training; a round is a fixed number of local steps."""

    framework: FrameworkName = Field("unimatch", description="semi-supervised framework; the default did best with few labels")
    rounds_per_cycle: Positive = Field(3, description="federated rounds in a cycle")
    local_steps: Positive = Field(20, description="gradient steps a site takes in a round")
    batch_labelled: Positive = Field(8, description="labelled images in a batch")
    batch_unlabelled: Positive = Field(8, description="unlabelled images in a batch, for semi-supervised frameworks")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="AdamW learning rate")
    learning_rate_end: Fraction = Field(
        1.0, description="share of it that is left at the end of the run (of each cycle, where weights begin anew); 1: all"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="AdamW weight decay")
    consistency_weight: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="factor on the weight of what unlabelled images teach: 0.1 for both mean teachers, 1 for the others; "
        "unimatch begins with 4 times that and comes down to it by the end",
    )
    ramp_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="share of all steps in which that ramps up (unimatch and copy_paste have no ramp), and SAM's weight down"
    )
    proximal_mu: Annotated[float, Field(ge=0)] = Field(0.0, description="FedProx term; 0 is FedAvg")
    augment: bool = Field(True, description="random flips, rotation, scale and intensity")
    flip: bool = Field(True, description="mirror images when augmenting; false where a side tells classes apart")
    max_update_norm: Annotated[float, Field(gt=0)] | None = Field(None, description="clip the update to this L2 norm")


class Sam(Settings):
    """SAM's help: a frozen promptable generalist whose masks are one more consistency target."""

    enabled: bool = Field(True, description="whether SAM takes part, with whatever framework")
    checkpoint: str = Field("small", description='"small" (shipped) or the path of an official checkpoint')
    weight: Annotated[float, Field(ge=0)] = Field(0.3, description="mu: weight of the SAM term before its ramp")
    start: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5,
        description="share of the steps before SAM is asked (it begins with the next round); beside a specialist that knows "
        "little, anything looks like help",
    )
    every: Positive = Field(1, description="ask SAM at every n-th step only")
    box: bool = Field(True, description="prompt with the box around each component of the prediction")
    positives: Count = Field(1, description="prompt with so many clicks inside it")
    negatives: Count = Field(2, description="prompt with so many clicks outside, where the class surely is not")
    mask: bool = Field(False, description="prompt with the prediction itself, as a coarse mask")
    beside: bool = Field(False, description="make prompts from the predictions of a slice and of those beside it together")
    min_iou: Fraction = Field(
        0.5, description="keep a mask from this predicted IoU on; 0 asks for none. The small SAM rates its good masks .5 to .8"
    )
    min_agreement: Fraction = Field(0.6, description="keep a mask from this Dice on with the teacher's component; 0: none")
    min_stability: Fraction = Field(0.0, description="keep a mask if moved prompts give it again with this IoU or more; 0: none")
    trust: bool = Field(
        True,
        description="from its start on let SAM count, by class, as far as it helps on the site's validation patients (or "
        "labelled cases)",
    )
    adapt: Literal["none", "decoder", "lora"] = Field("none", description="what of SAM the federation trains with it")
    adapt_steps: Positive = Field(10, description="steps on the adapter in a round")
    lora_rank: Positive = Field(4, description="rank of the matrices of lora")
    size: Literal["small", "vit_b", "vit_l", "vit_h"] = Field("small", description="size of the SAM that is adapted")

    def may_count(self, *, step: int, total_steps: int) -> bool:
        """Whether SAM may teach in a round that begins at `step` of `total_steps`: not before the specialist had its start.

        SemiSAM (arXiv 2312.06316) lets SAM count most at first, when the specialist knows least. But whatever takes the place
        of a poor prediction adds to its Dice, the very box it was asked with as well: no trust can tell then who knows
        something, and a specialist that learns from its own predictions keeps the shapes that it was told.
        """
        return self.weight > 0 and step >= (self.start - 1e-9) * total_steps


class Query(Settings):
    """Which cases a site asks its experts for."""

    strategy: QueryName = Field(
        "entropy", description="how cases are scored, and after a + how they are chosen; `wardround strategies` lists them"
    )
    cold_start: Literal["random", "typiclust", "probcover"] = Field(
        "random", description="how a run's first cases are chosen, where a site names none: at random, or by SAM's embeddings"
    )
    unit: Literal["slice", "volume", "patient"] = Field(
        "slice", description="what an expert is asked for at a time, and what budgets count; labels count slices"
    )
    model: Literal["global", "local", "both", "switch"] = Field(
        "global", description="whose prediction is scored; switch: each site's is chosen by how far they differ (FairFAL)"
    )
    passes: Positive = Field(8, description="forward passes with dropout of bald and vote_entropy; 1, without it, for two models")
    per_patient: Positive = Field(1, description="cases of a patient in a batch that +cap lets through")
    power_beta: Annotated[float, Field(gt=0)] = Field(1.0, description="beta of the power wrapper")


class Budget(Settings):
    """How many cases experts are asked for."""

    rule: Literal["fixed", "proportional", "adaptive", "coordinated"] = Field(
        "fixed",
        description="per site equal, by pool size (anew each cycle: a site with few of all cases may get none), by how unsure "
        "the model is of the cases that would come next, or by kinds of cases that sites find together from sums; a site of "
        "unknown pool gets the equal share",
    )
    floor: Fraction = Field(0.5, description="share of per_cycle that adaptive grants every site in any case")
    cold_start: Positive = Field(4, description="cases per site before any training")
    per_cycle: Count = Field(4, description="cases per site and cycle after it (on average, when proportional)")


class Federation(Settings):
    """The coordinator's side of the loop."""

    cycles: Positive = Field(4, description="train, assess, grant, annotate: how often")
    restart: Literal["continue", "initial"] = Field("continue", description="weights each cycle starts from")
    aggregate: Literal["mean", "median", "trimmed_mean"] = Field("mean", description="how updates become one")
    weighting: Literal["labelled", "equal"] = Field("labelled", description="weight of a site's update")
    server_optimiser: Literal["none", "momentum", "adam"] = Field("none", description="step on the aggregated update")
    server_learning_rate: Annotated[float, Field(gt=0)] = Field(1.0, description="of the server's step")
    min_sites: Positive = Field(1, description="with fewer replies than this a step fails")
    quorum: Fraction = Field(1.0, description="share of granted labels that ends the waiting")
    deadline_polls: Positive = Field(3, description="ask for outstanding labels at most this often, then go on")
    poll_seconds: Annotated[float, Field(ge=0)] = Field(0.0, description="pause between polls; 0 for simulated experts")
    reply_timeout_s: Annotated[float, Field(gt=0)] = Field(3600.0, description="a site that has not replied by then is late")


class Privacy(Settings):
    """What may leave a site."""

    share: Literal["updates", "updates+sums"] = Field("updates+sums", description="updates alone, or gated sums as well")
    min_patients: Positive = Field(1, description="a metric over fewer patients is withheld")


class Cost(Settings):
    """What a label costs an expert, in minutes, by a stated model (`strategies/effort.py`); 0 leaves a part out."""

    image: NotNegative = Field(0.5, description="opening an image, once for all its slices that are asked for together")
    slice: NotNegative = Field(0.1, description="looking at a slice")
    contour: NotNegative = Field(0.1, description="each contour that is drawn")
    length_px: NotNegative = Field(0.0025, description="each pixel of a contour's length, on the image's own grid")
    proposals: bool = Field(True, description="simulated experts begin with the site's model's mask, and correct it")


class Experts(Settings):
    """Simulated experts: the labels they give and when."""

    boundary_px: Annotated[float, Field(ge=0)] = Field(0.0, description="size of smooth boundary errors, in pixels")
    delay: Count = Field(0, description="most ticks (rounds or polls) between request and label; drawn per case")
    absence: Fraction = Field(0.0, description="probability that a site's expert is away for a cycle")


class Run(Settings):
    """All settings of a run."""

    name: str = Field("run", pattern=NAME, description="name of the run and its folder")
    seed: Count = Field(0, description="of everything random but the split")
    threads: Positive = Field(2, description="CPU threads of torch; results are compared at equal counts")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA when it is there")
    save_pictures: bool = Field(False, description="write example predictions for the report: synthetic or public images only")
    classes: dict[str, int | list[str]] = Field(
        description="class name to label value (NIfTI, pictures) or to RTSTRUCT ROI / SEG segment names with wildcards"
    )
    data: Data = Data()
    split: Split = Split()
    preprocess: Preprocess = Preprocess()
    network: Network = Network()
    train: Train = Train()
    sam: Sam = Sam()
    query: Query = Query()
    budget: Budget = Budget()
    federation: Federation = Federation()
    privacy: Privacy = Privacy()
    experts: Experts = Experts()
    cost: Cost = Cost()

    @model_validator(mode="after")
    def _fits_together(self) -> Run:
        faults = conflicts(self)
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def reads_sam(self) -> bool:
        """Whether sites need SAM at all: it takes part in training, or cases are chosen by its embeddings."""
        needs = (*STRATEGIES[self.query.strategy.split("+")[0]].needs, *STRATEGIES[self.query.cold_start].needs)
        return self.sam.enabled or "embeddings" in needs

    @property
    def needs_one_sam(self) -> bool:
        """Whether all sites must have the same SAM: they learn for it together, or put their embeddings together."""
        return (self.sam.enabled and self.sam.adapt != "none") or self.budget.rule == "coordinated"

    @property
    def rounds_with_sam(self) -> int:
        """In how many rounds of the run SAM may count."""
        if not self.sam.enabled:
            return 0
        each, trainings = self.train.rounds_per_cycle, self.federation.cycles  # weights begin anew so many times
        if self.federation.restart == "continue":
            each, trainings = each * trainings, 1
        return trainings * sum(self.sam.may_count(step=round_, total_steps=each) for round_ in range(each))

    @property
    def warnings(self) -> list[str]:
        """What is allowed, and surely not meant."""
        if self.sam.enabled and self.sam.weight > 0 and not self.rounds_with_sam:
            return [
                f"SAM has no part in this run, since no round begins at sam.start = {self.sam.start:g} of the steps or later: "
                "take more rounds or an earlier start, or set sam.enabled = false"
            ]
        return []

    @property
    def class_names(self) -> list[str]:
        """Foreground class names; class c of a label map (1-based) is `class_names[c - 1]`."""
        return list(self.classes)


class Site(Settings):
    """Settings of one hospital, in `site.toml` of its workspace; never sent anywhere."""

    name: str = Field(pattern=NAME, description="how the federation knows this site")
    key: str = Field(min_length=32, description="secret of the keyed hashes that stand for patients")
    format: Literal["dicom", "nifti", "picture"]
    images: str = Field("images.csv", description="table of this site's images: patient, image, path, role, truth, start")
    slice_axis: Literal[0, 1, 2] = 2
    window: tuple[float, float] | None = None
    classes: dict[str, int | list[str]] = Field(description="class name to label value or ROI names in this site's files")
    annotator: Literal["oracle", "folder"] = Field("folder", description="who answers requests")
    share: Literal["updates", "updates+sums"] = "updates"
    min_patients: Positive = 5
    sam_checkpoint: str = Field(
        "small", description='"small" or the path of a checkpoint at this site; the same everywhere where the run adapts SAM'
    )
    save_pictures: bool = False
    threads: Positive = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
