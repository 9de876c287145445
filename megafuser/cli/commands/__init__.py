"""A file for each command: its arguments, its help, and what it calls; `COMMANDS` lists them in the order of --help.

Heavy modules are imported in the functions, after the cheap checks. The programs in `tools/` are no commands and have
parsers of their own.
"""

from megafuser.cli.commands import config, evaluate, generate, plan, preflight, report, reshard, serve, stages, status

COMMANDS = (
    stages.add_warmup,
    stages.add_joint,
    config.add,
    plan.add,
    preflight.add,
    reshard.add,
    status.add,
    report.add,
    generate.add,
    serve.add,
    evaluate.add,
)
