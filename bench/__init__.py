"""Speed and memory, as ratios to a limit measured in the same run; results are committed in `bench/results/`."""
