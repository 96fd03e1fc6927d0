"""A real Kubernetes for the tests, built from source: `python -m tests.cluster up`, or the fixtures of `fixtures.py`.

Level 1 is a control plane (`control_plane.py`), level 2 adds nodes and pods that pretend (`kwok.py`).
"""
