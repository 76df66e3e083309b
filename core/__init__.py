"""Base package: configs, runs, checkpoints, hardware, data, backbones. Imports no other package of zerokara."""
