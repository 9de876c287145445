"""One file for each model family, which names it `FAMILY`; a new file here is a new family, nothing else knows them.

What a family must say is `families.family`.
"""

import importlib
import pkgutil

from megafuser.families.family import Family


def _all() -> dict[str, Family]:
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {family.name: family for family in (module.FAMILY for module in modules)}


FAMILIES = _all()
"""By name, which is also transformers' `model_type`."""
