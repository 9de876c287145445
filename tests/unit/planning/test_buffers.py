"""Places in buffers and shares of optimizers, counted by hand; against megatron-core itself: tests/parallel."""

from megafuser.planning.buffers import bucket_size, lay_out
from megafuser.planning.parameters import Parameter

SIZES = (100, 64, 300)


def parameters(*shared: int) -> list[Parameter]:
    return [Parameter(str(size), (size,), is_shared_embedding=size in shared) for size in SIZES]


def test_without_a_distributed_optimizer_nothing_is_padded() -> None:
    buffer = lay_out(parameters(), distributed=False, data_parallel=4, bucket_size=None)
    assert [p.size for p in buffer.parameters] == [300, 64, 100]
    assert buffer.starts == (0, 300, 364) and buffer.buckets == ((0, 464),) and buffer.size == 464


def test_starts_and_ends_are_padded() -> None:
    buffer = lay_out(parameters(), distributed=True, data_parallel=4, bucket_size=None)
    assert buffer.starts == (0, 320, 384) and buffer.buckets == ((0, 512),)
    # 128 elements a rank
    assert [buffer.owned(rank, 4) for rank in range(4)] == [[128], [128], [44, 64], [100]]


def test_ranks_that_do_not_divide_the_padding() -> None:
    buffer = lay_out(parameters(), distributed=True, data_parallel=3, bucket_size=None)
    assert buffer.size == 768  # a multiple of 384
    assert sum(sum(buffer.owned(rank, 3)) for rank in range(3)) == sum(SIZES)


def test_a_shared_embedding_has_a_bucket_of_its_own() -> None:
    buffer = lay_out(parameters(64), distributed=True, data_parallel=2, bucket_size=None)
    assert buffer.buckets == ((0, 384), (384, 512), (512, 640))
    assert buffer.owned(0, 2) == [192, 64, 64]


def test_buckets_close_at_their_size() -> None:
    buffer = lay_out(parameters(), distributed=True, data_parallel=2, bucket_size=300)
    assert buffer.buckets == ((0, 384), (384, 640))


def test_only_the_first_rank_has_buckets() -> None:
    assert bucket_size(overlapped=True, data_parallel=64, pipeline_rank=0, virtual_stage=0) == 64_000_000
    assert bucket_size(overlapped=True, data_parallel=2, pipeline_rank=0, virtual_stage=0) == 40_000_000
    for overlapped, rank, stage in ((False, 0, 0), (True, 1, 0), (True, 0, 1)):
        assert bucket_size(overlapped=overlapped, data_parallel=2, pipeline_rank=rank, virtual_stage=stage) is None


def test_nothing_to_train() -> None:
    buffer = lay_out([], distributed=False, data_parallel=2, bucket_size=None)
    assert buffer.size == 0 and buffer.buckets == ()
