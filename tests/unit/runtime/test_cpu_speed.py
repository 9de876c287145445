"""What the CPU backend does in place of slower code gives the same values."""

import resource
from typing import Any

import pytest
import torch
from megatron.core.utils import local_multi_tensor_scale

from megafuser.runtime import cpu_speed


class Group:
    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks


@pytest.mark.parametrize(("ranks", "elsewhere", "calls"), [(1, False, 0), (2, False, 1), (1, True, 1)])
def test_a_collective_is_skipped_only_where_it_would_copy_a_buffer_onto_itself(
    ranks: int, elsewhere: bool, calls: int
) -> None:
    seen: list[Any] = []
    buffer = torch.arange(4.0)
    output, group = torch.empty(4) if elsewhere else buffer, Group(ranks)

    def collective(*args: Any, **kwargs: Any) -> str:
        seen.append((args, kwargs))
        return "handle"

    handle = cpu_speed._unless_alone(collective)(output, buffer, op="sum", group=group, async_op=False)
    assert len(seen) == calls
    assert handle == ("handle" if calls else None)
    for (into, source), settings in seen:
        assert into is output and source is buffer
        assert settings == {"op": "sum", "group": group, "async_op": False}


def test_scaling_equals_megatron_cores() -> None:
    ours = [torch.randn(5), torch.randn(3, 2)]
    theirs = [tensor.clone() for tensor in ours]
    local_multi_tensor_scale(0, None, [theirs, theirs], 0.3)
    pointers = [tensor.data_ptr() for tensor in ours]
    cpu_speed._scale(0, torch.zeros(1), [ours, ours], 0.3)
    assert pointers == [tensor.data_ptr() for tensor in ours]
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_scaling_writes_only_where_it_is_told_to() -> None:
    source, out = torch.tensor([1.0, 2.0]), torch.empty(2)
    cpu_speed._scale(0, torch.zeros(1), [[source], [out]], 3.0)
    assert out.tolist() == [3, 6] and source.tolist() == [1, 2]


def page_faults_of(mebibytes: int) -> int:
    """Of writing a tensor once and freeing it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(mebibytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again() -> None:
    """Both tensors are larger than any block that glibc would keep by itself; the second fits where the first was."""
    cpu_speed.keep_freed_memory()
    page_faults_of(128)
    assert page_faults_of(64) < 64 * 256 / 10
