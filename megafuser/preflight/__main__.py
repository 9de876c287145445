"""`python -m megafuser.preflight`."""

import os
import sys

from megafuser.preflight.command import main

code = main(sys.argv[1:])
sys.stdout.flush()
# A thread may still wait in a collective operation that will never end.
os._exit(code)
