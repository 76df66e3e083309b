"""Options of small runs that train in a second, the same on every machine: Catch with a narrow network."""

CATCH = (
    *("--env", "zerokara/Catch-v0", "--num-envs", "4", "--width-multiplier", "0.25", "--hidden-units", "16"),
    *("--no-capture-video", "--quiet", "--device", "cpu", "--precision", "float32", "--compile", "off"),
    *("--threads", "1"),
)
