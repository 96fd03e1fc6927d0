"""Experts look at kept triplets: what they are given (`bundle`), and what they decide (`verdicts`)."""
