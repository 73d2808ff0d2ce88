"""Command lines: each module is one step of the pipeline, `python -m experiments.<module> --help` explains it."""
