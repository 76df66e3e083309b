"""Convolutional backbones by name; `zerokara.core.backbones.registry` has the dict BACKBONES."""
