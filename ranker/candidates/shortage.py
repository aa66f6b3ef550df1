"""Why a list is empty, or shorter than was asked for: one sentence, for an answer and for the report of lists."""

from collections.abc import Sequence

#: the source that needs no history of the user
POPULAR = "popular"
#: how the sentence begins; behind a colon stands what is known of the causes
NOTHING, REMOVED = "the sources proposed nothing", "all that was proposed was removed"
SHORT = "fewer candidates than k = {k} were left"


def shortage(
    k: int,
    found: int,
    *,
    proposed: int,
    removed: Sequence[tuple[str, int]],
    n_items: int,
    sources: Sequence[str],
    early: bool,
    failed: Sequence[str] = (),
    best: int | None = None,
) -> str:
    """Return why `found` candidates are less than k; empty where they are not.

    proposed: items by all sources. removed: (filter, items). n_items: of the catalogue. sources: the names of those
    that are for the request's surface. early: whether no event is known before the request's as_of. failed: lanes of
    sources that failed or were late. best: so many of what the sources proposed a request has; None: all.
    """
    if found >= k:
        return ""
    dropped = ", ".join(f"{name} {count}" for name, count in removed if count)
    causes = [f"{name} failed or was late" for name in failed]
    if not found:
        if not (proposed or failed):
            causes.append(_why_nothing(sources, early))
        known = "; ".join([*causes, dropped] if dropped else causes)
        head = REMOVED if proposed else NOTHING
        return f"{head}: {known}" if known else head
    if n_items < k:
        causes.append(f"the catalogue has {n_items} items")
    if dropped:
        causes.append(f"removed: {dropped}")
    # What was removed is seldom the whole cause: sources are asked for more by it. An unknown item is none of n_items.
    left = n_items - found - sum(count for name, count in removed if name != "unknown")
    if best is not None and best <= found:
        causes.append(f"a request has {best} candidates, the best of what the sources propose ([sources] candidates)")
    elif not failed and n_items >= k:
        causes.append("the sources proposed no more within their quotas")
    elif not failed and left > 0:
        causes.append(f"{left} of them no source proposed within its quota")
    return f"{SHORT.format(k=k)}: {'; '.join(causes)}"


def _why_nothing(sources: Sequence[str], early: bool) -> str:
    """Return why sources that work propose nothing."""
    if not sources:
        return (
            "none is turned on in [sources] of the bundle's TOML for this surface (nearest needs a plugin with vectors)"
        )
    if early:
        return "no event is known before as_of"
    if POPULAR not in sources:
        return f"{', '.join(sources)} had nothing for this user; [sources] popular has items for everyone"
    return "no event of a wanted grade ([lists] wanted) is known before as_of"


def kind_of(reason: str) -> str:
    """Return a reason without its figures, to count by."""
    return reason.partition(":")[0]
