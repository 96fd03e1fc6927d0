"""The `data` and `workspace` parts of a cycle's spec: what is learnt from, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from .cel_rules import Keyed, Rule
from .hashing import NOT_HASHED
from .kubernetes_fragments import VolumeClaimTemplate
from .model import ApiEnum, Model
from .plugin import PluginRef
from .types import DNSLabel, HttpURL, RelativePath
from .uris import URI, SecretKeyRef


class DataFormat(ApiEnum):
    """File formats that `prepare` reads."""

    OMNIMEDVQA = "OmniMedVQA"
    MMMU = "MMMU"
    VQA_JSONL = "VQAJsonl"
    DICOM = "DICOM"
    IMAGE_FOLDER = "ImageFolder"
    PHANTOM = "Phantom"
    PLUGIN = "Plugin"


#: Formats that hold images only: no gold answers.
IMAGES_ONLY = frozenset({DataFormat.DICOM, DataFormat.IMAGE_FOLDER})
#: Formats whose images may show patients: not sent to outside providers by default.
STAYS_INSIDE = IMAGES_ONLY | {DataFormat.PLUGIN}


class AnswerKey(ApiEnum):
    """How the records of a source say which option is right."""

    INFER = "Infer"
    TEXT = "Text"
    LETTER = "Letter"
    INDEX_FROM_0 = "IndexFrom0"
    INDEX_FROM_1 = "IndexFrom1"


class OptionSpelling(ApiEnum):
    """How the options of a source are spelled."""

    AS_WRITTEN = "AsWritten"
    UNIFORM = "Uniform"


class SourceRole(ApiEnum):
    """What a source is used for."""

    SEED = "Seed"
    IMAGES = "Images"


class SplitBy(ApiEnum):
    """The unit that is never divided between splits."""

    IMAGE = "Image"
    PATIENT = "Patient"
    SOURCE = "Source"


class OnLeak(ApiEnum):
    """What to do with a training image that a benchmark also holds."""

    DROP = "Drop"
    FAIL = "Fail"


class NamesShown(ApiEnum):
    """How files and records are called in tables, messages and logs."""

    PRIVATE = "Private"
    CLEAR = "Clear"


class WhenDeleted(ApiEnum):
    """What becomes of the claim made from volumeClaimTemplate when the cycle is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class MMMU(Model):
    """What to take of a MMMU export (parquet files as published, a folder per subject)."""

    subjects: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=64), Keyed()] = [
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ]
    """Subjects; default: the five of Health & Medicine."""
    split: Literal["dev", "validation", "test"] = "validation"
    """Which of its splits; `test` has no answers."""


class BurnedInText(ApiEnum):
    """What to do with an image that seems to have text in its pixels, which may name a patient."""

    QUARANTINE = "Quarantine"
    TRUST_FLAG = "TrustFlag"


class DICOM(Model):
    """How DICOM files become images."""

    max_frames: Annotated[int, Field(ge=1, le=4096)] = 1
    """Frames taken of a multi-frame file, evenly spaced; 1: the middle one."""
    burned_in_text: BurnedInText = BurnedInText.QUARANTINE
    """Quarantine: what the file declares as annotated, and what looks as if it had text in it, is set aside. TrustFlag:
    only what the file declares."""


class Phantom(Model):
    """Synthetic images drawn by code: no patient, no licence, known truth. For trials and tests."""

    images: Annotated[int, Field(ge=1, le=1_000_000)] = 250
    """Number of synthetic images to draw for this source."""
    questions_per_image: Annotated[int, Field(ge=0, le=4)] = 4
    """Questions per image, of the four kinds: modality, finding, location, count."""


