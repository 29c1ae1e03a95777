"""Whether documents end with EOD, by which --inter-document-masking finds them.

Neighbours: `receipt` says how the data were made, `model.documents` looks for the ids.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.data.tokenizer import Vocabulary

LOOKED_AT = 256
"""Documents of a pair without a receipt that are looked at, evenly spread."""


def refuse_unmarked(prefixes: Iterable[str], vocabulary: Vocabulary) -> None:
    """Refuse data whose documents do not end with EOD: masking would have no effect on them, or on some.

    Raises:
        ConfigError: a receipt says so, or, where there is none, a look at the ids.
    """
    for prefix in prefixes:
        slip = receipt.read(prefix)
        if slip is None:
            _refuse_by_look(prefix, vocabulary.eod)
        elif not slip.append_eod:
            raise ConfigError(_refusal(prefix, f"{receipt.path_of(prefix)} says that it was made without --append-eod"))


def _refuse_by_look(prefix: str, eod: int) -> None:
    """ConfigError where some of the documents end with another id."""
    pair = indexed.read(prefix)
    lengths, bounds, tokens = pair.lengths(), pair.bounds(), indexed.TokenReader(pair)
    spread = np.linspace(0, pair.documents - 1, min(LOOKED_AT, pair.documents)).astype(int)
    last = {int(document): int(bounds[document + 1]) - 1 for document in spread}  # document -> its last sequence
    looked_at = {document: sequence for document, sequence in last.items() if lengths[sequence] > 0}
    unmarked = [
        document
        for document, sequence in looked_at.items()
        if int(tokens.read(sequence, int(lengths[sequence]) - 1, 1)[0]) != eod
    ]
    if unmarked:
        found = f"{len(unmarked)} of the {len(looked_at)} documents checked do not end with the EOD id {eod}"
        raise ConfigError(_refusal(prefix, f"{found}, the first of them {unmarked[0]}"))


def _refusal(prefix: str, found: str) -> str:
    return (
        f"--inter-document-masking finds documents by the EOD at the end of each, but {found} ({prefix}): preprocess "
        "again with tinyllama-preprocess --append-eod, or leave --inter-document-masking out"
    )
