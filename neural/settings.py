"""The options of `[plugins.NAME]` with `class = "neural.two_tower:TwoTower"`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from features.schema import MINUTE
from features.settings import Duration, Settings, parse_duration
from features.state.lag import DAILY

#: columns of the towers, beside those of feedback
GRADE = "grade"
COLUMNS = ("dot", "user_vector", "item_vector", GRADE)
#: before the name of a feedback column
FEEDBACK = "feedback:"


def _span(value: object) -> object:
    # `load` reads what `save` wrote: µs.
    return value if type(value) is int and value >= 0 else parse_duration(value)


def _lag(value: object) -> object:
    if value == DAILY:
        return value
    try:
        return _span(value)
    except ValueError as error:
        raise ValueError(f'{error}; or "daily"') from error


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError(f"each name once was expected, found {names}")
    return names


def is_answer(column: str) -> bool:
    """Tell whether a column is of the heads of grade and feedback."""
    return column == GRADE or column.startswith(FEEDBACK)


def _column(name: str) -> str:
    if name in COLUMNS or (name.startswith(FEEDBACK) and name != FEEDBACK):
        return name
    raise ValueError(f"dot, user_vector, item_vector, grade or feedback:NAME was expected, found '{name}'")


Preset = Literal["today", "small", "base", "large", "huge"]

#: what each preset sets, as `TowerSettings` has it
PRESETS: dict[str, dict[str, Any]] = {
    "today": {
        "columns": ["dot"], "lag": 0, "history": 128, "width": 64, "encoder": "transformer", "layers": 2, "heads": 4,
        "dropout": 0.2, "id_dropout": 0.1, "id_shrink": 20.0, "pretrain_epochs": 10, "finetune_epochs": 6,
        "finetune_share": 1.0, "semantic_ids": 0, "words": False, "max_steps": 1500, "patience": 4,
        "learning_rate": 4e-3, "finetune_rate": 0.3, "weight_decay": 0.1, "table_decay": 1.0, "batch_tokens": 2048,
        "negatives": 256, "context": ["surface"], "feedback_kinds": False, "threads": 1, "teachers": 0,
        "distil_epochs": 10, "retrieval_epochs": 4, "retrieval_ahead": 30 * MINUTE, "retrieval_events": 1_000_000,
        "retrieval_negatives": 2048, "precision": "float32", "log_q": True, "next_items": "all",
        "pretrain_losses": ["next_item", "feedback"], "warm_pretrain_epochs": 2, "warm_finetune_epochs": 2,
        "warm_rate": 0.1,
    },
    "small": {"layers": 1, "width": 24, "heads": 2},
    "base": {"layers": 2, "width": 64, "heads": 4},
    "large": {"layers": 4, "width": 128, "heads": 8},
    "huge": {"layers": 6, "width": 256, "heads": 8},
}  # fmt: skip


class FitSettings(Settings):
    """What all networks over histories have in common: what they read, and how they are trained."""

    lag: Annotated[
        Literal["daily"] | int, BeforeValidator(_lag, json_schema_input_type=Duration | Literal["daily"])
    ] = Field(
        default=0,
        description='How much later than its ts an event is seen; "daily": what is seen is of before the last 00:00 of '
        "[time] zone.",
    )
    history: int = Field(
        default=128, ge=1, le=4096, description="The most events of a user that are read, the latest ones."
    )
    width: int = Field(default=64, ge=8, le=1024, multiple_of=8, description="Numbers in a vector, a multiple of 8.")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="Share of the activations that training drops.")
    id_dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="How often training hides an item's id, so that its attributes learn to speak for new items.",
    )
    id_shrink: float = Field(
        default=20.0, ge=0, description="The id of an item with n events weighs n / (n + id_shrink)."
    )
    semantic_ids: int = Field(
        default=0,
        ge=0,
        le=8,
        description="Levels of semantic ids (`pairlift config neural.semantic_ids:SemanticIds`) that items' vectors "
        "are made of beside ids and attributes, so that like items share embeddings; 0: none.",
    )
    words: bool = Field(
        default=False,
        description="Embed the words of [items.text] and [users.text] too. For titles; of longer texts a vector, "
        "as [items.columns] takes it, says more.",
    )
    pretrain_epochs: int = Field(
        default=20, ge=0, description="The most epochs of pre-training, on the events of the towers' period."
    )
    finetune_epochs: int = Field(
        default=10, ge=0, description="The most epochs of fine-tuning, on the weighted pairs of the towers' period."
    )
    finetune_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of that period's groups that fine-tuning learns from, the same ones in every fit; less than "
        "all tells what more of them would bring (`pairlift study --study finetuning`).",
    )
    max_steps: int = Field(
        default=2000,
        ge=1,
        description="Steps of pre-training and of fine-tuning: epochs beyond them are left out, but never the first "
        "two.",
    )
    patience: int = Field(
        default=4, ge=1, description="Epochs without a better validation PairAccuracy before a phase stops."
    )
    learning_rate: float = Field(default=4e-3, gt=0, description="The highest learning rate of pre-training.")
    finetune_rate: float = Field(
        default=0.3, gt=0, description="The highest learning rate of fine-tuning, as a share of learning_rate."
    )
    weight_decay: float = Field(
        default=0.1,
        ge=0,
        description="Weight decay of all matrices but the embedding table; biases and norms have none.",
    )
    table_decay: float = Field(default=1.0, ge=0, description="Weight decay of the embedding table.")
    batch_tokens: int = Field(default=2048, ge=1, description="Tokens (events of histories) in a batch.")
    threads: int = Field(
        default=1,
        ge=1,
        description="Threads of training; serving has one. Networks of the default sizes train no faster on more, and "
        "`pairlift uplift` fits several at a time.",
    )


class NetworkSettings(FitSettings):
    """What the transformers over histories have in common."""

    encoder: Literal["transformer", "hstu"] = Field(
        default="transformer",
        description="What reads the history. transformer: attention whose weights have the sum 1, then an MLP. hstu: "
        "the blocks of arXiv 2402.17152, whose weights are SiLU of scores with biases of distance and time, so that "
        "many like events weigh more than few, and a gate in place of the MLP: five eighths of the parameters.",
    )
    layers: int = Field(default=2, ge=1, le=24, description="Blocks of the encoder.")
    heads: int = Field(default=4, ge=1, description="Attention heads of a block; they must divide the width.")
    negatives: int = Field(
        default=256,
        ge=2,
        description="Negatives of the next-item loss: half from the batch's own items, half drawn evenly from all "
        "items with events.",
    )
    pretrain_losses: Annotated[list[Literal["next_item", "feedback"]], AfterValidator(_distinct)] = Field(
        default=["next_item", "feedback"],
        min_length=1,
        description="What pre-training learns of each event, from the state before it: next_item (which item it is of) "
        "and feedback (its grade, and each of [events.feedback]). Of next_item alone, the epoch is chosen by the "
        "validation slice's log-likelihood of the next item, for no score is learned yet.",
    )
    log_q: bool = Field(
        default=True,
        description="Correct the next-item loss for how often each negative is drawn (logQ). Without it, what is often "
        "met is often a negative, and held to be less likely than it is.",
    )
    next_items: Literal["all", "wanted"] = Field(
        default="all",
        description="Which events the next-item loss learns: all, or the wanted ones alone (of the grade that [lists] "
        "wanted names, or better; all where the fit has none of them, as SASRec does). Histories hold all events and "
        "feedback learns of all, in either case.",
    )
    context: Annotated[list[str], AfterValidator(_distinct)] = Field(
        default=["surface"],
        description="What a request says of itself that meets the user's state behind the transformer: surface, hour "
        "and weekday (in [time] zone; not for a log whose times of day are not real), and names of [events.context]. "
        "Those of each past event are read in the history too.",
    )
    feedback_kinds: bool = Field(
        default=False,
        description="Learn shares (numbers from 0 to 1) by cross-entropy, and by their logarithm counts (whole numbers "
        "from 0) and times (other numbers from 0 with a long tail, in whatever unit; amounts paid are learned alike). "
        "Without it only what is 0 or 1 has a cross-entropy, and all others are learned as numbers: scaled, with a "
        "Huber loss.",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> "NetworkSettings":
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        return self


class TowerSettings(NetworkSettings):
    """What the plugin gives, the sizes of the towers, and how they are trained.

    The defaults were first chosen without a record, perhaps on a test slice, and were tried again on 26 November 2026
    with `make bench WHAT=towers`: one option at a time (which, and to what value, stands in the trials:
    `tests/bench/results/towers_trials.json`), on the logs of both examples, by what `dot` gains the booster on its
    validation slice; no test group is read. A default is changed where both logs agree by more than the fits of one
    setting differ.

    Epochs were tried again on the same day, of three fits each, by what `dot` gains the booster out of fold over its
    whole period: on the smaller log 20 and 10 gave +3.2 % (standard deviation of fits 0.15 %), 10 and 6 gave +2.4 %
    (0.2 %); the larger log's fits were ended by max_steps, of which 4,000 in place of 1,500 were worth neither more nor
    less there. The losses of pre-training beside that of fine-tuning brought nothing on either, nor an average of the
    weights over steps on the smaller.

    Teachers: the mean of three or four fits gained +3.4 % and +1.2 % where each gained +3.2 % and +0.6 % (as above);
    and the PairAccuracy of the validation slice went from .687 of the fits to .691 of the student on the smaller log,
    from .617 to .619 on a third of the larger (10 and 6 epochs, 1,500 steps). So it was again with the
    defaults that came of it, in each of five fits: .693 to .695 where `today` has .686 to .689, and .637 to .638 where
    it has .636. On the tests, which chose nothing, they gain over `today` +0.42 % [+0.01, +0.83] and, not shown,
    +0.19 % [-0.16, +0.54].
    """

    preset: Preset | None = Field(
        default=None,
        description="Values for options that are not given. today: every option as its default was on 26 November "
        "2026. small, base, large, huge: layers x width of 1 x 24, 2 x 64, 4 x 128 and 6 x 256.",
    )
    columns: Annotated[list[Annotated[str, AfterValidator(_column)]], AfterValidator(_distinct)] = Field(
        default=["dot"],
        min_length=1,
        description="What the ranker gets: dot (the scalar product of the two vectors); user_vector or item_vector, of "
        "as many columns as the towers are wide; grade (the expected one, the worst being 0); feedback:NAME (the "
        "expected value of a name of [events.feedback]: a probability where it is 0 or 1). These last two come from "
        "heads of their own, fitted behind the towers, which they do not change.",
    )
    precision: Literal["float32", "int8"] = Field(
        default="float32",
        description="In which the trunk of the user tower is served. int8: its products with weights by ONNX Runtime's "
        "dynamic quantisation, one history a call; the fit's report says what that changes in validation. For wide "
        "towers: a call took 0.88 to 1.0 of the CPU time at 2 x 64, where attention takes most of it, and 0.75 to 0.79 "
        "at 4 x 256.",
    )
    teachers: int = Field(
        default=3,
        ge=0,
        le=16,
        description="Train so many towers, which differ by their seed, and then those that are served to say what the "
        "mean of them says. 0: the towers learn from the log alone, in a quarter of the time that three teachers take; "
        "serving costs the same. It brings most where fits of one setting differ much.",
    )
    distil_epochs: int = Field(default=10, ge=1, description="The most epochs of learning from teachers.")
    warm_pretrain_epochs: int = Field(
        default=2,
        ge=0,
        description="The most epochs of pre-training where a fit goes on from an earlier one (`pairlift train "
        "--warm-plugins`), and never more than pretrain_epochs.",
    )
    warm_finetune_epochs: int = Field(
        default=2, ge=0, description="Likewise of fine-tuning, and never more than finetune_epochs."
    )
    warm_rate: float = Field(
        default=0.1, gt=0, description="There, the highest learning rates, as a share of what they are else."
    )
    retrieval_epochs: int = Field(
        default=4,
        ge=0,
        description="Epochs of the head that retrieves, on the wanted events of the towers' period, and more where "
        "these are fewer than 300 steps; the towers stay as they are. 0: no such head, and the source `nearest` goes "
        "by the two vectors.",
    )
    retrieval_ahead: Annotated[int, BeforeValidator(_span, json_schema_input_type=Duration)] = Field(
        default=30 * MINUTE,
        description="This head learns to tell from a user's state what the user wants within so long, not the very "
        "next item alone.",
    )
    retrieval_events: int = Field(
        default=1_000_000,
        ge=1,
        description="The most events that this head learns from; of more, so many are drawn. They are held in memory: "
        "8 bytes times the width for each.",
    )
    retrieval_negatives: int = Field(
        default=2048,
        ge=2,
        description="Items that each step of this head tells the wanted ones from: all items with events where there "
        "are no more, else half drawn as they are wanted, half evenly.",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, options: Any) -> Any:
        preset = options.get("preset") if isinstance(options, dict) else None
        return {**PRESETS[preset], **options} if isinstance(preset, str) and preset in PRESETS else options
