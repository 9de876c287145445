"""The documentation's generator lies in docs/, which is no package of megafuser."""

import sys

from tests.parallel.launch import ROOT

sys.path.insert(0, str(ROOT / "docs"))
