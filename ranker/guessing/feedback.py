"""Which columns are what the user did, and the grades that are made of them."""

from dataclasses import dataclass
from typing import Literal

from ranker.guessing.facts import Facts
from ranker.guessing.words import VALUES, VOCABULARY, speaks_of, words_of

#: from the weakest to the strongest: what an act means more than another
STRENGTH = (
    "view seen opened vu gesehen",
    "click clicked clk tapped read swipe klick geklickt angeklickt clic clique gelesen lu clicado",
    "watch watched listen listened play played complete completed finished consumed long ecoute ecoutee gehoert used",
    "like liked love guardada loved favorite favourite fav heart upvote comment share shared forward follow save "
    "saved bookmark wish gefaellt gemerkt aime favori partage subscribe reply signup reaction",
    "cart basket addtocart checkout install download apply applied lead",
    "purchase purchased buy bought order ordered book booked booking convert converted conversion conv "
    "transaction solicitud rent rented gekauft kauf bestellt gebucht achat achete commande reserve compra "
    "comprado acquisto accept accepted",
)
#: different values of a rating's scale
MOST_STEPS = 21


@dataclass(frozen=True, slots=True)
class Act:
    """What a column of feedback says."""

    kind: Literal["act", "refusal", "rating", "share", "amount", "type"]
    why: str
    done: str = "({} > 0)"  # a condition, with {} for the column
    sql: str = ""  # an expression, with {} for the column; "" for the column as it is
    doubt: str = ""
    whole: float = 1.0  # of a share: what all of it is


def act_of(f: Facts) -> Act | None:
    """Return what a column says of the user's act by its name and values; None where it is none."""
    said = next((tag for tag in ("refusal", "act") if speaks_of(f.name, tag)), "")
    if f.flag:
        why = "yes or no to what the user does" if said == "act" else "yes or no to what the user refuses"
        return yes_or_no(f, why, said == "refusal") if said and not speaks_of(f.name, "shown") else None
    if f.column.kind == "text":
        return _event_type(f)
    if not f.number or speaks_of(f.name, "shown") or speaks_of(f.name, "naming"):
        return None
    if speaks_of(f.name, "rating") and is_scale(f):
        return Act("rating", "a scale of few steps")
    if said or speaks_of(f.name, "amount"):
        whole = 100.0 if speaks_of(f.name, "percent") and f.high > 2 else 1.0
        share = f.low >= 0 and 0.9 * whole < f.high <= 1.001 * whole and not (f.whole and whole == 1)
        why = "how much of it the user took, known only after the answer"
        return Act("share" if share else "amount", why, whole=whole)
    return None


def yes_or_no(f: Facts, why: str, refusal: bool = False, doubt: str = "") -> Act:
    """Return the act, or refusal, that a column of true and false, or 0 and 1, tells."""
    test = "{}" if f.column.kind == "boolean" else "{} = 1"
    return Act("refusal" if refusal else "act", why, f"({test})", "" if f.column.kind == "boolean" else test, doubt)


def is_scale(f: Facts) -> bool:
    """Return whether numbers are a scale of few steps, such as stars."""
    return f.number and 2 < f.distinct <= MOST_STEPS and f.low >= -1 and f.high <= 100


def _event_type(f: Facts) -> Act | None:
    """Return the act of a text whose values name acts: click, cart, purchase."""
    if f.distinct > 30 or f.spaced > 0.5 or not f.examples:
        return None
    acts = set(VOCABULARY["act"].split()) | set(VOCABULARY["refusal"].split()) | set(VALUES["nothing"].split())
    hits = [x for x in f.examples if acts & set(words_of(x))]
    if len(hits) * 2 < len(f.examples) or len(hits) < 2:
        return None
    others = ", ".join(f"'{x}'" for x in f.examples if not shows(x)) or "''"
    return Act("type", "its values name what the user did", f"{{}} IN ({others})")


def shows(value: str) -> bool:
    """Return whether a kind of event is no more than that something was shown."""
    return bool(set(VALUES["nothing"].split()) & set(words_of(value)))


def strength(name: str) -> int:
    """Return how much an act means, by the words of its name: 0 for the weakest; a reaction's for unknown words."""
    words = set(words_of(name))
    ranks = [rank for rank, text in enumerate(STRENGTH) if words & set(text.split())]
    return max(ranks, default=3)


def is_ordered(name: str) -> bool:
    """Return whether a word of the name says how much the act means."""
    return any(set(words_of(name)) & set(text.split()) for text in STRENGTH)
