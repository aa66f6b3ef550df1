"""Text of items and users as the words that it has: an attribute of several values, which the towers embed."""

import re
from collections.abc import Sequence

import numpy as np

from features.errors import PairliftError
from features.schema import Attribute

#: letters and digits, of any script
WORD = re.compile(r"[^\W_]+")


def with_words_of_both(
    of_items: tuple[Attribute, ...], of_users: tuple[Attribute, ...]
) -> tuple[tuple[Attribute, ...], tuple[Attribute, ...]]:
    """Return the attributes of items and those of users with each text as its words.

    Raises PairliftError where neither have a text, for then the option that asks for words would do nothing.
    """
    check_words([attribute.name for attribute in of_items + of_users if attribute.kind == "text"])
    return with_words(of_items), with_words(of_users)


def check_words(texts: Sequence[str]) -> None:
    """Raise PairliftError where there is no text to take words from. texts: the names of those that there are."""
    if not texts:
        raise PairliftError("words: [items.text] and [users.text] name no text; name one, or leave `words` out")


def with_words(attributes: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
    """Return the attributes with each text as a `multi` of its words, in lower case; each counts once."""
    return tuple(_words(a) if a.kind == "text" else a for a in attributes)


def _words(attribute: Attribute) -> Attribute:
    lists = [sorted({*WORD.findall(text.lower())}) for text in attribute.values]
    values = sorted({word for words in lists for word in words})
    code = {word: k for k, word in enumerate(values)}
    return Attribute(
        attribute.name,
        "multi",
        codes=np.array([code[word] for words in lists for word in words], np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(words) for words in lists])]).astype(np.int64),
        values=tuple(values),
    )
