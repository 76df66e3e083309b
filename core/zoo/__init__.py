"""Trained networks that are part of the package; `zerokara.core.zoo.registry` lists and finds them."""
