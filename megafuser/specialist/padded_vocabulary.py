"""How many rows embeddings and output heads have; without torch, so that arithmetic alone can ask.

Which ids all specialists share is `data.shared_vocabulary`.
"""

import math

_MULTIPLE = 128


def padded_vocab_size(vocab_size: int, tensor_parallel: int) -> int:
    """Rows of an embedding after padding.

    A multiple of 128 that tensor parallelism divides. For the usual powers of two it does not depend on the layout, so
    that a run's weights and optimizer states keep their shapes when the layout changes.
    """
    multiple = math.lcm(_MULTIPLE, tensor_parallel)
    return math.ceil(vocab_size / multiple) * multiple
