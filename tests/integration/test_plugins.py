"""A package from outside brings a data format, a provider, a curation rule and a reward term; the stages run with them.

The package is `tests/plugin_package`: it is not installed, only put where Python looks.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medgr2_api import paths
from medgr2_api.cycle import CycleSpec
from medgr2_api.presets import resolve
from medgr2_api.stage_contract import RESULT_PATH_ENV, ArtifactRef, StageRequest, StageResult
from medgr2_api.stages import stage_parameters
from medgr2_api.unsupported import unsupported
from medgr2_jobs.preflight.__main__ import main as preflight
from medgr2_jobs.runner.main import execute
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows.candidates import Candidate
from medgr2_jobs.store.rows.prepared import Image as ImageRow
from medgr2_jobs.store.rows.prepared import Item
from tests.support.chat_server import TRIPLET, Answer, DescribeServer, retry, serving
from tests.support.curate_fixtures import reasons_of
from tests.support.cycle_documents import tiny_cycle
from tests.support.fixtures import BASE, run_stage, stage_request
from tests.support.generate_fixtures import KEY, PRICES, QUESTION_USD, ledgers, outcomes, prepare_root
from tests.support.plugin_fixtures import PACKAGE, install, plugin

QUESTIONS = 6
#: What a question may cost at most, before it is asked, is below this.
WORST_USD = 0.0061


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with two sources in the plugin's format, of three images each."""
    install(monkeypatch)
    monkeypatch.setenv(RESULT_PATH_ENV, str(tmp_path / "result.json"))
    root = prepare_root(tmp_path, monkeypatch)
    for number, name in enumerate(("open", "closed", "bench")):
        (root / name).mkdir()
        lines = []
        for index in range(3):
            Image.effect_noise((64, 64), 40 + 10 * number + index).convert("RGB").save(root / name / f"{index}.png")
            lines.append(f"{index}.png\tWhat does image {index} of {name} show?\tnodule\tcyst\tplaque")
        (root / name / "questions.tsv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def server() -> Iterator[DescribeServer]:
    with serving(DescribeServer) as running:
        yield running


def source(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "format": "Plugin",
        "uri": f"{name}/questions.tsv",
        "modality": "X-Ray",
        "plugin": plugin("tsv", question_type="Diagnosis"),
        **changes,
    }


def document(server: DescribeServer, **changes: Any) -> dict[str, Any]:
    provider = {
        **plugin("describe", style="terse"),
        "model": "describer-2",
        "baseURL": server.url,
        "apiKeySecretRef": {"name": "provider", "key": "key"},
        **changes.pop("provider", {}),
    }
    return tiny_cycle(
        data={
            "sources": [source("open", allowExternal=True), source("closed")],
            "benchmarks": [source("bench")],
            "split": {"validationFraction": 0.0},
        },
        generator={
            "plugin": provider,
            "candidates": QUESTIONS,
            "questionsPerImage": 2,
            "concurrency": 2,
            "prices": PRICES,
        },
        curation={"selection": {"strategy": "All"}, "rules": [plugin("short-questions", words=4)]},
        policy={"baseModel": BASE},
        rewardModel={"baseModel": BASE},
        **changes,
    )


def spec_of(document: dict[str, Any]) -> CycleSpec:
    spec = CycleSpec.model_validate(document["spec"])
    assert unsupported(spec, local=True) == []
    return resolve(spec)


def request(spec: CycleSpec, stage: str, inputs: dict[str, ArtifactRef], **fields: Any) -> StageRequest:
    iteration = 0 if stage == "prepare" else 1
    return stage_request(stage, iteration, stage_parameters(spec, "loop", stage, iteration), inputs, **fields)


def prepared(root: Path, spec: CycleSpec) -> ArtifactRef:
    return run_stage(root, request(spec, "prepare", {}))


def refused(root: Path, asked: StageRequest) -> str:
    """Runs a stage that must end with 78; its message."""
    assert execute(asked, root) == 78
    return StageResult.model_validate_json((root.parent / "result.json").read_text()).message


def images_of(root: Path, found: ArtifactReader, name: str) -> set[str]:
    """The images of a source as the server would see them."""
    rows = [row for row in found.rows(ImageRow) if row.source == name]
    return {base64.b64encode(ImageStore(root).read(row.image_sha256)).decode() for row in rows}


def test_from_its_format_to_what_its_rule_drops(root: Path, server: DescribeServer) -> None:
    spec = spec_of(document(server))
    prepare = prepared(root, spec)
    tables = ArtifactReader(root, prepare)
    items = tables.rows(Item)
    assert {(row.source, row.question_type, tuple(row.options)) for row in items} == {
        (name, "Diagnosis", ("cyst", "nodule", "plaque")) for name in ("open", "closed", "bench")
    }
    assert {row.answer_index for row in items} == {1}

    short = json.dumps({**TRIPLET, "question": "A cyst, no?"})
    server.answer = lambda number, body: Answer(content=short) if body["seed"] % 2 else Answer()
    asked = request(spec, "generate", {"prepare": prepare})
    generate = run_stage(root, asked)
    candidates = ArtifactReader(root, generate).rows(Candidate)
    assert outcomes(candidates) == {"ok": QUESTIONS}
    assert {row.generator for row in candidates} == {"describer-2"}
    assert [row.usd for row in candidates] == pytest.approx([QUESTION_USD] * QUESTIONS)
    assert {(body["model"], body["style"]) for body in server.ledger.requests} == {("describer-2", "terse")}
    assert server.ledger.authorizations == {f"Bearer {KEY}"}
    assert {body["image"] for body in server.ledger.requests} == images_of(root, tables, "open")
    assert ArtifactReader(root, generate).manifest.counters["images_withheld"] == 3
    assert ledgers(root, asked) == {f"{asked.input_hash}-s0.jsonl": (pytest.approx(QUESTIONS * QUESTION_USD), 0)}

    curate = run_stage(root, request(spec, "curate", {"prepare": prepare, "generate-1": generate}))
    reasons = reasons_of(ArtifactReader(root, curate))
    for row in candidates:
        dropped = "short-questions:fewer_than_4_words" in reasons[row.triplet_id]
        assert dropped == (row.question == "A cyst, no?")
    assert {row.question for row in candidates} == {"A cyst, no?", TRIPLET["question"]}, "both kinds were asked"


def test_images_that_may_not_leave_are_sent_only_to_a_plugin_that_is_inside(root: Path, server: DescribeServer) -> None:
    closed = {"sources": [source("closed")], "split": {"validationFraction": 0.0}}
    outside = document(server)
    outside["spec"]["data"] = closed
    (problem,) = unsupported(CycleSpec.model_validate(outside["spec"]))
    assert "no image may leave the site" in problem.message
    spec = resolve(CycleSpec.model_validate(outside["spec"]))
    prepare = prepared(root, spec)
    told = refused(root, request(spec, "generate", {"prepare": prepare}))
    assert "none of the 3 training images may leave the site" in told
    assert server.ledger.bodies == []

    outside["spec"]["generator"]["plugin"]["external"] = False
    run_stage(root, request(spec_of(outside), "generate", {"prepare": prepare}))
    sent = {body["image"] for body in server.ledger.requests}
    assert sent == images_of(root, ArtifactReader(root, prepare), "closed")


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ({"version": "2.0"}, "generator.plugin.version: asks for 2.0, but installed is medgr2-example-plugin 1.0"),
        ({"name": "describes"}, "no installed package has an entry point 'describes' in medgr2.providers"),
        ({"options": {"styles": 1}}, "generator.plugin.options: 'describe' does not take them"),
    ],
)
def test_a_provider_that_is_not_there_is_refused_before_any_question(
    root: Path, server: DescribeServer, provider: dict[str, Any], said: str
) -> None:
    spec = spec_of(document(server, provider=provider))
    assert said in refused(root, request(spec, "generate", {"prepare": prepared(root, spec)}))
    assert server.ledger.bodies == []


