"""A prepared workspace, and curate on whatever candidates a test makes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medgr2_api.stage_contract import ArtifactRef
from medgr2_jobs.runner import main
from tests.support import jobs_fixtures

#: A perceptual hash.
BITS = 0x00F1_2233_4455_6677


def phash(*flipped: int) -> str:
    """The hash with these bits turned over."""
    value = BITS
    for bit in flipped:
        value ^= 1 << bit
    return f"{value:016x}"


FAR = f"{BITS ^ 0xFFFF_0000_FFFF_0000:016x}"

OPTIONS = ["CT", "MRI", "OCT", "Fundus"]


def candidate(name: str, image: str, question: str = "What is it?", **changes: Any) -> dict[str, Any]:
    return {
        "triplet_id": name,
        "iteration": 1,
        "image_sha256": image,
        "modality": "CT",
        "question_type": "modality",
        "question": question,
        "options": OPTIONS,
        "answer_index": 0,
        "rationale": "It looks like it.",
        "response": "<think>It looks like it.</think><answer>A</answer>",
        "paradigm": "Direct",
        "template_sha256": "feed",
        "generator": "test",
        "outcome": "ok",
        "error": "",
        "attempts": 1,
        **changes,
    }


class CurateWorkspace:
    """A prepared workspace, and curate on whatever candidates a test makes up."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tables = jobs_fixtures.phantom_tables(root, {"train": 6, "validation": 2, "test": 2}, real=10)
        self.prepare = jobs_fixtures.publish(root, "prepare", self.tables)
        self.seed = [row for row in self.tables["items"] if row["split"] == "train"]
        self.free = [row["image_sha256"] for row in self.tables["images"][10:]]

    def prepare_again(self, phashes: dict[str, str] | None = None, items: list[dict[str, Any]] | None = None) -> None:
        """Publishes prepare with perceptual hashes for some images, and with more items."""
        for row in self.tables["images"]:
            row["phash"] = (phashes or {}).get(row["image_sha256"], row.get("phash", ""))
        self.tables["items"] += items or []
        self.prepare = jobs_fixtures.publish(self.root, "prepare", self.tables)

    def image(self, split: str) -> str:
        return next(row["image_sha256"] for row in self.tables["images"] if row["split"] == split)

    def curate(
        self,
        candidates: list[dict[str, Any]] | None,
        scores: dict[str, float | None] | None = None,
        *,
        iteration: int = 1,
        previous: ArtifactRef | None = None,
        calibration: list[dict[str, Any]] | None = None,
        review: str = "",
        seed: int = 3,
        **curation: Any,
    ) -> tuple[int, Any]:
        inputs = {"prepare": self.prepare}
        if candidates is not None:
            tables = {"candidates": candidates}
            inputs["candidates"] = jobs_fixtures.publish(self.root, "generate", tables, iteration=iteration)
        if scores is not None:
            rows = [{"triplet_id": name, "score": score} for name, score in scores.items()]
            inputs["scores"] = jobs_fixtures.publish(
                self.root, "score", {"scores": rows}, iteration=iteration, inputs={"reward": "r0"}
            )
        if calibration is not None:
            inputs["reward"] = jobs_fixtures.publish(self.root, "reward", {"calibration": calibration})
        if previous is not None:
            inputs["previous"] = previous
        parameters = {"seed": seed, "curation": curation, "review": review}
        asked = jobs_fixtures.request("curate", iteration, parameters, inputs)
        code = main.execute(asked, self.root)
        self.asked = asked
        return code, jobs_fixtures.reader(self.root, asked) if code == 0 else None

    def reasons(self, *arguments: Any, **options: Any) -> dict[str, list[str]]:
        code, artifact = self.curate(*arguments, **options)
        assert code == 0
        return {row["triplet_id"]: row["reasons"] for row in artifact.rows("decisions")}