_NO_ANSWERS = [str(format) for format in DataFormat if format in IMAGES_ONLY]
#: Formats whose records can say in several ways which option is right.
_ANSWER_KEYS = (DataFormat.OMNIMEDVQA, DataFormat.VQA_JSONL)
_FORMAT_RULES = (
    Rule(
        f"!has(self.optionSpelling) || self.optionSpelling == 'AsWritten' || !(self.format in {_NO_ANSWERS})",
        f"'optionSpelling' is of questions, which formats {' and '.join(_NO_ANSWERS)} have not",
        lambda s: s.option_spelling is OptionSpelling.AS_WRITTEN or s.format not in IMAGES_ONLY,
    ),
    Rule(
        f"!has(self.answerKey) || self.answerKey == 'Infer' || self.format in {[str(name) for name in _ANSWER_KEYS]}",
        f"'answerKey' goes with formats {' and '.join(_ANSWER_KEYS)}; the other formats have one way to say it",
        lambda s: s.answer_key is AnswerKey.INFER or s.format in _ANSWER_KEYS,
    ),
    Rule(
        "(self.format == 'Phantom') == has(self.phantom)",
        "'phantom' goes with format Phantom: give both or neither ('phantom: {}' takes the defaults)",
        lambda s: (s.format is DataFormat.PHANTOM) == (s.phantom is not None),
    ),
    Rule(
        "(self.format == 'Phantom') != (has(self.uri) && self.uri != '')",
        "'uri' is needed, but not with format Phantom: phantoms are drawn, not read",
        lambda s: (s.format is DataFormat.PHANTOM) != bool(s.uri),
    ),
    Rule(
        "!has(self.mmmu) || self.format == 'MMMU'",
        "'mmmu' goes with format MMMU",
        lambda s: s.mmmu is None or s.format is DataFormat.MMMU,
    ),
    Rule(
        "(self.format == 'Plugin') == has(self.plugin)",
        "'plugin' goes with format Plugin: give both or neither",
        lambda s: (s.format is DataFormat.PLUGIN) == (s.plugin is not None),
    ),
)
_DICOM_RULE = Rule(
    "!has(self.dicom) || self.format == 'DICOM'",
    "'dicom' goes with format DICOM",
    lambda s: s.dicom is None or s.format is DataFormat.DICOM,
)
_ANSWERS_RULE = Rule(
    f"!(self.format in [{', '.join(map(repr, _NO_ANSWERS))}])",
    f"a benchmark needs questions with answers, which {' and '.join(_NO_ANSWERS)} have not",
    lambda s: s.format not in IMAGES_ONLY,
)


class DataSource(Model):
    """One set of images, with or without questions and answers."""

    rules: ClassVar[tuple[Rule, ...]] = (*_FORMAT_RULES, _DICOM_RULE)

    name: DNSLabel
    """Name of the source in tables and reports."""
    format: DataFormat
    """File format in which the source's records are stored."""
    uri: URI = ""
    """Where it lies: a path on the volume, or hf://org/name@revision, s3://bucket/key, file:///path, which prepare
    fetches once and pins. Phantom sources have none."""
    images: URI = ""
    """Folder that the image paths of the records are relative to, as `uri`; empty: the folder of the records."""
    modality: Annotated[str, Field(max_length=64)] = ""
    """Modality of images about which the data says nothing, such as X-Ray."""
    answer_key: AnswerKey = AnswerKey.INFER
    """How the records say which option is right: by its Text, its Letter, or its place, counted IndexFrom0 or
    IndexFrom1. Infer: as the format has it, or as the whole of a file shows; a record that two ways of reading fit with
    different results is set aside. For OmniMedVQA and VQAJsonl."""
    option_spelling: OptionSpelling = OptionSpelling.AS_WRITTEN
    """Uniform: the options are written in lower case and without punctuation around them, for their spelling can give
    the right one away; the report says so."""
    mmmu: MMMU | None = None
    """Which subjects to take from an MMMU export."""
    role: SourceRole | None = None
    """Seed: its questions and answers are gold, its images also feed the generator. Images: only its images are
    used. Default: Seed for formats that carry answers, Images for DICOM and ImageFolder."""
    allow_external: bool | None = None
    """Whether these images may be sent to a provider outside the cluster. Default: false for DICOM, ImageFolder and
    Plugin, true otherwise."""
    names: NamesShown = NamesShown.PRIVATE
    """Private: paths, ids and origins of records, which may name a patient, are pseudonyms in all that is published,
    shown or logged. Clear: as they are. Of Phantom always Clear; patients are pseudonyms in any case."""
    dicom: DICOM | None = None
    """How DICOM files are read: frames, and text that is burned in."""
    phantom: Phantom | None = None
    """How the synthetic images of a Phantom source are drawn."""
    plugin: PluginRef | None = None
    """What reads a Plugin source: code of another package (entry points medgr2.readers)."""


