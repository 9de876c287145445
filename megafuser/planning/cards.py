"""Where the architecture cards come from: converted checkpoints, or Hugging Face directories before conversion.

What a card says is `specialist.card`.
"""

import json
from pathlib import Path

from megafuser.checkpoint.specialist_sources import converted_source
from megafuser.config.run_directory import MANIFEST
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig
from megafuser.conversion.carried_files import has_tokenizer
from megafuser.errors import UserError, explained_paths
from megafuser.planning.light_transformers import light_transformers
from megafuser.planning.vocabularies import compare_tokenizers
from megafuser.specialist.card import ArchitectureCard


@explained_paths()
def read_cards(config: RunConfig) -> tuple[dict[str, ArchitectureCard], list[str]]:
    """Reads the card of every specialist.

    Returns:
        The cards by name, in order; and what to tell the user: a line for each specialist that is not converted yet,
        and then whether the tokenizers agree.

    Raises:
        UserError: there is neither a converted checkpoint nor a Hugging Face directory, or tokenizers do not agree.
    """
    cards, notes = {}, []
    with light_transformers():
        for specialist in config.specialists:
            name, directory = specialist.name, Path(specialist.checkpoint)
            if not (directory / MANIFEST).exists() and (directory / "config.json").is_file():
                cards[name] = _from_hugging_face(specialist, directory / "config.json")
                missing = "" if has_tokenizer(directory) else ", without a tokenizer to compare"
                notes.append(f"specialist {name}: {directory} is a Hugging Face directory, not converted yet{missing}")
            else:
                cards[name] = _converted(specialist, directory)
        if notes and (agreement := compare_tokenizers(config, cards)):
            notes.append(agreement)
    return cards, notes


def _converted(specialist: SpecialistConfig, directory: Path) -> ArchitectureCard:
    if not directory.is_dir():
        raise UserError(
            f"specialist {specialist.name}: {directory} is not a directory; convert it with "
            f"tools/convert_hf_to_mcore.py --hf ORG/NAME --out {directory}, or give a Hugging Face directory"
        )
    return converted_source(specialist.name, directory).card


def _from_hugging_face(specialist: SpecialistConfig, path: Path) -> ArchitectureCard:
    # reads config.json with transformers, which takes a second; a converted checkpoint needs none
    from megafuser.families.config_json import card_from_hf_config

    try:
        return card_from_hf_config(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"specialist {specialist.name}: {path} is no Hugging Face configuration ({error}); download it again"
        ) from None
    except UserError as error:
        raise UserError(f"specialist {specialist.name}: {path.parent}: {error}") from None
