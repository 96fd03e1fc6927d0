"""The contract of MedGR2: the `MedGR2Cycle` API, its presets, stage requests and results, and names on the volume.

Pure pydantic. Both the operator and the jobs import it; it imports neither.
"""

API_GROUP = "medgr2.io"
API_VERSION = "v1alpha1"
KIND = "MedGR2Cycle"
