"""Stamps: headers put on every call of a composition, and the visitors that choose them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minicelery.canvas.compound import chain, chord, group
    from minicelery.canvas.signatures import Signature

Stamps = dict[str, Any]
"""Stamps by name, with the names of those that are meant in `stamped_headers`."""
_NAMES = "stamped_headers"


class StampingVisitor(ABC):
    """Chooses the stamps of a composition: `sig.stamp(visitor)` calls its methods on the way through.

    Each is given a signature and the stamps that come from above.  What it returns is added for
    what is below; a key `stamped_headers` in it names those that are stamps, else all are.
    """

    @abstractmethod
    def on_signature(self, sig: Signature[Any], **headers: Any) -> Stamps | None:
        """The stamps of one call."""

    def on_chain_start(self, chain: chain, **headers: Any) -> Stamps | None:
        """The stamps of all links of a chain."""
        return {}

    def on_chain_end(self, chain: chain, **headers: Any) -> None:  # noqa: B027 - may be left out
        """The links of a chain are stamped."""

    def on_group_start(self, group: group, **headers: Any) -> Stamps | None:
        """The stamps of all members of a group."""
        return {}

    def on_group_end(self, group: group, **headers: Any) -> None:  # noqa: B027 - may be left out
        """The members of a group are stamped."""

    def on_chord_header_start(self, sig: chord, **header: Any) -> Stamps | None:
        """The stamps of all parts of a chord: those of a group, unless overridden."""
        return self.on_group_start(sig.header, **header)

    def on_chord_header_end(self, sig: chord, **header: Any) -> None:
        """The parts of a chord are stamped."""
        self.on_group_end(sig.header, **header)

    def on_chord_body(self, sig: chord, **header: Any) -> Stamps | None:
        """The stamps of a chord's body, beside those of its parts."""
        return {}

    def on_callback(self, callback: Signature[Any], **header: Any) -> Stamps | None:
        """The stamps of a callback, beside those of its task's parents."""
        return {}

    def on_errback(self, errback: Signature[Any], **header: Any) -> Stamps | None:
        """The stamps of an errback, beside those of its task's parents."""
        return {}


# -- what the methods `stamp` of the signatures do -------------------------------------------------


def stamp_call(
    call: Signature[Any], visitor: StampingVisitor | None, append: bool, above: Mapping[str, Any]
) -> None:
    """Stamp one call and what it links to; in place."""
    stamp_links(call, visitor, append, above)
    chosen = _chosen(visitor, "on_signature", call, above)
    call["options"].update(_gathered(above, chosen, call, append))


def stamp_links(
    call: Signature[Any], visitor: StampingVisitor | None, append: bool, above: Mapping[str, Any]
) -> None:
    """Stamp copies of what it links to, which it then has instead."""
    from minicelery.canvas.signatures import as_list, signature

    options = call["options"]
    for option, method in (("link", "on_callback"), ("link_error", "on_errback")):
        if not options.get(option):
            continue
        links = [signature(link) for link in as_list(options[option])]
        for link in links:
            chosen = _chosen(visitor, method, link, above)
            link.stamp(visitor, append, **_gathered(above, chosen, None, append))
        options[option] = links


def stamp_chain(
    whole: chain, visitor: StampingVisitor | None, append: bool, above: Mapping[str, Any]
) -> None:
    """Stamp the links of a chain; in place."""
    chosen = _chosen(visitor, "on_chain_start", whole, above)
    stamps = _gathered(above, chosen, whole, append)
    stamp_links(whole, visitor, append, stamps)
    for task in whole.tasks:
        task.stamp(visitor, append, **stamps)
    if visitor is not None:
        visitor.on_chain_end(whole, **stamps)


def stamp_group(
    whole: group, visitor: StampingVisitor | None, append: bool, above: Mapping[str, Any]
) -> None:
    """Stamp the members of a group; in place."""
    chosen = _chosen(visitor, "on_group_start", whole, above)
    stamps = _gathered(above, chosen, whole, append)
    stamp_links(whole, visitor, append, stamps)
    for task in whole.tasks:
        task.stamp(visitor, append, **stamps)
    if visitor is not None:
        visitor.on_group_end(whole, **stamps)


def stamp_chord(
    whole: chord, visitor: StampingVisitor | None, append: bool, above: Mapping[str, Any]
) -> None:
    """Stamp the parts of a chord and its body; in place."""
    chosen = _chosen(visitor, "on_chord_header_start", whole, above)
    stamps = _gathered(above, chosen, whole, append)
    stamp_links(whole, visitor, append, stamps)
    for task in whole.tasks:
        task.stamp(visitor, append, **stamps)
    if visitor is not None:
        visitor.on_chord_header_end(whole, **stamps)
    if (body := whole["kwargs"]["body"]) is not None:
        chosen = _chosen(visitor, "on_chord_body", whole, stamps)
        body.stamp(visitor, append, **_gathered(stamps, chosen, whole, append))


# -- putting stamps together -----------------------------------------------------------------------


def _chosen(
    visitor: StampingVisitor | None, method: str, sig: Signature[Any], above: Mapping[str, Any]
) -> Stamps | None:
    """What a visitor returns for a signature.  Raises TypeError."""
    if visitor is None:
        return None
    if isinstance(visitor, type) or not hasattr(visitor, method):
        raise TypeError(
            f"stamp(visitor={visitor!r:.80}): expected an object of a subclass of StampingVisitor"
        )
    found = getattr(visitor, method)(sig, **above)
    if found is None:
        return None
    names = found.get(_NAMES, ()) if isinstance(found, Mapping) else None
    if names is None or isinstance(names, str) or not all(isinstance(name, str) for name in (*found, *names)):
        raise TypeError(
            f"{type(visitor).__name__}.{method} returned {found!r:.80} for {sig.task}: expected a dict of stamps, "
            f"whose {_NAMES} is a list of names, or None"
        )
    return dict(found)


def _gathered(
    above: Mapping[str, Any], chosen: Mapping[str, Any] | None, own: Signature[Any] | None, append: bool
) -> Stamps:
    """The stamps from above, those that a visitor chose, and those that a signature has, in this order."""
    found = {name: _copy(value) for name, value in above.items()}
    found.setdefault(_NAMES, list(above))
    if chosen is not None:
        _merge(found, {_NAMES: list(chosen), **chosen}, append)
    if own is not None:
        options = own["options"]
        names = _unique([*found[_NAMES], *(options.get(_NAMES) or ())])
        found[_NAMES] = names
        _merge(found, {name: options[name] for name in names if name in options}, append)
    found[_NAMES] = _unique(found[_NAMES])
    return found


def _merge(into: Stamps, more: Mapping[str, Any], append: bool) -> None:
    """Add `more`; of what is in both, `into` keeps its own, or if `append` a list of both."""
    for name, value in more.items():
        if name not in into:
            into[name] = _copy(value)
            continue
        old = into[name]
        if append and isinstance(old, (int, float, str)):
            old = into[name] = [old]
        if isinstance(old, dict) and isinstance(value, Mapping):
            _merge(old, value, append)
        elif isinstance(old, list) and isinstance(value, list):
            old.extend(value)
        elif append:
            kept = old if isinstance(old, (list, tuple, set, frozenset)) else [] if old is None else [old]
            into[name] = [*kept, value]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    return list(value) if isinstance(value, list) else value


def _unique(names: Any) -> list[str]:
    return list(dict.fromkeys(names))
