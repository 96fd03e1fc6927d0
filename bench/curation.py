"""What curating 50,000 candidates takes, and what of planted near-duplicates and planted contamination it finds.

python -m bench.curation [--scale 1.0] [--cluster 20000]

The real stage, in a process of its own, on tables made up here: 50,000 candidates (five questions about each of 10,000
images), 50,000 rows of D_gen about the same kind of images, 20,000 benchmark items. Texts are drawn from grammars of
radiologists' phrases with 12 % templates; perceptual hashes come in clusters, as those of slices and of one modality
do. Planted, with the ids known: rewordings of another candidate and of a row of D_gen beside an image of up to four
other bits; benchmark images, themselves and up to four bits away; benchmark questions beside another image.

Beside it: as many near-duplicates as one cluster of images may hold (slices of one volume), in the worst shapes.

What counts as a false positive: a reason given to a row that nothing was planted in, and that an exhaustive check by
another way (all pairs of images, bit by bit; shingles as sets) does not give.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from tests.support import near_clusters

from medgr2_api import paths
from medgr2_api.curation import NearDuplicates
from medgr2_api.stage_contract import ArtifactRef, CycleRef, StageRequest
from medgr2_jobs.duplicates.near import NearIndex
from medgr2_jobs.prompts.answers import normalise
from medgr2_jobs.store import manifest
from medgr2_jobs.store.artifact import ArtifactReader, ArtifactWriter
from medgr2_jobs.store.rows import Split, TableRow
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome, Decision, Score
from medgr2_jobs.store.rows.prepared import Image, Item

Asked = dict[str, Any]
"""What a question says: question, options, answer_index, and its image."""
NEAR_BITS, JACCARD = 4, 0.8
DUPLICATE, OVERLAP = "near_duplicate", "near_overlap"
MODALITIES = ("CT", "MRI", "X-Ray", "Ultrasound", "Dermoscopy", "Fundus", "OCT", "Microscopy")
FINDINGS = tuple(
    f"{degree}{place} {what}".strip()
    for degree in ("", "mild ", "marked ", "subtle ", "chronic ", "acute ", "focal ", "diffuse ")
    for place in ("basal", "apical", "cortical", "hepatic", "renal", "pleural", "hilar", "macular", "dermal", "sacral",
                  "frontal", "parietal", "splenic", "nasal")
    for what in ("effusion", "opacity", "nodule", "cyst", "calcification", "oedema", "fracture", "haemorrhage", "mass",
                 "atrophy", "stenosis", "fibrosis", "lesion")
)  # fmt: skip
SIDES = ("left", "right", "upper", "lower", "anterior", "posterior", "medial", "lateral")
ORGANS = ("lung", "kidney", "liver", "retina", "spleen", "heart", "brain", "femur", "skin", "pancreas", "spine", "knee")
FORMS = (
    "Which abnormality is most clearly visible in the {side} part of the {organ} on this {modality} image",
    "What does the area of altered signal near the {side} margin of the {organ} most likely represent",
    "Given the appearance of the {organ}, which diagnosis fits the {side} {finding} best",
    "How would you describe the change next to the {finding} seen at the {side} border of the {organ}",
    "Which structure lies directly {side} of the {finding} that is marked in the {organ}",
    "Considering size and contour of the {finding}, what is the most appropriate next step for the {organ}",
)
TEMPLATES = (("Which imaging modality is shown here?", MODALITIES), ("Which organ is shown?", ORGANS))


class Maker:
    """Everything made up, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def phashes(self, count: int) -> list[str]:
        """Clusters of images that differ in 6 to 20 bits, and lone ones; 64 bits, half of them set, as pHash has."""
        found: list[str] = []
        while len(found) < count:
            centre = self.random.getrandbits(64)
            found.append(f"{centre:016x}")
            if self.random.random() < 0.3:
                for _ in range(self.random.randrange(1, 12)):
                    found.append(self.flipped(f"{centre:016x}", self.random.randrange(6, 21)))
        return found[:count]

    def flipped(self, phash: str, bits: int) -> str:
        """The hash with so many bits turned over."""
        value = int(phash, 16)
        for bit in self.random.sample(range(64), bits):
            value ^= 1 << bit
        return f"{value:016x}"

    def question(self) -> Asked:
        """A question with four options."""
        if self.random.random() < 0.12:
            question, values = self.random.choice(TEMPLATES)
            options = tuple(self.random.sample(values, 4))
        else:
            words = {"side": self.random.choice(SIDES), "organ": self.random.choice(ORGANS),
                     "modality": self.random.choice(MODALITIES), "finding": self.random.choice(FINDINGS)}  # fmt: skip
            question = self.random.choice(FORMS).format(**words) + "?"
            options = tuple(self.random.sample(FINDINGS, 4))
        return {"question": question, "options": options, "answer_index": self.random.randrange(4)}

    def reworded(self, row: Asked) -> Asked:
        """The same question as another generator's run would put it: a word more or another, other options' order."""
        words = row["question"].rstrip("?").split()
        how = self.random.randrange(4)
        if how == 0:
            words.append("exactly")
        elif how == 1:
            words = ["Here,", *words]
        elif how == 2:
            words = [{"most": "quite", "Which": "What", "shown": "seen"}.get(word, word) for word in words]
        answer = row["options"][row["answer_index"]]
        options = tuple(self.random.sample(row["options"], 4))
        text = " ".join(words) + self.random.choice(("?", " ?", "??"))
        if self.random.random() < 0.5:
            text = text.upper()
        return {"question": text, "options": options, "answer_index": options.index(answer)}


