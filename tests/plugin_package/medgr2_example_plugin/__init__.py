"""What another package can bring to MedGR2: docs/plugins.md tells its story."""
