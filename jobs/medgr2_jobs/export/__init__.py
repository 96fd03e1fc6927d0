"""What leaves the workspace of a trained policy: a folder that any loader reads (`medgr2 export`), and its answers to
one picture (`medgr2 ask`)."""
