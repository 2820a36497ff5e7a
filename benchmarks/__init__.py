"""Speed and memory, as figures and ratios of one run; `python -m benchmarks.<name> --help`."""
