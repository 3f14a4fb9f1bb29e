"""Letting oneDNN remember the products of every length that batches have.

May import layers 0 and 1. oneDNN makes code for each shape of a product, in one to two milliseconds, and keeps that of
the last 1,024. A model of six layers has some twenty shapes for each length of a batch, and rows of language have fifty
lengths and more: just too many, so that it makes code again and again. It reads how many to keep from the environment
when it makes the first product of a process, and gives no other way.
"""

from __future__ import annotations

import os

__all__ = ["remember_products"]

_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_PRODUCTS = 4096


def remember_products() -> None:
    """Let oneDNN keep code for more products; nothing where the user has said how many, or where it is too late.

    Changes no bit of a result.
    """
    os.environ.setdefault(_VARIABLE, str(_PRODUCTS))
