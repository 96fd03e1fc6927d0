"""What a cycle needs, told before it runs: memory, disk, GPU-hours, time on the clock (docs/fit.md).

Pure functions from a spec, the shapes of its models and the kind of GPU. Nothing here imports torch or opens a file:
`medgr2 plan --fit` and `medgr2 doctor` bring what they have read. Every formula stands in a docstring with where it
comes from; `make bench NAME=fit` holds them against measured peaks and files.
"""
