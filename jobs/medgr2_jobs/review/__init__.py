"""Experts look at kept triplets: what they are given (`export_review`), and what they decide (`import_review`)."""