def asked_of(name: str, iteration: int, image: str, asked: Asked) -> Candidate:
    """A usable candidate."""
    return Candidate(
        triplet_id=name, iteration=iteration, image_sha256=image, modality="CT", question_type="Diagnosis",
        question=asked["question"], options=asked["options"], answer_index=asked["answer_index"],
        rationale="It looks like it.", response="", paradigm="Direct", template_sha256="f", generator="bench",
        outcome=CandidateOutcome.OK, error="", attempts=1, input_tokens=None, output_tokens=None,
        thinking_tokens=None, usd=None,
    )  # fmt: skip


def said_by(row: Item | Candidate) -> Asked:
    """What a row says, to be asked again in other words."""
    return {"question": row.question, "options": row.options, "answer_index": row.answer_index}


@dataclass(frozen=True)
class Made:
    """The tables, and what was planted in them."""

    images: list[Image]
    items: list[Item]
    trained: list[Candidate]
    """What the iteration before kept."""
    candidates: list[Candidate]
    scores: list[Score]
    planted: dict[str, dict[str, str]]
    """By kind: the planted ids, each with that of its source where it is a candidate."""
    clean: set[str]
    """Ids in which nothing was planted."""


def build(scale: float, seed: int = 5) -> Made:
    """The tables of 50,000 candidates, times `scale`."""
    maker = Maker(seed)
    pick = maker.random
    images, known, held = round(10_000 * scale), round(50_000 * scale), round(20_000 * scale)
    hashes = maker.phashes(3 * images)
    table = {f"{n:064x}": phash for n, phash in enumerate(hashes)}
    names = list(table)
    pool, others, tests = names[:images], names[images : 2 * images], names[2 * images :]
    items = [Item(item_id=f"b{n}", source="x", split=Split.TEST, benchmark="bench", modality="CT", rationale="",
                  image_sha256=tests[n // 2 % len(tests)], question_type="Diagnosis", **maker.question())
             for n in range(held)]  # fmt: skip
    trained = [asked_of(f"k{n}", 1, others[n % len(others)], maker.question()) for n in range(known)]
    questions = [{"at": n, "image_sha256": pool[n // 5], **maker.question()} for n in range(5 * images)]
    planted: dict[str, dict[str, str]] = defaultdict(dict)
    extra: dict[str, str] = {}

    def image_near(image: str) -> str:
        name = f"{len(table) + len(extra):064x}"
        extra[name] = maker.flipped(table[image], pick.randrange(NEAR_BITS + 1))
        return name

    places = pick.sample(range(len(questions)), len(questions) // 5)
    kinds = (DUPLICATE, OVERLAP, "benchmark_image", "benchmark_near_image", "benchmark_text")
    chosen = set(places)
    sources = [row for n, row in enumerate(questions) if n not in chosen]
    unique = [item for item in items if not item.question.startswith(("Which imaging", "Which organ is"))]
    for number, place in enumerate(places):
        kind, row = kinds[number % len(kinds)], questions[place]
        name = f"t001-{place:06d}"
        planted[kind][name] = ""
        if kind in (DUPLICATE, OVERLAP):
            if kind == DUPLICATE:
                source = pick.choice(sources)
            else:
                kept = pick.choice(trained)
                source = {"image_sha256": kept.image_sha256, **said_by(kept)}
            row |= {"image_sha256": image_near(source["image_sha256"]), **maker.reworded(source)}
            mine, theirs = shingled(row), shingled(source)
            if len(mine & theirs) < JACCARD * len(mine | theirs):  # reworded too much to count as near
                planted[f"{kind}_beyond_the_limit"][name] = planted[kind].pop(name)
            elif kind == DUPLICATE:
                planted[kind][name] = f"t001-{source['at']:06d}"
        else:
            item = pick.choice(unique)
            if kind == "benchmark_image":
                row["image_sha256"] = item.image_sha256
            elif kind == "benchmark_near_image":
                row["image_sha256"] = image_near(item.image_sha256)
            else:
                options = tuple(pick.sample(item.options, 4))
                answer = options.index(item.options[item.answer_index])
                row |= {"question": item.question.upper(), "options": options, "answer_index": answer}
    candidates = [asked_of(f"t001-{n:06d}", 2, row["image_sha256"], row) for n, row in enumerate(questions)]
    table |= extra
    held_out = set(tests)
    shown = [Image(image_sha256=name, width=448, height=448, modality="CT", source="x", source_path="",
                   split=Split.TEST if name in held_out else Split.TRAIN, allow_external=True, dataset="", patient="",
                   phash=phash) for name, phash in table.items()]  # fmt: skip
    # the planted copies are the worse ones: the best of a pair stays
    scores = [Score(row.triplet_id, -1.0 - n / 1e6 if n in chosen else 5.0 + pick.random())
              for n, row in enumerate(candidates)]  # fmt: skip
    clean = {row.triplet_id for n, row in enumerate(candidates) if n not in chosen}
    return Made(shown, items, trained, candidates, scores, planted, clean)


def publish(root: Path, made: Made) -> dict[str, ArtifactRef]:
    """The tables as artifacts, by role."""
    kept = [Decision(row.triplet_id, True, (), None) for row in made.trained]
    artifacts: dict[str, tuple[str, dict[type[TableRow], list[Any]]]] = {
        "prepare": ("prepare", {Image: made.images, Item: made.items}),
        "generate-1": ("generate", {Candidate: made.trained}),
        "curate-1": ("curate", {Decision: kept}),
        "generate-2": ("generate", {Candidate: made.candidates}),
        "scores": ("score", {Score: made.scores}),
    }
    inputs = {}
    for role, (stage, tables) in artifacts.items():
        name, key = stage, role.encode().hex().ljust(64, "0")
        asked = StageRequest(cycle=CycleRef(name="bench", uid="u"), iteration=1, stage=name, input_hash=key,
                             parameters={})  # fmt: skip
        writer = ArtifactWriter(root, asked)
        writer.open()
        for kind, rows in tables.items():
            writer.table(kind, rows)
        found = manifest.commit(writer.base, manifest.Manifest(
            stage=name, input_hash=key, code_version=1, cycle="bench", iteration=1, attempt=1, parts=writer.parts(),
            inputs={}, parameters={},
        ), writer.work)  # fmt: skip
        path = str(paths.artifact(name, key))
        inputs[role] = ArtifactRef(stage=name, iteration=1, path=path, output_digest=found.output_digest)
    return inputs


def shingled(row: Asked) -> frozenset[tuple[str, str, str]]:
    """The stage's shingles, put down once more: neighbouring words of question, options and answer, with the ends."""
    parts = [("q", row["question"]), *(("o", option) for option in row["options"])]
    parts.append(("a", row["options"][row["answer_index"]]))
    found = set()
    for part, text in parts:
        words = ["^", *normalise(text).split(), "$"]
        found |= {(part, *pair) for pair in pairwise(words)}
    return frozenset(found)


def whole_text(row: Item | Candidate) -> tuple[str, frozenset[str], str]:
    """Question, options and answer, normalised."""
    asked = said_by(row)
    options = [normalise(option) for option in asked["options"]]
    return normalise(asked["question"]), frozenset(options), options[asked["answer_index"]]


def truly_near(
    row: Candidate, others: list[Candidate], phashes: dict[str, int], by_image: dict[int, list[int]]
) -> bool:
    """Whether one of the others is near: every image hash is looked at."""
    mine, said = phashes[row.image_sha256], shingled(said_by(row))
    for value, places in by_image.items():
        if (value ^ mine).bit_count() <= NEAR_BITS:
            for place in places:
                theirs = shingled(said_by(others[place]))
                if others[place] is not row and len(said & theirs) >= JACCARD * len(said | theirs):
                    return True
    return False


def false_positives(made: Made, given: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """Reasons given to clean rows: how many, and how many of them the exhaustive check does not confirm."""
    phashes = {row.image_sha256: int(row.phash, 16) for row in made.images}
    held = {phashes[row.image_sha256] for row in made.items}
    said = {whole_text(item) for item in made.items}
    places: dict[str, dict[int, list[int]]] = {DUPLICATE: defaultdict(list), OVERLAP: defaultdict(list)}
    for kind, rows in ((DUPLICATE, made.candidates), (OVERLAP, made.trained)):
        for place, row in enumerate(rows):
            places[kind][phashes[row.image_sha256]].append(place)
    flagged = unconfirmed = 0
    for row in made.candidates:
        if row.triplet_id not in made.clean:
            continue
        for reason in given[row.triplet_id]:
            if reason in ("duplicate", "overlap"):  # exact ones happen by chance
                continue
            flagged += 1
            if reason in places:
                others = made.candidates if reason == DUPLICATE else made.trained
                right = truly_near(row, others, phashes, places[reason])
            elif reason.endswith("_text"):
                right = whole_text(row) in said
            else:
                right = any((phashes[row.image_sha256] ^ value).bit_count() <= NEAR_BITS for value in held)
            unconfirmed += not right
    return {"clean_rows": len(made.clean), "clean_flagged": flagged, "false_positives": unconfirmed}


def clusters(count: int) -> dict[str, float]:
    """Processor seconds to look for near-duplicates among so many triplets on images that all look alike."""
    figures: dict[str, float] = {}
    for shape in near_clusters.SHAPES:
        rows, phashes = near_clusters.cluster(shape, count)
        began = time.process_time()
        index = NearIndex(rows, rows, phashes, NearDuplicates(image_hamming=NEAR_BITS, text_jaccard=JACCARD))
        index.near_others()
        dropped = index.near_kept(range(count), np.ones(count, np.bool_))
        name = f"cluster_{shape.replace(' ', '_')}"
        figures |= {f"{name}_seconds": round(time.process_time() - began, 2), f"{name}_kept": int((~dropped).sum())}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--cluster", type=int, default=20_000, help="triplets in the worst-case cluster of images")
    options = parser.parse_args()
    scale = options.scale
    made = build(scale)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        curation = {"selection": {"strategy": "All"}, "rejectGuessable": True,
                    "nearDuplicates": {"imageHamming": NEAR_BITS, "textJaccard": JACCARD},
                    "balance": {"by": ["modality", "questionType"], "maxShare": 1.0}}  # fmt: skip
        asked = StageRequest(
            cycle=CycleRef(name="bench", uid="u"), iteration=2, stage="curate", input_hash="c" * 64,
            parameters={"seed": 1, "curation": curation, "answerFormat": "Letter"}, inputs=publish(root, made),
        )  # fmt: skip
        program = (
            "import sys; from pathlib import Path; from medgr2_api.stage_contract import StageRequest\n"
            "from medgr2_jobs.runner import main as stage\n"
            "code = stage.execute(StageRequest.model_validate_json(sys.stdin.read()), Path(sys.argv[1]))\n"
            "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"  # ru_maxrss counts us, too
            "sys.exit(code)"
        )
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program, name], input=asked.model_dump_json(by_alias=True),
                              text=True, check=True, stdout=subprocess.PIPE)  # fmt: skip
        wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        path = str(paths.artifact("curate", asked.input_hash))
        published = ArtifactReader(root, ArtifactRef(stage="curate", iteration=2, path=path, output_digest=""))
        given = {row.triplet_id: row.reasons for row in published.rows(Decision)}
    figures: dict[str, float] = {
        "wall_minutes": round(wall / 60, 3),
        "cpu_minutes": round((used.ru_utime + used.ru_stime) / 60, 3),
        "peak_mib": int(done.stdout.split()[-1]) // 1024,
    }
    for kind, ids in sorted(made.planted.items()):
        wanted = kind.removesuffix("_beyond_the_limit")
        as_good = (wanted, wanted.removeprefix("near_"))
        # a source that is itself ruled out stands for no other row
        names = [name for name, source in ids.items() if not source or not given[source]]
        found = sum(any(reason in as_good for reason in given[name]) for name in names)
        figures[f"recall_{kind}"] = round(found / max(1, len(names)), 5)
        figures[f"planted_{kind}"] = len(names)
    figures |= false_positives(made, given) | clusters(options.cluster)
    print(json.dumps({"name": "curation", "figures": figures, "n": len(given), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
