"""The forms in which models write an answer, and which option each names: docs/answers.md is the table of them.

What is read here is unambiguous or not read: nothing is guessed, and no text is compared by how alike it looks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

#: Marks of direction and width, which show nothing; not the joiners, which make one emoji or one letter of several.
_UNSEEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_BALANCED = r"((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)"
_WORDS = r"(?:final|correct|right|best|proper|single|appropriate|most\s+\w+|likely|likeliest|chosen|selected)"
_NOUNS = r"(?:answer|option|choice|response|diagnosis|letter|selection|conclusion)"
_END = r"(?![^\W\d_])"
#: What stands around an answer and says nothing: the last group is what is left.
_WRAPPERS = tuple(
    re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (
        r"(\*{1,3}|_{1,3}|`{1,3})(?=\S)((?:(?!\1).)+)(?<=\S)\1",
        rf"\\(?:boxed|fbox|text(?:bf|it|tt|rm|sf)?|math(?:rm|bf|it|sf|tt)|mbox|emph|underline|bm)\s*\{{{_BALANCED}\}}",
        r"\$\$?([^$]+)\$\$?",
        r"\\\(((?:(?!\\\)).)+)\\\)",
        r"\\\[((?:(?!\\\]).)+)\\\]",
        r"<(b|i|em|strong|u|code|span|p|mark)>((?:(?!</?\1>).)+)</\1>",
        r"\"([^\"]+)\"",
        r"'([^']+)'",
        r"[“”„«‹「『‘‚]([^“”„«»‹›「」『』‘’]+)[“”»›」』’]",
        r"\(([^()]+)\)",
        r"\[([^\[\]]+)\]",
        r"\{([^{}]+)\}",
        r"【([^【】]+)】",
        r"《([^《》]+)》",
        r"(?:#{1,6}|[-*•>–→])\s+(.+)",
        r"(.*?)[\s.,;:!?。、*`]+",
        r"(?:[\s,;:!?。、*`]|\.(?!\d))+(.*)",
        # English: "Based on the image, …", "So, I think the correct answer is option …", "I would choose …", "it is …"
        r"(?:based\s+on|given|from|according\s+to|looking\s+at|considering|among|of)\s[^.,;:]*,\s+(.+)",
        r"(?:so|thus|hence|therefore|overall|well|i\s+(?:think|believe|conclude|would\s+say))(?:\s+that)?[,:]?\s+(.+)",
        rf"(?:(?:the|my|this|our)\s+)?(?:{_WORDS}\s+)*{_NOUNS}{_END}(?:\s+(?:is|was|would\s+be|should\s+be|must\s+be)"
        rf"{_END})?\s*[:=]?\s*(.+)",
        rf"(?:i(?:['’]d|['’]ll|\s+would|\s+will)?\s+)?(?:choose|select|pick|say|go\s+with|opt\s+for){_END}\s*:?\s*(.+)",
        r"(?:it|this|that)(?:\s+is|['’]s)\s+(.+)",
        rf"(.+?)\s+(?:is|would\s+be|should\s+be)\s+(?:the\s+|my\s+)?(?:{_WORDS}\s*)+(?:{_NOUNS}|one)?"
        r"(?:[,\s]+(?:because|since)\b.*)?",
        rf"(.+?)\s+is\s+(?:the|my)\s+{_NOUNS}",
        # other languages
        r"(?:因此|所以|故|综上)?[,，]?我?(?:正确|正確|最终|最終|最佳|标准)?的?(?:答案|选项|選項|选择|選擇|应选|應選|选|選|正解|答え|回答|"
        r"정답|답)(?:应该)?(?:是|为|為|选|選|は|은|는)?(?:选项|選項)?\s*[:：]?\s*(.+)",
        r"(.+?)\s*(?:です|が正解(?:です)?|입니다|是正确的|正确|选项|選項)",
        r"(?:die\s+)?(?:richtige\s+)?(?:antwort|lösung)(?:\s+ist)?\s*:?\s+(.+)",
        r"(?:la\s+)?(?:bonne\s+)?r[ée]ponse(?:\s+correcte)?(?:\s+est)?\s*:?\s+(.+)",
        r"(?:la\s+|a\s+)?(?:respuesta|risposta|resposta)(?:\s+corr?ec?t?t[ao])?(?:\s+(?:es|è|é))?\s*:?\s+(.+)",
        r"(?:правильный\s+)?ответ\s*[:—-]?\s*(.+)",
        r"(?:الإجابة|الاجابة|الجواب)(?:\s+الصحيحة|\s+الصحيح)?(?:\s+(?:هي|هو))?\s*:?\s*(.+)",
        r"(?:התשובה|תשובה)(?:\s+הנכונה)?(?:\s+היא)?\s*:?\s*(.+)",
        r"(?:सही\s+)?उत्तर(?:\s+है)?\s*:?\s*(.+)",
    )
)
_INLINE = re.compile(r"(?<![^\W_])(\*{1,3}|_{1,3}|`)(?=\S)((?:(?!\1).)+)(?<=\S)\1(?![^\W_])", re.DOTALL)
_LONGEST = 2000  # characters of a block: a longer one is no answer
_LAYERS = 20  # wrappers around one another

_LETTER = re.compile(r"[(\[{]?\s*([A-Za-z])\s*[)\]}]?")
_LETTER_TEXT = re.compile(
    r"[(\[{]?\s*([A-Za-z])\s*(?:[)\]}]\s*[.:,]?\s*(?:[-–—]\s+)?|[.:,;=、]\s*|\s-\s+|\s*[–—]\s*|\s+is\s+|(?=\())(.+)",
    re.DOTALL,
)
_LETTER_SPACE = re.compile(r"([A-Z])\s+(.+)", re.DOTALL)
_TEXT_LETTER = re.compile(
    r"(.+?)\s*[(\[]\s*(?:(?:option|choice|answer)\s+)?([A-Za-z])\s*[)\]]", re.DOTALL | re.IGNORECASE
)
_REASON = re.compile(r"(?:because|since|due\s+to|given\s+that|as\s+(?:the|it|there)|因为|由于)\b", re.IGNORECASE)

#: Ends what a negation reaches; "anything but a mass" denies the mass.
_CLAUSE = re.compile(
    r"[!?;\n。！？；]|\.(?=\s|$)"
    r"|(?<!\ball\s)(?<!\banything\s)(?<!\beverything\s)\b(?:but|however|aber|sondern|mais|pero|sino|ma)\b|但|而是"
)
_NEGATION = re.compile(
    r"\b(?:no|not|non|nor|neither|never|none|nothing|without|w/o|cannot|absence|absent|lack(?:s|ing)?|negative|excepte?|"
    r"(?:all|anything|everything)\s+but|free\s+(?:of|from)|exclud\w+|r/o|rul(?:e|es|ed|ing)\s+out|(?:rather|other)\s+than|"
    r"instead\s+of|unlikely|improbable|doubtful|den(?:y|ies|ied)|fail(?:s|ed)?\s+to|against|hardly|wrong|incorrect|"
    r"(?:less|least)\s+likely|\w+n['’]t|(?:is|are|was|were|do|does|did|ca|wo|could|would|should)nt|"
    r"kein\w*|nicht|ohne|pas|sans|aucune?|sin|senza|não|sem|nessun\w*|ning[uú]n\w*|нет|без|не|"
    r"لا|ليس|بدون|غير|אין|ללא|לא|नहीं)\b|[无無未不没沒非否❌✗✘]|ない|なし|없"
)
_VERB = (
    r"(?:(?:is|are|was|were|(?:has|have)\s+been|(?:can|could|would|should|may|might)\s+be|seems?|appears?|looks?|remains?)"
    r"\s+(?:(?:very|highly|quite|rather|most|more|clearly|definitely|probably|also|to\s+be)\s+)*)"
)
_DENIED = (
    r"(?:absent|nowhere|ruled\s+out|excluded|eliminated|rejected|dismissed|(?:less|least)\s+likely|unlikely|improbable|"
    r"implausible|doubtful|impossible|negative|denied|incorrect|wrong|false|untrue)"
)
_NO = (
    r"(?:no|none|not?n|nein|nicht\s+\w+|нет|не|لا|לא|nie|não|无|無|没有|沒有|否|なし|없음|not\s+(?:\w+\s+)?(?:seen|present|visible|"
    r"identified|detected|found|noted|evident|shown|demonstrated|suspected|supported|likely|there|here)|[❌✗✘×])"
)
#: What denies the mention that it follows.
_AFTER = re.compile(
    rf"\s+{_VERB}(?:no|not|never|{_DENIED})\b"
    rf"|\s*[:=：(–—-]\s*(?:{_NO}|{_DENIED}|absente?|ausente|assente)\s*(?:[.,;!?)，。；]|$)"
    rf"|\s*\?\s*(?:{_NO}|never|{_DENIED})(?![^\W_])"
    rf"|\s*,?\s*(?:{_DENIED}|not\s+(?:\w+\s+)?(?:seen|present|visible|identified|detected|found|noted|evident|shown|"
    r"demonstrated|suspected|supported|likely|there|here))\b"
    r"|\s+(?:cannot|(?:can|could|do|does|did|has|have|had|will|would|may|might|must|should)\s+not)\b"
    r"|\s+(?:is|are|was|were|does|do|did|has|have|can|could|would|wo)n['’]?t\b"
    r"|\s*[❌✗✘]"
)
#: Before an amount: then it is a bound, and not that amount.
_BOUND = re.compile(
    r"(?:[<>≤≥≦≧±]|\b(?:(?:less|more|greater|fewer|smaller|larger|bigger|shorter|longer|higher|lower)\s+than|at\s+(?:least|most)|"
    r"up\s+to|under|over|below|above)|小于|大于|少于|多于|超过|不到)\s*$"
)
#: What leaves open which is meant: "viral or bacterial pneumonia" is neither.
_OPEN = re.compile(r"\b(?:or|either|versus|vs|oder|ou|o|или|أو)\b|或|还是|または|또는")
_AROUND = " .,:;!?\"'()[]"
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-"))
_APOSTROPHE = re.compile(r"(?<=[^\W_])[‘’ʼ´](?=\s?[^\W_])")  # of "Down’s", and no quotation mark
_HYPHEN = re.compile(r"(?<=[^\W_])-(?=[^\W\d_])|(?<=[^\W\d_])-(?=[^\W_])")  # not of "-1" and "3-5"
_FORMULA = re.compile(r"\$+|\\[()\[\]]")
_EDGE = frozenset(" \t\n.,;:!?()[]{}\"'“”‘’„«»‹›…/|*_`、。，；：！？（）「」『』【】")


class Contradiction(Exception):
    """An answer names two different options, or one that cannot be told from another."""


def read(answer: str, options: Sequence[str], *, letters_first: bool) -> int | None:
    """The option that an answer names, or None.

    Args:
        answer: what stands in the <answer> block.
        options: what was offered.
        letters_first: whether the policy was asked for a letter; else for the text of an option, and a letter counts
            only where it is no text.
    """
    if not answer.strip() or len(answer) > _LONGEST:
        return None
    try:
        return _read(answer, options, letters_first)
    except Contradiction:
        return None


def _read(answer: str, options: Sequence[str], letters_first: bool) -> int | None:
    layers = list(_peeled(answer))
    for find in (_letter, same) if letters_first else (same, _letter):
        found = next((index for layer in layers if (index := find(layer, options)) is not None), None)
        if found is None:
            continue
        if letters_first and find is _letter and _letter(layers[1].rstrip(" .:,;"), options) is None:
            _agreed(found, same(layers[1], options))  # an option may be called so, as "Option B"
        return found
    for layer in reversed(layers):
        found = _letter_and_text(layer, options)
        if found is not None:
            return found
    first, *others = [line for line in answer.splitlines() if line.strip()]
    if others:  # an answer on a line of its own, and then reasons
        found = _read(first, options, letters_first)
        follow = named("\n".join(others), options).union(*(_letters(line, options) for line in others))
        return found if found is not None and follow <= {found} else None
    text, spans = _mentions(layers[1], options)
    mentioned = _stated(text, spans)
    hedged = any(not _inside(match.start(), spans) for match in _OPEN.finditer(text))
    return mentioned.pop() if len(mentioned) == 1 and not hedged else None


def same(text: str, options: Sequence[str]) -> int | None:
    """The option that a text is, compared ever less strictly; None: it is none.

    Raises:
        Contradiction: it is several equally well.
    """
    for form in (str, str.strip, clean, _folded, normalise, typed):
        wanted = form(text)
        found = [index for index, option in enumerate(options) if form(option) == wanted] if wanted.strip() else []
        if len(found) > 1:
            raise Contradiction
        if found:
            return found[0]
    return None


def normalise(text: str) -> str:
    """Lower case, one space, no surrounding punctuation; NFKC."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = text.lstrip(_AROUND)
    before = text[: len(text) - len(bare)]
    decimal = before.endswith(".") and not before.endswith("..") and bare[:1].isdecimal()  # ".5" is not 5
    return ("." if decimal else "") + bare.rstrip(_AROUND)


