"""A command of megafuser whose gradients are reduced in buckets of a size of their own, as those of 41 ranks and more.

Usage: `-m tests.parallel.small_buckets PORT COMMAND [ARGUMENT ...]`.
"""

import os
import sys

from megafuser.cli.main import main
from megafuser.training import optimizer_state_layout
from tests.parallel.layout_cases import BUCKET, use_small_buckets

if __name__ == "__main__":
    os.environ["MASTER_PORT"] = sys.argv[1]
    use_small_buckets()
    optimizer_state_layout.bucket_size = lambda **_: BUCKET
    sys.exit(main(sys.argv[2:]))
