"""The proof of a fused export: fp32 logits of transformers' model against megatron-core's with the same weights.

A single specialist's proof is `conversion.logits`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from megafuser.config.gate import GateConfig
from megafuser.conversion.logit_difference import logit_difference
from megafuser.conversion.logits import fixed_prompts, hidden_states, load_in_fp32
from megafuser.conversion.stored_specialist import StoredSpecialist
from megafuser.fusion.gate import Gate
from megafuser.runtime.distributed import single_process_cpu


@torch.no_grad()
def compare_fused_logits(
    exported: Path,
    specialists: Mapping[str, StoredSpecialist],
    gate: Mapping[str, torch.Tensor],
    *,
    temperature: float,
    shared_vocabulary: int,
    rounded_to: torch.dtype | None,
) -> str:
    """Runs both models on the same fixed ids; the exported directory's own code is run.

    Args:
        exported: the Hugging Face directory of the fused model.
        specialists: the weights that it was exported from, by name.
        gate: the gate's tensors by the names of `gate.safetensors`.
        temperature: the gate's.
        shared_vocabulary: number of ids that are scored.
        rounded_to: the dtype that the export was rounded to; the other side is rounded alike.

    Returns:
        A line that says how much they differ at most.

    Raises:
        UserError: more than rounding explains.
    """
    longest = min(stored.card.max_position_embeddings for stored in specialists.values())
    prompts = fixed_prompts(shared_vocabulary, longest)
    ours = _megatron_logits(specialists, gate, temperature, prompts, shared_vocabulary, rounded_to)
    theirs = _exported_logits(exported, prompts)
    found = logit_difference(zip(ours, theirs, strict=True))
    return found.proof(of="the exported model and of the checkpoint", whose="the fused model's", done="exported")


def _exported_logits(exported: Path, prompts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        # transformers keeps a copy of the code under the directory's name: always the same one, not a temporary one
        link = Path(folder) / "megafuser_verification"
        link.symlink_to(exported.resolve(), target_is_directory=True)
        model = AutoModelForCausalLM.from_pretrained(
            link, dtype=torch.float32, trust_remote_code=True, local_files_only=True
        )
    return [model(input_ids=ids[None], use_cache=False).logits[0] for ids in prompts]


def _megatron_logits(
    specialists: Mapping[str, StoredSpecialist],
    gate: Mapping[str, torch.Tensor],
    temperature: float,
    prompts: Sequence[torch.Tensor],
    shared_vocabulary: int,
    rounded_to: torch.dtype | None,
) -> list[torch.Tensor]:
    """Per prompt, [S, shared vocabulary] float32; one specialist is in memory at a time."""
    hidden: list[list[torch.Tensor]] = [[] for _ in prompts]
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    with single_process_cpu():
        for stored in specialists.values():
            model = load_in_fp32(stored.card, stored.weights, stored.prefix, rounded_to)
            for ids, states, scores in zip(prompts, hidden, logits, strict=True):
                states.append(hidden_states(model, ids))
                scores.append(states[-1] @ model.head_weight()[:shared_vocabulary].T)
    hidden_sizes = [stored.card.hidden_size for stored in specialists.values()]
    weigh = _gate(hidden_sizes, list(specialists), gate, temperature)
    weights = [weigh(states) for states in hidden]
    return [torch.einsum("sk,ksv->sv", own, torch.stack(scores)) for own, scores in zip(weights, logits, strict=True)]


def _gate(
    hidden_sizes: Sequence[int], names: Sequence[str], tensors: Mapping[str, torch.Tensor], temperature: float
) -> Gate:
    """Training's own gate with these weights, which may have been rounded."""
    gate = Gate(hidden_sizes, GateConfig(len(tensors["fc1.bias"]), temperature), seed=0, dtype=torch.float32)
    keys = {f"project.{name}.weight": f"project.{k}.weight" for k, name in enumerate(names)}
    gate.load_state_dict({keys.get(key, key): value.float() for key, value in tensors.items()})
    return gate