class ResolvedSource(DataSource):
    """With what follows from its format."""

    role: SourceRole
    allow_external: bool


class Benchmark(Model):
    """A test set. Never trained on, never used to choose anything."""

    rules: ClassVar[tuple[Rule, ...]] = (*_FORMAT_RULES, _ANSWERS_RULE)

    name: DNSLabel
    """Name of the benchmark in tables and reports."""
    format: DataFormat
    """File format in which the benchmark's records are stored."""
    uri: URI = ""
    """Where it lies: a path on the volume, or hf://org/name@revision, s3://bucket/key, file:///path, which prepare
    fetches once and pins. Phantom benchmarks have none."""
    images: URI = ""
    """Folder that the image paths of the records are relative to, as `uri`; empty: the folder of the records."""
    modality: Annotated[str, Field(max_length=64)] = ""
    """Modality of images about which the data says nothing, such as X-Ray."""
    answer_key: AnswerKey = AnswerKey.INFER
    """How the records say which option is right: by its Text, its Letter, or its place, counted IndexFrom0 or
    IndexFrom1. Infer: as the format has it, or as the whole of a file shows; a record that two ways of reading fit with
    different results is set aside. For OmniMedVQA and VQAJsonl."""
    option_spelling: OptionSpelling = OptionSpelling.AS_WRITTEN
    """Uniform: the options are written in lower case and without punctuation around them, for their spelling can give
    the right one away; the report says so."""
    mmmu: MMMU | None = None
    """Which subjects to take from an MMMU export."""
    names: NamesShown = NamesShown.PRIVATE
    """Private: paths, ids and origins of records, which may name a patient, are pseudonyms in all that is published,
    shown or logged. Clear: as they are, as for a published benchmark. Of Phantom always Clear."""
    on_leak: OnLeak = OnLeak.DROP
    """What to do when a training image is also in this benchmark: Drop it from training and say how many, or Fail."""
    phantom: Phantom | None = None
    """How to draw a Phantom benchmark."""
    plugin: PluginRef | None = None
    """What reads a Plugin benchmark: code of another package (entry points medgr2.readers)."""


class SplitSpec(Model):
    """How sources that come unsplit are divided; seeded, and the hash of the result is stored."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(has(self.validationFraction) ? self.validationFraction : 0.1)"
            " + (has(self.testFraction) ? self.testFraction : 0.0) < 1.0",
            "validationFraction + testFraction must stay below 1: the rest is for training",
            lambda s: s.validation_fraction + s.test_fraction < 1,
        ),
    )

    by: SplitBy = SplitBy.IMAGE
    """The unit that is never divided: all questions of one Image; all images of one Patient (every image needs an
    id); or all of one Source, which is what the records call their dataset, else the file that they stand in."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share held out for every choice (thresholds, early stopping, best checkpoint)."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share held out as a further test set named after the source."""


class S3(Model):
    """How to reach an S3-compatible store; without the two references: anonymously."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.accessKeyIDSecretRef) == has(self.secretAccessKeySecretRef)",
            "accessKeyIDSecretRef and secretAccessKeySecretRef go together",
            lambda s: (s.access_key_id_secret_ref is None) == (s.secret_access_key_secret_ref is None),
        ),
    )

    endpoint_url: Annotated[HttpURL | None, Field(alias="endpointURL")] = None
    """Address of the store; absent: Amazon's."""
    region: Annotated[str, Field(max_length=64)] = ""
    """Region of the buckets; empty: the store's default."""
    access_key_id_secret_ref: Annotated[SecretKeyRef | None, Field(alias="accessKeyIDSecretRef")] = None
    """Reference to the Secret that holds the access key's id."""
    secret_access_key_secret_ref: SecretKeyRef | None = None
    """Where the secret access key lies."""


