"""What a run of the example is: sizes, lengths, learning rates and seeds; one set for the whole run, one to try it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from examples.quickstart.samples import DOMAINS
from examples.quickstart.train_specialists import Shape
from examples.shared.kept_settings import keep_values, read_values

# A model that is not a specialist's child takes this template for everything: the shortest, and nobody's own wording.
COMMON_TEMPLATE = "text"
# The samples of a domain that its specialist is trained on, those that fusion and its alternatives are, and held out.
PARTS = ("specialist", "fusion", "dev", "test")
FULL_SHAPE = Shape(hidden_size=160, intermediate_size=448, layers=4, heads=5)


@dataclass(frozen=True)
class Settings:
    """One run's settings; they are written to settings.json, and an output directory belongs to one set.

    Attributes:
        seeds: of the rows that are repeated; the first one has the other rows too.
        shape: of a specialist: hidden size, intermediate size, layers, heads.
        text_samples: the text specialist's training samples at most; so few that they are learnt in affordable time.
        code_samples: the same of code.
        fusion_samples: by domain, those that no specialist is trained on, but everything that is made of them.
        gsm_templates: of gsm_symbolic that are taken.
        gsm_per_template: worded problems made of each.
        sums: problems made of each of chain_sum and basic_arithmetic.
        held_out: samples of each domain in each of dev and test.
        problems: of each of chain_sum and basic_arithmetic that are solved by generating.
        batch_tokens: positions of a step that trains a model from scratch.
        layer_rate: learning rate of layers from scratch.
        embedding_rate: learning rate of embedding and head from scratch; they see each row rarely.
        flat_interval: steps between two looks at the dev loss.
        flat_patience: so many looks in a row without a new lowest dev loss are flat.
        flat_margin: what a new lowest dev loss must be lower by, in nats.
        flat_decay: steps of the decay to 0, as a part of those up to the best look.
        flat_most_tokens: what a training from scratch may take, its decay included; it ends its constant rate there if
            it is not flat before. The larger model may take `larger_factor` times as many.
        larger_factor: see above.
        samples_per_domain: of a step of both of the fused stages, and of every fine-tune.
        warmup_steps: of the core rows.
        warmup_rate: learning rate of warm-up.
        joint_steps: of every variant, and of every fine-tune beside the warm-up's.
        joint_rate: learning rate of joint training, of the fine-tunes and of specialists that are trained on.
        gate_hidden_size: of the core rows.
        warmup_lengths: other lengths of warm-up, the first seed.
        gate_hidden_sizes: other hidden sizes of the gate, the first seed.
    """

    seeds: tuple[int, ...] = (1, 2, 3)
    shape: Shape = FULL_SHAPE
    text_samples: int = 1500
    code_samples: int = 1500
    gsm_templates: int = 24
    fusion_samples: Mapping[str, int] = field(default_factory=lambda: {"text": 1500, "code": 1000, "math": 2000})
    gsm_per_template: int = 160
    sums: int = 10_000
    held_out: int = 300
    problems: int = 100
    batch_tokens: int = 2048
    layer_rate: float = 2e-3
    embedding_rate: float = 1e-2
    flat_interval: int = 80
    flat_patience: int = 3
    flat_margin: float = 0.002
    flat_decay: float = 0.15
    flat_most_tokens: int = 2_000_000
    larger_factor: float = 3.0
    samples_per_domain: int = 4
    warmup_steps: int = 100
    warmup_rate: float = 2e-3
    joint_steps: int = 240
    joint_rate: float = 6e-4
    gate_hidden_size: int = 512
    warmup_lengths: tuple[int, ...] = (25, 400)
    gate_hidden_sizes: tuple[int, ...] = (32, 2048)


FULL = Settings()
FAST = Settings(
    seeds=(1,),
    shape=Shape(hidden_size=64, intermediate_size=160, layers=2, heads=2),
    fusion_samples={"text": 300, "code": 200, "math": 300},
    gsm_per_template=40,
    sums=600,
    held_out=40,
    problems=10,
    batch_tokens=1536,
    flat_interval=10,
    flat_patience=2,
    flat_margin=0.01,
    flat_most_tokens=80_000,
    samples_per_domain=2,
    warmup_steps=8,
    joint_steps=12,
    warmup_lengths=(2,),
    gate_hidden_sizes=(16,),
)


def write_settings(settings: Settings, path: Path) -> None:
    """Writes settings.json, or compares with the one that is there.

    Raises:
        UserError: the output directory was made with other settings.
    """
    keep_values(dataclasses.asdict(settings) | {"shape": settings.shape._asdict()}, path)


def read_settings(path: Path) -> Settings:
    """What `write_settings` wrote."""
    values = read_values(path)
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Settings(**(values | lists | {"shape": Shape(**values["shape"])}))


def part_file(out: Path, domain: str, part: str) -> Path:
    """The samples of a domain in one of `PARTS`."""
    if domain not in DOMAINS or part not in PARTS:
        raise ValueError(f"no samples of {domain!r} in {part!r}")
    return out / "data" / f"{domain}.{part}.jsonl"
