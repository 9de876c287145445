"""What `fusion_step.py` and `scaling.py` share: random specialists, samples of instruction data's lengths, our engine.

Imported beside them; `main` of each puts the repository on the path first.
"""

import contextlib
import json
import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

# What the templates of the paper's three specialists add to a prompt, in tokens; further specialists begin again.
TEMPLATE_TOKENS = (6, 10, 38)
GATE_HIDDEN = 512


@dataclass(frozen=True)
class Case:
    """Sizes of a fusion, Llama-shaped, and of one step's data.

    Attributes:
        specialists: K.
        hidden: h; the MLP is 8/3 as wide, heads are 64 wide.
        layers: of each specialist.
        vocabulary: ids, all shared.
        samples: of a step.
        mean: of the samples' lengths, in tokens; they are log-normal.
        sigma: of their logarithms.
        width: most positions of a row.
        dtype: `fp32` or `bf16`.
        seed: of weights and samples.
    """

    specialists: int = 3
    hidden: int = 768
    layers: int = 3
    vocabulary: int = 32000
    samples: int = 20
    mean: int = 220
    sigma: float = 0.8
    width: int = 1024
    dtype: str = "fp32"
    seed: int = 0

    def to_json(self) -> str:
        """For the command line of a subprocess."""
        return json.dumps(asdict(self))

    @property
    def names(self) -> list[str]:
        """The specialists' names."""
        return [f"s{index}" for index in range(self.specialists)]

    def huggingface(self) -> dict[str, Any]:
        """The Hugging Face configuration of each specialist."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.hidden * 8 // 3 // 64 * 64,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.hidden // 64,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": "float32",
        }


def made_up_samples(case: Case) -> Any:
    """One domain of random ids; the response is about half of a sample."""
    from megafuser.data.tokenized import TokenizedDomain, make_batch

    generator = np.random.default_rng(case.seed)
    logarithm = np.log(case.mean) - case.sigma**2 / 2
    longest = case.width - max(TEMPLATE_TOKENS)
    lengths = np.clip(generator.lognormal(logarithm, case.sigma, case.samples), 16, longest).astype(int)
    prompts: list[Any] = [[] for _ in range(case.specialists)]
    responses = []
    for length in lengths:
        response = generator.integers(3, case.vocabulary, max(4, int(length * generator.uniform(0.3, 0.7)))).tolist()
        instruction = generator.integers(3, case.vocabulary, max(1, length - len(response))).tolist()
        extra = [TEMPLATE_TOKENS[k % len(TEMPLATE_TOKENS)] for k in range(case.specialists)]
        for own, more in zip(prompts, extra, strict=True):
            own.append([[*generator.integers(3, case.vocabulary, more).tolist(), *instruction]])
        responses.append([response])
    names = [str(index) for index in range(len(lengths))]
    return TokenizedDomain.in_memory("any", [make_batch(names, prompts, responses)])


def packed_rows(case: Case) -> tuple[list[Any], float]:
    """The step's rows and the share of their positions that are real."""
    from megafuser.data.packing import pack
    from megafuser.data.row_building import build_row

    domain = made_up_samples(case)
    packing = pack(domain.lengths, case.width)
    pairs = [np.stack([np.zeros_like(row), row], axis=1) for row in packing.rows]
    return [build_row([domain], references, packing.widths) for references in pairs], packing.efficiency


def card_of(case: Case) -> Any:
    """The architecture card that all specialists have."""
    from megafuser.specialist.card import ArchitectureCard

    own = case.huggingface()
    return ArchitectureCard(
        family="llama",
        num_layers=case.layers,
        hidden_size=case.hidden,
        ffn_hidden_size=own["intermediate_size"],
        num_attention_heads=own["num_attention_heads"],
        num_query_groups=own["num_key_value_heads"],
        kv_channels=64,
        vocab_size=case.vocabulary,
        max_position_embeddings=4096,
        rotary_base=10000.0,
        norm_epsilon=1e-5,
        tie_word_embeddings=False,
        qkv_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        rope_scaling=None,
    )


@contextlib.contextmanager
def our_engine(case: Case, stage: str, world: Any = None) -> Iterator[Any]:
    """A stage's engine on random weights, data-parallel over `world`; must be closed before another is made."""
    from megafuser.config.compute import ParallelConfig, PrecisionConfig
    from megafuser.config.gate import GateConfig
    from megafuser.config.optimizer import OptimizerConfig
    from megafuser.config.stages import StageConfig
    from megafuser.fusion.model import build_fused_model
    from megafuser.runtime.distributed import distributed, single_process_cpu
    from megafuser.training.engine import Engine

    cpu = torch.device("cpu")
    with distributed(ParallelConfig(), seed=0, device=cpu, world=world) if world else single_process_cpu():
        model = build_fused_model(
            {name: card_of(case) for name in case.names},
            parallel=ParallelConfig(),
            precision=PrecisionConfig(dtype=case.dtype),
            backend="torch",
            gate=GateConfig(GATE_HIDDEN),
            shared_vocabulary=case.vocabulary,
            seed=case.seed,
        )
        randomize(model, case.seed)
        settings = StageConfig(steps=1000, samples_per_domain=case.samples, lr=1e-5)
        yield Engine([model], OptimizerConfig(), settings, domains=1, joint=stage == "joint")


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights of the size that training begins with; norms stay ones, and the gate leaves its uniform start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=generator))


def threads(count: int) -> None:
    """As many for both sides."""
    torch.set_num_threads(count)


def claim_memory(gib: float) -> None:
    """Touches memory, gives it back, and forgets the peak.

    A virtual machine may have returned free memory to its host; who gets it back first should be neither side.
    """
    size = int(gib * 2**30)
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1
    Path("/proc/self/clear_refs").write_text("5")


def memory_gib(field: str = "VmHWM") -> float:
    """Peak resident memory (`VmHWM`) or the present one (`VmRSS`) of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 2**20


def timed(action: Callable[[], object]) -> float:
    """Seconds of an action."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