class Fetch(Model):
    """How prepare gets what is not on the volume. Says how to reach it, not what it is: not part of any hash."""

    hub_token_secret_ref: SecretKeyRef | None = None
    """Where the token for the Hugging Face hub lies; absent: public repositories only."""
    hub_endpoint: HttpURL | None = None
    """Address of a mirror of the hub; absent: huggingface.co."""
    s3: S3 = S3()
    """How objects at s3:// URIs are reached: endpoint, region, keys."""


_Source = TypeVar("_Source")
Sources = Annotated[Sequence[_Source], Field(min_length=1, max_length=64), Keyed(("name",))]


class Data(Model):
    """Where the seed, the images and the benchmarks come from."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.benchmarks) || !self.sources.exists(s, self.benchmarks.exists(b, b.name == s.name))",
            "a source and a benchmark have the same name: tables could not tell them apart",
            lambda d: not {s.name for s in d.sources} & {b.name for b in d.benchmarks},
        ),
    )

    sources: Sources[DataSource]
    """What is learnt from: seed questions with gold answers, and images for the generator."""
    split: SplitSpec = SplitSpec()
    """How unsplit sources are divided."""
    benchmarks: Annotated[list[Benchmark], Field(max_length=32), Keyed(("name",))] = []
    """Test sets; images found in them are taken out of training."""
    fetch: Annotated[Fetch, NOT_HASHED] = Fetch()
    """How to reach what prepare has to fetch, models included."""
    pseudonym_secret_ref: Annotated[SecretKeyRef | None, NOT_HASHED] = None
    """Where the secret lies that makes pseudonyms, at least 16 characters; absent: the workspace's own, made at first
    use. Who has neither cannot turn a pseudonym back. What prepare has published keeps the pseudonyms it has; another
    secret counts once prepare runs anew."""
    max_pixels: Annotated[int, Field(ge=784, le=16_777_216)] = 401_408
    """Larger images are scaled down to this many pixels, once, by prepare."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of records that may be unreadable before prepare fails; each is set aside with its reason."""

    @property
    def drawn(self) -> bool:
        """Whether there is nothing but phantoms, whose names say nothing of anybody."""
        formats = [source.format for source in self.sources] + [benchmark.format for benchmark in self.benchmarks]
        return all(format is DataFormat.PHANTOM for format in formats)


class ResolvedData(Data):
    """With what follows from the formats."""

    sources: Sources[ResolvedSource]


class ClaimRef(Model):
    """An existing PersistentVolumeClaim."""

    claim_name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the claim, in the cycle's namespace."""


class Retention(Model):
    """What happens to the volume when the cycle is deleted."""

    when_deleted: WhenDeleted = WhenDeleted.RETAIN
    """What becomes of a claim made from volumeClaimTemplate when the cycle is deleted."""


class Workspace(Model):
    """The volume that all stages share. Exactly one of persistentVolumeClaim and volumeClaimTemplate."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.persistentVolumeClaim) != has(self.volumeClaimTemplate)",
            "exactly one of persistentVolumeClaim and volumeClaimTemplate must be given",
            lambda w: (w.persistent_volume_claim is None) != (w.volume_claim_template is None),
        ),
    )

    persistent_volume_claim: ClaimRef | None = None
    """Use an existing PersistentVolumeClaim of the cycle's namespace."""
    volume_claim_template: VolumeClaimTemplate | None = None
    """Make a claim from this template (a PersistentVolumeClaim's `spec`, and optional `metadata`)."""
    sub_path: RelativePath = ""
    """Folder inside the volume; empty: its root."""
    retention: Retention = Retention()
    """What happens to the volume when the cycle is deleted."""
