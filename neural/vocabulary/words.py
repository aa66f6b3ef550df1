"""Text of items and users as the words that it has: an attribute of several values, which the towers embed."""

import re

import numpy as np

from features.schema import Attribute

#: letters and digits, of any script
WORD = re.compile(r"[^\W_]+")


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
