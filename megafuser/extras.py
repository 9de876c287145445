"""What not everybody needs is an extra of setup.py; here is what is said where it is missing.

The packages are imported where they are used, behind `require`. Transformer Engine has more ways to be missing than not
being installed: `runtime.device`.
"""

from importlib.util import find_spec

from megafuser.errors import UserError

PACKAGES = {
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "eval": ("lm_eval",),
    "datasets": ("datasets",),
    "dedup": ("datasketch",),
    "wandb": ("wandb",),
}
"""By extra, the names that are imported."""


def require(extra: str, what: str, *, otherwise: str | None = None) -> None:
    """Refuses to begin without an extra's packages; imports nothing.

    Args:
        extra: one of `PACKAGES`.
        what: what needs it: an option, a key, a command.
        otherwise: what can be done instead of installing it.

    Raises:
        UserError: names the package that is missing and the extra that brings it.
    """
    missing = next((package for package in PACKAGES[extra] if find_spec(package) is None), None)
    if missing is not None:
        instead = f", or {otherwise}" if otherwise else ""
        raise UserError(f'{what}: the package {missing} is not installed; pip install "megafuser[{extra}]"{instead}')
