"""The count of operations against PyTorch's counter on Hugging Face's model."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from megafuser.families.config_json import card_from_hf_config
from megafuser.planning.flops import forward_flops
from megafuser.training.flops import step_flops
from tests.unit.training.small_run import SmallRun, step_rows

LENGTHS = (40, 96)
# more than the rotation angles, which PyTorch's counter sees and the formula leaves out
TOLERANCE = 0.01


def counted(config: LlamaConfig, length: int, backward: bool) -> float:
    """Operations of one sample of the Hugging Face model; of each square of scores only the causal half is needed."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, config.vocab_size, (1, length))
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, use_cache=False).logits.sum()
        if backward:
            loss.backward()
    by_operator = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    return sum(by_operator.values()) - by_operator["aten.bmm"] / 2


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("change", [{}, {"num_key_value_heads": 2, "head_dim": 32}, {"tie_word_embeddings": True}])
def test_a_step_of_the_hugging_face_model(change: dict[str, Any], backward: bool) -> None:
    shape = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "attn_implementation": "eager",
    }
    config = LlamaConfig(**shape | change)
    card = card_from_hf_config(config.to_dict())
    ours = forward_flops(card, np.array(LENGTHS), response_tokens=sum(LENGTHS)) * (3 if backward else 1)
    assert ours == pytest.approx(sum(counted(config, length, backward) for length in LENGTHS), rel=TOLERANCE)


def test_only_response_positions_meet_the_head() -> None:
    card = card_from_hf_config(LlamaConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=1).to_dict())
    lengths = np.array([50])
    difference = forward_flops(card, lengths, response_tokens=30) - forward_flops(card, lengths, response_tokens=10)
    assert difference == 2 * 20 * 1000 * 64


def test_pads_count_nothing(run: SmallRun) -> None:
    with run.session() as narrow:
        cards = [source.card for source in narrow.sources]
        rows = step_rows(narrow, "joint", 1)
    with run.session("data.sequence_length=1024") as wide:
        other = step_rows(wide, "joint", 1)
    assert len(rows) > len(other)
    ours = step_flops(cards, rows, backward=False)
    assert ours == pytest.approx(step_flops(cards, other, backward=False), rel=1e-12)
    assert step_flops(cards, rows, backward=True) == pytest.approx(3 * ours, rel=1e-12)