def test_a_reader_of_another_version_is_refused(root: Path, server: DescribeServer) -> None:
    wrong = document(server)
    wrong["spec"]["data"]["benchmarks"] = [source("bench", plugin=plugin("tsv", "0.9"))]
    told = refused(root, request(spec_of(wrong), "prepare", {}))
    assert told.startswith("data.benchmarks[bench].plugin.version: asks for 0.9, but installed is")


def test_without_the_package_the_stage_says_what_is_missing(
    root: Path, server: DescribeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(document(server))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(PACKAGE)])
    told = refused(root, request(spec, "prepare", {}))
    assert "data.sources[open].plugin: no installed package has an entry point 'tsv' in medgr2.readers" in told


def test_it_is_retried_paid_for_and_kept_like_any_provider(root: Path, server: DescribeServer) -> None:
    spec = spec_of(document(server))
    prepare = prepared(root, spec)
    server.answer = lambda number, body: retry(503) if number == 1 else Answer()
    first = request(spec, "generate", {"prepare": prepare}, generator_budget_usd=WORST_USD + 1.5 * QUESTION_USD)
    assert execute(first, root) == 75
    result = StageResult.model_validate_json((root.parent / "result.json").read_text())
    assert result.reason == "BudgetSpent"
    answered = sum(server.ledger.charged.values())
    assert 0 < answered < QUESTIONS
    assert result.usage["generatorUSD"] == pytest.approx(answered * QUESTION_USD)

    run_stage(root, request(spec, "generate", {"prepare": prepare}, attempt=2))
    assert set(server.ledger.charged.values()) == {1}, "no question was paid twice"
    assert set(server.ledger.asked.values()) == {2}


