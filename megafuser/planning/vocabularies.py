"""Whether the specialists' tokenizers agree, told before any weights are downloaded; a stage checks it again.

How they are compared is `data.shared_vocabulary`.
"""

from collections.abc import Mapping
from pathlib import Path

from megafuser.config.run_directory import HUGGINGFACE, MANIFEST
from megafuser.config.schema import RunConfig
from megafuser.conversion.carried_files import has_tokenizer
from megafuser.specialist.card import ArchitectureCard


def compare_tokenizers(config: RunConfig, cards: Mapping[str, ArchitectureCard]) -> str | None:
    """Finds the shared vocabulary and the end of responses as a stage does.

    Args:
        config: its specialists are converted checkpoints or Hugging Face directories.
        cards: of the specialists, by name.

    Returns:
        What was found, in one line; None where a specialist has no tokenizer yet.

    Raises:
        UserError: the tokenizers do not agree on a common prefix of ids, or on the token that ends a response.
    """
    directories = {specialist.name: Path(specialist.checkpoint) for specialist in config.specialists}
    directories = {name: own / HUGGINGFACE if (own / MANIFEST).exists() else own for name, own in directories.items()}
    if not all(map(has_tokenizer, directories.values())):
        return None
    # what a plan of converted checkpoints has no use for
    from megafuser.data.shared_vocabulary import end_id, shared_vocabulary
    from megafuser.data.tokenization import load_tokenizers

    tokenizers = load_tokenizers(directories)
    shared = shared_vocabulary(tokenizers, {name: card.vocab_size for name, card in cards.items()})
    end = end_id(tokenizers, config.data.end_token, shared)
    token = next(iter(tokenizers.values())).convert_ids_to_tokens(end)
    return f"the specialists' tokenizers agree: {shared:,} shared ids; responses end with {token!r} (id {end})"