def clean(text: str) -> str:
    """One space, no marks that show nothing; NFKC."""
    return " ".join(unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).split())


def named(text: str, options: Sequence[str]) -> set[int]:
    """The options that a text mentions, less those inside a longer one that it mentions and those it denies."""
    return _stated(*_mentions(text, options))


Span = tuple[int, int, int]
"""Where a mention begins and ends, and of which option it is."""


def _mentions(text: str, options: Sequence[str]) -> tuple[str, list[Span]]:
    """The text as it is looked through, and the mentions in it that are not part of a longer one."""
    text = _searched(text)
    spans = [(start, end, index) for index, option in enumerate(options) for start, end in _places(text, option)]
    return text, [
        (start, end, index)
        for start, end, index in spans
        if not any(s <= start and end <= e and (s, e) != (start, end) for s, e, _ in spans)
    ]


def _stated(text: str, spans: Sequence[Span]) -> set[int]:
    """Of mentions the options that are not denied, once or more."""
    ends = [match.end() for match in _CLAUSE.finditer(text)]
    cues = [match.start() for match in _NEGATION.finditer(text) if not _inside(match.start(), spans)]
    said: dict[bool, set[int]] = {True: set(), False: set()}
    for start, end, index in spans:
        clause = max((place for place in ends if place <= start), default=0)
        denied = any(clause <= cue < start for cue in cues) or _AFTER.match(text, end) is not None
        bound = text[start].isdecimal() and _BOUND.search(text[:start]) is not None
        said[denied or bound].add(index)
    return said[False] - said[True]


