"""Trained networks that ship with zerokara; `zerokara.core.zoo.registry` lists and finds them."""
