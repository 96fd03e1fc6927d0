"""Synonyms from WordNet 3.0 through nltk, as the paper perturbs texts (grade `perturbed`), where WordNet is at hand.

It is looked for where nltk keeps its data (`corpora/wordnet`, NLTK_DATA), and where Debian's package wordnet-base is.
Raw WordNet is noisy ("large" → "bombastic", "hazy" → "brumous"): of a word only the first synset of its usual part of
speech counts, and in it only single words in the same inflection that WordNet's sample of English has seen. What means
a part of the body, a condition, a place or a quantity has no synonym here: the text would say something else.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..store import atomic

DEBIAN = Path("/usr/share/wordnet")
_CORPUS = "corpora/wordnet/"  # with the slash nltk looks into wordnet.zip too
_FILES = ("data.", "index.", "cntlist.rev")
#: Lexicographer files whose words are never replaced: anatomy, diseases and findings, places, numbers.
_MEANINGFUL = frozenset(
    f"noun.{name}" for name in ("body", "state", "location", "quantity", "process", "phenomenon", "substance", "object")
)
#: The share of its uses that a word's usual part of speech has; of others we cannot tell the part of speech.
_USUAL = 0.9
#: How often a synonym stands in the sample that WordNet counts: a word seen once is a rare one ("bespeak").
_SEEN = 2
_WORD = re.compile(r"[a-z]{3,}")
#: Part of speech → the endings that we know how to exchange.
_ENDINGS = {"n": ("", "s"), "v": ("", "s", "ed", "ing"), "a": ("",), "r": ("",)}
#: Debian leaves this file out: the lexicographer files, in their order (lexnames(5WN)), with part of speech.
_LEXNAMES = {
    3: "adj.all adj.pert",
    4: "adv.all",
    1: (
        "noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition noun.communication "
        "noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person "
        "noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state "
        "noun.substance noun.time"
    ),
    2: (
        "verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption verb.contact "
        "verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather"
    ),
}
_LAST = ("adj.ppl", 3)


class Lexicon:
    """Synonyms of English words."""

    def __init__(self, root: Any) -> None:
        """
        Args:
            root: nltk's pointer to WordNet's files, in a folder or in a zip file.

        Raises:
            ConfigError: the files are not WordNet's, or not all of them.
        """
        from nltk.corpus.reader.wordnet import WordNetError

        self._known: dict[str, tuple[str, ...]] = {}
        try:
            self._reader = _open(root)
            self._irregular = {part: _bases(self._reader, f"{name}.exc") for part, name in _EXCEPTIONS.items()}
        except (OSError, ValueError, LookupError, WordNetError) as error:
            raise ConfigError(
                f"WordNet at {root} cannot be read ({error}): install it whole (Debian: wordnet-base; nltk: "
                "nltk.download('wordnet')), or remove it, then a small table of synonyms is used"
            ) from error

    def synonyms(self, word: str) -> tuple[str, ...]:
        """Words that may stand for a lower-case word, in WordNet's order; none for what it does not know well."""
        if word not in self._known:
            self._known[word] = self._look_up(word) if _WORD.fullmatch(word) else ()
        return self._known[word]

    def _look_up(self, word: str) -> tuple[str, ...]:
        part = self._usual_part(word)
        if part is None:
            return ()
        synsets = self._reader.synsets(word, pos=part)
        base = self._reader.morphy(word, part)
        if base is None or any(synset.lexname() in _MEANINGFUL for synset in synsets):
            return ()
        ending = next((ending for ending in _ENDINGS[part] if inflect(base, ending) == word), None)
        if ending is None or (part == "v" and not ending and base in self._irregular["v"]):
            return ()  # an inflection that a synonym need not share ("cut" is also the past)
        names = [str(lemma.name()) for lemma in synsets[0].lemmas() if lemma.count() >= _SEEN]
        plain = [name for name in names if _WORD.fullmatch(name) and name != base]
        if ending and (part, ending) != ("v", "s"):  # every verb takes an s
            plain = [name for name in plain if name not in self._irregular[part]]
        return tuple(inflect(name, ending) for name in plain)

    def _usual_part(self, word: str) -> str | None:
        """The part of speech that a word nearly always is: by WordNet's counts, or for want of another."""
        uses: Counter[str] = Counter()
        for synset in self._reader.synsets(word):
            part = "a" if synset.pos() == "s" else str(synset.pos())
            forms = (word, self._reader.morphy(word, part))
            uses[part] += sum(lemma.count() for lemma in synset.lemmas() if lemma.name() in forms)
        if len(uses) == 1:
            return next(iter(uses))
        return next((part for part, count in uses.items() if count > _USUAL * uses.total()), None)


_EXCEPTIONS = {"n": "noun", "v": "verb"}


def _open(root: Any) -> Any:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        def map_wn(self, *_: str) -> dict[str, str]:
            """Other languages' maps are not needed, and would need files that few have."""
            return {}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that other languages are not available
        return Reader(root, None)


def _bases(reader: Any, name: str) -> frozenset[str]:
    """Base forms with an irregular inflection, doubled consonants among them."""
    with reader.open(name) as lines:
        return frozenset(base for line in lines for base in line.split()[1:])


def inflect(base: str, ending: str) -> str:
    """A regular noun or verb with ending "", "s", "ed" or "ing"."""
    after_consonant = len(base) > 1 and base[-2] not in "aeiou"
    if ending == "s":
        if base.endswith(("s", "x", "z", "ch", "sh")):
            return f"{base}es"
        return f"{base[:-1]}ies" if base.endswith("y") and after_consonant else f"{base}s"
    if ending == "ed":
        if base.endswith("y") and after_consonant:
            return f"{base[:-1]}ied"
        return f"{base}d" if base.endswith("e") else f"{base}ed"
    if ending == "ing" and base.endswith("e") and not base.endswith(("ee", "oe", "ye", "ie")):
        return f"{base[:-1]}ing"
    return base + ending


def find(cache: Path, debian: Path = DEBIAN) -> Lexicon | None:
    """WordNet, if it is on this machine.

    Args:
        cache: where Debian's files are copied to, with what they lack: nltk follows no link out of its folder.
        debian: where Debian's package puts them.

    Raises:
        ConfigError: what is there cannot be read.
        DiskFull: no space for the copy (26 MB).
    """
    import nltk

    try:
        installed = nltk.data.find(_CORPUS)
    except LookupError:
        pass
    else:
        return Lexicon(installed)
    if not (debian / "data.noun").is_file():
        return None
    folder = cache / "corpora" / "wordnet"
    if not (folder / "lexnames").is_file():
        with atomic.disk_errors(folder):
            atomic.make_folder(folder)
            for path in sorted(debian.iterdir()):
                if path.name.startswith(_FILES) or path.suffix == ".exc":
                    with atomic.atomic_file(folder / path.name) as stream, path.open("rb") as source:
                        shutil.copyfileobj(source, stream)
        atomic.write_text(folder / "lexnames", _lexnames())  # last: what is there is whole
    if str(cache) not in nltk.data.path:  # nltk reads nothing outside of its paths
        nltk.data.path.append(str(cache))
    return Lexicon(nltk.data.find(_CORPUS, paths=[str(cache)]))


def _lexnames() -> str:
    names = [(name, part) for part, written in _LEXNAMES.items() for name in written.split()] + [_LAST]
    return "".join(f"{number:02d}\t{name}\t{part}\n" for number, (name, part) in enumerate(names))
