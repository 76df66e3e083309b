"""The foundation: configuration, runs, checkpoints, hardware, backbones. Stands on nothing of ours."""
