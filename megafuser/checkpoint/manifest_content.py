"""What the `content` of a `manifest.json` holds: `SpecialistContent` for a specialist, `RunContent` for a run.

These are the keys of the JSON itself. One that is `NotRequired` is left out where there is nothing to say, or is not in
checkpoints of this format version that were written before it came; its line says how that is read. A specialist's
content is written by `megafuser.conversion.hf_to_mcore`, a run's by `megafuser.training.checkpoint_contents`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict


class Origin(TypedDict):
    """What a specialist was converted from.

    Attributes:
        name: the repository's name, or the directory's.
        repository: ORG/NAME on the hub; null for a directory.
        revision: its commit; null for a directory.
        content: a hash over all tensors of the original; in a specialist's own manifest only.
    """

    name: str
    repository: str | None
    revision: str | None
    content: NotRequired[str]


class SpecialistContent(TypedDict):
    """The content of a specialist's manifest.

    Attributes:
        card: its architecture card, as `ArchitectureCard.to_dict` gives it.
        source: what it was converted from.
        tied_head: key of an output head that the original stored though it is the embedding; null where there was none.
        rounded_to: dtype of `--dtype`; null for `keep`, which is also how its absence is read (older checkpoints).
    """

    card: dict[str, Any]
    source: Origin
    tied_head: str | None
    rounded_to: NotRequired[str | None]


class Gate(TypedDict):
    """The gate that a run trains.

    Attributes:
        hidden_size: units of its hidden layer.
        temperature: what its scores are divided by; absent in older checkpoints, which were trained at 1.
    """

    hidden_size: int
    temperature: NotRequired[float]


class Layout(TypedDict):
    """Parallel sizes at the time of saving, for the record: weights load at any.

    Attributes:
        tensor: tensor-parallel size.
        pipeline: pipeline stages.
        data: data-parallel size.
    """

    tensor: int
    pipeline: int
    data: int


class OptimizerLayout(TypedDict):
    """What the distributed optimizer's buckets depend on, where its states are saved as the ranks hold them.

    Attributes:
        tensor: tensor-parallel size.
        pipeline: pipeline stages.
        virtual_pipeline: model chunks of each pipeline rank.
        bucket_size: elements of a bucket; null for one bucket.
    """

    tensor: int
    pipeline: int
    virtual_pipeline: int
    bucket_size: int | None


class Reference(TypedDict):
    """Where a run's checkpoint says that a specialist's converted checkpoint was, and what it was.

    Attributes:
        path: absolute.
        relative_path: seen from the run's checkpoint; looked at first, since both may have been moved together.
        content_hash: of its weights and card, as `megafuser.checkpoint.manifest.content_hash` makes it.
        source: what it was converted from.
    """

    path: str
    relative_path: str
    content_hash: str
    source: Origin


class DomainCounts(TypedDict):
    """What a stage has trained on of one domain; a sample counts each time it is seen.

    Attributes:
        samples: number of samples.
        tokens: without padding, of the longest view of each sample.
        response_tokens: tokens that the loss counts.
    """

    samples: int
    tokens: int
    response_tokens: int


class Counts(TypedDict):
    """What a stage has trained on, in all and by domain.

    Attributes:
        samples: of all domains.
        tokens: of all domains.
        response_tokens: of all domains.
        domains: of each domain.
    """

    samples: int
    tokens: int
    response_tokens: int
    domains: Mapping[str, DomainCounts]


class EarlierStage(TypedDict):
    """What is kept of a stage that a later one started from.

    Attributes:
        step: optimizer steps it had done.
        counts: what it had trained on.
    """

    step: int
    counts: Counts


class RunContent(TypedDict):
    """The content of the manifest of a run's checkpoint, warm-up or joint.

    Attributes:
        stage: `warmup` or `joint`.
        step: optimizer steps done: also the position in the data, which follows from the seed alone.
        cards: specialist → its architecture card, in the order of the gate's weights.
        gate: the gate's size and temperature.
        shared_vocabulary: ids below it are scored and generated.
        end_id: the id that ends a response.
        layout: parallel sizes at the time of saving.
        data: domain → `train` or `valid` → key of its samples; absent in older checkpoints, and not compared on
            resuming then.
        versions: `python` or a library → its version, for the record; absent in older checkpoints.
        references: specialist → its converted checkpoint.
        counts: what the stage has trained on.
        skipped_steps: steps without an update, since loss or gradients were not finite; absent where there were none.
        warmup: the warm-up that a joint stage comes from; absent in a warm-up.
        earlier_joint: the joint stages between that warm-up and this stage, oldest first; absent where there were none.
        validation: what the stage's validations have found, as `ValidationRecord`; absent before the first.
        optimizer_layout: the one layout that the optimizer's states load at; absent where they are by parameter, which
            loads at any.
    """

    stage: str
    step: int
    cards: Mapping[str, dict[str, Any]]
    gate: Gate
    shared_vocabulary: int
    end_id: int
    layout: Layout
    data: NotRequired[Mapping[str, Mapping[str, str]]]
    versions: NotRequired[Mapping[str, str]]
    references: Mapping[str, Reference]
    counts: Counts
    skipped_steps: NotRequired[int]
    warmup: NotRequired[EarlierStage]
    earlier_joint: NotRequired[Sequence[EarlierStage]]
    validation: NotRequired[dict[str, Any]]
    optimizer_layout: NotRequired[OptimizerLayout]