def _inside(place: int, spans: Sequence[Span]) -> bool:
    return any(start <= place < end for start, end, _ in spans)


def _peeled(answer: str) -> Iterator[str]:
    """The answer as it is, cleaned, and then with one wrapper after another taken off."""
    yield answer
    text = clean(answer)
    yield text
    for _ in range(_LAYERS):
        plain = _INLINE.sub(r"\2", text)
        if plain == text:
            matches = (wrapper.fullmatch(text) for wrapper in _WRAPPERS)
            plain = next((found[found.re.groups].strip() for found in matches if found), text)
        if plain == text or not plain:
            return
        yield (text := plain)


def _letter(text: str, options: Sequence[str]) -> int | None:
    match = _LETTER.fullmatch(text)
    return _index(match[1], options) if match else None


def _letters(line: str, options: Sequence[str]) -> set[int]:
    """The option whose letter is all that a line says, if it is one."""
    return {index for layer in _peeled(line) if (index := _letter(layer, options)) is not None}


def _index(letter: str, options: Sequence[str]) -> int | None:
    index = LETTERS.index(letter.upper())
    return index if index < len(options) else None


def _letter_and_text(text: str, options: Sequence[str]) -> int | None:
    """The option of a letter with the text of that option: "B. Viral pneumonia", "Viral pneumonia (B)".

    Raises:
        Contradiction: the text is another option's.
    """
    if any(start == 0 for option in options for start, _ in _places(_searched(text), option)):
        return _text_and_letter(text, options)  # "E. coli": the letter is part of an option
    if match := _LETTER_TEXT.fullmatch(text):
        letter, rest = _index(match[1], options), match[2].strip()
        if letter is None:
            return None
        if (said := _said(rest, options)) is not None:
            return _agreed(letter, said)
        if _REASON.match(rest) and not named(rest, options):
            return letter
        # a part of that option's own text, as "B. pneumonia" of "Viral pneumonia"
        if next(_places(_searched(options[letter]), rest), None):
            return letter
        raise Contradiction
    if match := _LETTER_SPACE.fullmatch(text):
        letter, said = _index(match[1], options), same(match[2], options)
        if letter is not None and said is not None and (letter == said or match[1] != "A"):  # "A mass" may be a mass
            return _agreed(letter, said)
    return _text_and_letter(text, options)


