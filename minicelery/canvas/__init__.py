"""Signatures: a task call as a value; and calls put together: chains, groups and chords."""

from __future__ import annotations

from minicelery.canvas.compound import Compound as Compound
from minicelery.canvas.compound import chain, chord, group
from minicelery.canvas.each import chunks, xmap, xstarmap
from minicelery.canvas.signatures import Signature, maybe_signature, signature
from minicelery.canvas.signatures import as_list as as_list
from minicelery.canvas.signatures import call_of as call_of
from minicelery.canvas.signatures import links_for_body as links_for_body
from minicelery.canvas.stamping import StampingVisitor

__all__ = [
    "Signature",
    "StampingVisitor",
    "chain",
    "chord",
    "chunks",
    "group",
    "maybe_signature",
    "signature",
    "xmap",
    "xstarmap",
]
