"""The shared vocabulary: the ids that mean the same token to every specialist, and the id that ends a response.

How many rows embeddings have is `specialist.padded_vocabulary`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from megafuser.errors import UserError


def shared_vocabulary(tokenizers: Mapping[str, Any], rows: Mapping[str, int]) -> int:
    """Size V of the shared vocabulary: the longest prefix of ids on which all tokenizers name the same token.

    An id without a token in some tokenizer ends the prefix, and so does the end of any specialist's embedding.

    Args:
        tokenizers: the specialists' tokenizers by name.
        rows: embedding rows of each specialist.

    Raises:
        UserError: no id is shared, or ids after the first differing one are shared again: then the shared ids are no
            prefix, and fusing over the prefix would silently leave tokens out.
    """
    tokens = {name: _tokens_by_id(tokenizer) for name, tokenizer in tokenizers.items()}
    first_name, *other_names = tokens
    size = min(len(own) for own in tokens.values())
    reference = tokens[first_name][:size]
    equal = np.array([token is not None for token in reference])
    for name in other_names:
        equal &= np.equal(reference, tokens[name][:size]).astype(bool)
    prefix = size if equal.all() else int(equal.argmin())
    vocabulary = min(prefix, *(rows[name] for name in tokens))
    if prefix < size and (vocabulary == 0 or equal[prefix:].any()):
        named = next((name for name in other_names if tokens[name][prefix] != reference[prefix]), None)
        if named is None:
            what = f"id {prefix} has no token in any tokenizer"
        else:
            what = (
                f"id {prefix} is {_quoted(reference[prefix])} to {first_name} "
                f"but {_quoted(tokens[named][prefix])} to {named}"
            )
        again = int(equal[prefix:].sum())
        after = f", while {again} later ids agree again" if again else ""
        raise UserError(
            f"the specialists' shared vocabulary is not a prefix of their ids: {what}{after}; "
            "fuse specialists that descend from one tokenizer"
        )
    if vocabulary == 0:
        raise UserError("the specialists share no token id; fuse specialists that descend from one tokenizer")
    return vocabulary


def end_id(tokenizers: Mapping[str, Any], end_token: str | None, shared: int) -> int:
    """The id that ends every response: the tokenizers' common EOS, or `end_token` where it is given.

    Args:
        tokenizers: the specialists' tokenizers by name.
        end_token: `data.end_token`.
        shared: size of the shared vocabulary.

    Raises:
        UserError: the tokenizers' EOS differ and no end token is given, the end token is not one token with the same
            id for all, or the id lies outside the shared vocabulary.
    """
    if end_token is None:
        ids = {name: tokenizer.eos_token_id for name, tokenizer in tokenizers.items()}
        what = "EOS"
        remedy = "set data.end_token to a token that all of them know"
    else:
        ids = {name: _id_of(tokenizer, end_token) for name, tokenizer in tokenizers.items()}
        what = f"data.end_token {end_token!r}"
        remedy = "it must be one token with the same id in every specialist's tokenizer"
    told = ", ".join(f"{name}: {'none' if own is None else own}" for name, own in ids.items())
    if None in ids.values() or len(set(ids.values())) != 1:
        raise UserError(f"the specialists' ids of {what} differ ({told}); {remedy}")
    end = next(iter(ids.values()))
    if not 0 <= end < shared:
        raise UserError(f"{what} has id {end}, outside the {shared} shared ids; set data.end_token to a shared token")
    return int(end)


def _tokens_by_id(tokenizer: Any) -> np.ndarray:
    """Object array of tokens by id, None where an id has no token."""
    vocabulary = tokenizer.get_vocab()
    ids = np.fromiter(vocabulary.values(), dtype=np.int64, count=len(vocabulary))
    tokens = np.full(int(ids.max()) + 1, None, dtype=object)
    names = np.empty(len(vocabulary), dtype=object)
    names[:] = list(vocabulary)
    tokens[ids] = names
    return tokens


def _id_of(tokenizer: Any, token: str) -> int | None:
    found: int | None = tokenizer.get_vocab().get(token)
    return found


def _quoted(token: str | None) -> str:
    return "no token" if token is None else repr(token)