def _text_and_letter(text: str, options: Sequence[str]) -> int | None:
    if match := _TEXT_LETTER.fullmatch(text):
        letter, said = _index(match[2], options), _said(match[1], options)
        if letter is not None and said is not None:
            return _agreed(letter, said)
    return None


def _said(text: str, options: Sequence[str]) -> int | None:
    for layer in _peeled(text):
        if (found := same(layer, options)) is not None:
            return found
    if (letter := _letter(clean(text), options)) is not None:
        return letter
    mentioned = named(text, options)
    if len(mentioned) > 1:
        raise Contradiction
    return mentioned.pop() if mentioned else None


def _agreed(letter: int, said: int | None) -> int:
    """The letter's option, if the text is not another one's."""
    if said not in (None, letter):
        raise Contradiction
    return letter


def _folded(text: str) -> str:
    return clean(text).casefold()


def typed(text: str) -> str:
    """As `normalise`, without what print and LaTeX make of it; a hyphen is a space."""
    return normalise(_HYPHEN.sub(" ", _FORMULA.sub("", _keyed(clean(text)))))


def _keyed(text: str) -> str:
    """With the signs of a keyboard for those that print has several of; of the same length."""
    return _APOSTROPHE.sub("'", text.translate(_DASHES))


def _searched(text: str) -> str:
    """What `_places` looks through."""
    return unicodedata.normalize("NFKC", _keyed(_UNSEEN.sub("", text))).casefold()


def _places(text: str, option: str) -> Iterator[tuple[int, int]]:
    """Where a text (of `_searched`) has an option as words of its own."""
    wanted = _HYPHEN.sub(" ", normalise(_keyed(option)))
    if not wanted:
        return
    words = re.compile(r"(?:\s+|(?<=[^\W\d_])-|-(?=[^\W\d_]))".join(map(re.escape, wanted.split())))
    for match in words.finditer(text):
        if _edge(text, match.start(), -1) and _edge(text, match.end(), 1):
            yield match.span()


def _edge(text: str, place: int, step: int) -> bool:
    """Whether words end here: not within "non-small", "3.5", "Down's", or two characters of a script without spaces."""
    near = place - 1 if step < 0 else place
    if not 0 <= near < len(text):
        return True
    if text[near] not in _EDGE and not text[near].isspace():
        return False
    far = near + step
    beyond = text[far] if 0 <= far < len(text) else ""
    decimal = step < 0 and text[near] == "." and beyond != "." and text[place].isdecimal()  # ".5" is not 5
    return not (decimal or (text[near] in ".,'’" and beyond.isalnum()))