def test_an_answer_of_another_form_is_paid_for_and_not_used(root: Path, server: DescribeServer) -> None:
    server.answer = lambda number, body: Answer(content={"text": "many"})  # type: ignore[arg-type]
    spec = spec_of(document(server))
    asked = request(spec, "generate", {"prepare": prepared(root, spec)})
    assert execute(asked, root) == 75
    result = StageResult.model_validate_json((root.parent / "result.json").read_text())
    assert (
        "6 of 6 questions got no answer; most often: not an answer: text: Input should be a valid string"
        in result.message
    )
    assert result.usage["generatorUSD"] > QUESTIONS * QUESTION_USD, "counted at its worst case"


def test_the_hash_knows_version_and_options_and_not_how_it_is_reached(server: DescribeServer) -> None:
    def hashed(**provider: Any) -> str:
        spec = spec_of(document(server, provider=provider))
        return request(spec, "generate", {}).input_hash

    standing = hashed()
    assert hashed(baseURL="http://elsewhere", apiKeySecretRef={"name": "other", "key": "key"}) == standing
    others = [hashed(version="1.1"), hashed(options={"style": "long"}), hashed(name="other"), hashed(model="m")]
    assert len({standing, *others}) == 5


def test_doctor_says_which_plugins_are_there(
    root: Path, server: DescribeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cycle = document(server)
    cycle["spec"]["policy"]["grpo"] = {
        "rewards": [{"type": "Plugin", "weight": 1, "plugin": plugin("brevity", "1.2")}],
    }
    cycle["spec"]["curation"]["rules"] = [plugin("short-questions"), plugin("long-questions")]
    file = tmp_path / "cycle.yaml"
    file.write_text(json.dumps(cycle))
    assert preflight([str(file), "--workspace", str(root), "--questions", "1", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [(found["where"], found["verdict"]) for found in findings[:7]] == [
        ("data.sources[open].plugin", "ok"),
        ("data.sources[closed].plugin", "ok"),
        ("data.benchmarks[bench].plugin", "ok"),
        ("generator.plugin", "ok"),
        ("curation.rules[short-questions]", "ok"),
        ("curation.rules[long-questions]", "failed"),
        ("policy.grpo.rewards[brevity]", "failed"),
    ]
    assert "did you mean 'short-questions'?" in findings[5]["message"]
    assert "asks for 1.2" in findings[6]["message"]
    trial = [found for found in findings[7:] if found["where"] == "generator.plugin"]
    assert [(found["verdict"], found["message"].split(" (asked")[0]) for found in trial] == [
        ("ok", "describer-2: 1 of 1 questions became triplets")
    ]
    assert (root / paths.spend("loop", paths.local_uid("loop"))).is_dir(), "the trial question was paid for"
