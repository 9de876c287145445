"""`python -m megafuser.preflight` is `megafuser preflight`; the work is `preflight.command`."""

import sys

from megafuser.cli.main import main

sys.exit(main(["preflight", *sys.argv[1:]]))
