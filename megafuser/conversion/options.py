"""What conversions take, in either direction: the dtypes that can be chosen, and whom they tell how far they are.

The command line's `--dtype` is in `cli.tool`.
"""

from collections.abc import Callable

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

PhaseProgress = Callable[[str, int, int], None]
"""Called with the phase, the bytes done and the bytes in all."""

ByteProgress = Callable[[int], None]
"""Called with the bytes done so far."""

Report = Callable[[str], None]
"""Called with what was verified, a line at a time."""
