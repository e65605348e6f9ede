"""Write a SYNTHETIC corpus of Korean SNS reviews of IT devices.

    python data/sample/generate.py [--output DIR]

The files have the layout of the AI Hub data set "속성기반 감정분석 데이터" (SNS, IT기기): 5,004 records, of which 4,408
have a usable GeneralPolarity ("-1" 부정, "0" 중립, "1" 긍정). The texts are composed from lexicon.txt; none is copied
from the real data, and products and shops are invented. About 5% of the usable labels are deliberately wrong; the
Aspects of such a record still agree with its text.

The script needs the standard library only and writes the same bytes on every run.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

SEED = 20240417
TOTAL, VALID, PER_FILE = 5004, 4408, 100
CLASS_COUNTS = {-1: 1499, 0: 1146, 1: 1763}  # Valid rows by class, before the label noise.
NOISE = 0.05  # Fraction of the valid rows whose label is wrong.
REPOSTS = 26  # Number of valid rows that repeat the text of another valid row.
BAD_POLARITY = {"missing": 280, "null": 150, "empty": 96, "2": 28, "9": 14, "-2": 12, "N/A": 9, "1.5": 7}
SKEW = 2  # How much more often the first words of a list are drawn; with 1 all are equally frequent.
FOLDER = "SNS/04. IT기기"
NAME = "4-1.IT기기({}).json"

PORTABLE = {"스마트폰", "노트북", "이어폰", "스마트워치", "태블릿"}  # Only these fit remarks about travel.
COMMON = ["배송", "AS", "가격", "디자인", "내구성"]  # Aspects that every device has.
NEGATIONS = ["지 않"] * 3 + ["지는 않", "진 않"] * 2 + ["지도 않", "지가 않", "질 않"]
WHOLE_LINES = ("ask",)  # Sections whose items are whole lines.
COSTLY = PORTABLE - {"이어폰"} | {"모니터", "로봇청소기", "빔프로젝터"}
SUFFIXES = ["", " 프로", " 2", " 3세대", " 라이트", " 맥스", " SE", " 미니", " 플러스"]
EMOJI = {1: "😍👍🥰😆✨💕🎉🙌😎", 0: "🤔😅📦🙂😐📱💻", -1: "😡😭🤬😞💢👎😩🙄"}


# ---------------------------------------------------------------------------------------------------------------------
# Korean morphology, as far as the lexicons need it
# ---------------------------------------------------------------------------------------------------------------------
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
CODAS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"


def split_syllable(char: str) -> tuple[int, str, str]:
    code = ord(char) - 0xAC00
    return code // 588, VOWELS[code % 588 // 28], CODAS[code % 28]


def syllable(lead: int, vowel: str, coda: str = " ") -> str:
    return chr(0xAC00 + lead * 588 + VOWELS.index(vowel) * 28 + CODAS.index(coda))


def coda(word: str) -> str:
    """Return the final consonant of a word, or " "; digits and Latin letters count as they are pronounced."""
    last = word[-1]
    if "가" <= last <= "힣":
        return split_syllable(last)[2]
    return {"0": "ㅇ", "1": "ㄹ", "3": "ㅁ", "6": "ㄱ", "7": "ㄹ", "8": "ㄹ"}.get(last, " ")


def josa(word: str, pair: str) -> str:
    """Append the particle that fits the word; `pair` has both forms, such as "은/는", "이/가" or "으로/로"."""
    closed, opened = pair.split("/")
    final = coda(word)
    return word + (opened if final == " " or (closed == "으로" and final == "ㄹ") else closed)


def add_coda(word: str, consonant: str) -> str:
    lead, vowel, _ = split_syllable(word[-1])
    return word[:-1] + syllable(lead, vowel, consonant)


EXISTENTIAL = ("있", "없", "재밌")
IRREGULAR = {"그렇": ("그래", "그러"), "뿌옇": ("뿌예", "뿌여"), "낫": ("나아", "나으"), "누렇": ("누레", "누러")}
MERGED = {"ㅗ": "ㅘ", "ㅜ": "ㅝ", "ㅣ": "ㅕ", "ㅚ": "ㅙ"}


class Predicate(NamedTuple):
    stem: str  # Stem of the predicate; the noun before a copula.
    kind: str  # "a": adjective, "v": verb, "n": noun with the copula, "p": a stem that ends in 았/었/겠/있/없.

    def infinitive(self) -> str:
        """Return the -아/어 form."""
        stem, last = self.stem, self.stem[-1]
        if self.kind == "n":
            return josa(stem, "이어/여")
        if stem.endswith("아니"):
            return stem + "어"
        for key, (form, _) in IRREGULAR.items():
            if stem.endswith(key):
                return stem[: -len(key)] + form
        lead, vowel, final = split_syllable(last)
        if last == "하":
            return stem[:-1] + "해"
        if final == "ㅂ" and self.kind == "a" and last != "좁":
            return stem[:-1] + syllable(lead, vowel) + "워"
        harmony = "아" if vowel in "ㅏㅗㅑ" and final != "ㅆ" else "어"
        if final != " ":
            return stem + harmony
        if last == "르":
            before = stem[-2]
            return stem[:-2] + add_coda(before, "ㄹ") + ("라" if split_syllable(before)[1] in "ㅏㅗ" else "러")
        if vowel == "ㅡ":
            bright = len(stem) > 1 and stem[-2] != " " and split_syllable(stem[-2])[1] in "ㅏㅗ"
            return stem[:-1] + syllable(lead, "ㅏ" if bright else "ㅓ")
        if vowel in MERGED:
            return stem[:-1] + syllable(lead, MERGED[vowel])
        return stem if vowel in "ㅏㅓㅐㅔㅕ" else stem + harmony

    def open_stem(self) -> str:
        """Return the stem to which -ㄴ, -ㄹ, -ㅁ and -ㅂ are added: with 으 if needed, and without a final ㄹ."""
        if self.kind == "n":
            return self.stem + "이"
        for key, (_, form) in IRREGULAR.items():
            if self.stem.endswith(key):
                return self.stem[: -len(key)] + form
        lead, vowel, final = split_syllable(self.stem[-1])
        if final == "ㅂ" and self.kind == "a" and self.stem[-1] != "좁":
            return self.stem[:-1] + syllable(lead, vowel) + "우"
        if final == "ㄹ":
            return self.stem[:-1] + syllable(lead, vowel)
        return self.stem if final == " " else self.stem + "으"

    def plain(self) -> str:
        """Return the stem before an ending that begins with a consonant, such as -지만, -고 or -네."""
        return josa(self.stem, "이/") if self.kind == "n" else self.stem

    def adnominal(self) -> str:
        if self.kind == "v" or self.stem.endswith(EXISTENTIAL) or self.kind == "p":
            return (self.open_stem() if coda(self.stem) == "ㄹ" else self.stem) + "는"
        return add_coda(self.open_stem(), "ㄴ")

    def past(self) -> Predicate:
        if self.kind == "p" and not self.stem.endswith(EXISTENTIAL):
            return self
        return Predicate(add_coda(self.infinitive(), "ㅆ"), "p")

    def is_timeless(self) -> bool:
        """Return whether adnominal and modal forms are natural; they are not for stems in 았/었/겠."""
        return self.kind != "p" or self.stem.endswith(EXISTENTIAL)

    def form(self, ending: str) -> str:
        stem, kind = self.stem, self.kind
        if ending == "yo":
            if kind == "n":
                return josa(stem, "이에요/예요")
            return stem + "에요" if stem.endswith("아니") else self.infinitive() + "요"
        if ending == "casual":
            return josa(stem, "이야/야") if kind == "n" else stem + "야" if stem.endswith("아니") else self.infinitive()
        if ending == "noun":  # 음슴체
            merged = coda(stem) == "ㄹ" and kind != "n"
            return add_coda(stem, "ㄻ") if merged else add_coda(self.open_stem(), "ㅁ")
        if ending == "formal":
            open_end = kind == "n" or coda(stem) in " ㄹ"
            return add_coda(self.open_stem(), "ㅂ") + "니다" if open_end else stem + "습니다"
        if ending == "da":
            if kind != "v":
                return self.plain() + "다"
            return add_coda(self.open_stem(), "ㄴ") + "다" if coda(stem) in " ㄹ" else stem + "는다"
        if ending == "ne":
            return (self.open_stem() if coda(stem) == "ㄹ" and kind != "n" else self.plain()) + "네"
        if ending == "quote":
            if stem.endswith("아니"):
                return stem + "라고"
            return josa(stem, "이라/라") + "고" if kind == "n" else self.form("da") + "고"
        if ending == "because":
            return josa(stem, "이라서/라서") if kind == "n" else self.infinitive() + "서"
        if ending == "though":
            return self.adnominal() + "데"
        if ending == "but_literary":
            return self.open_stem() + "나"
        if ending == "future":
            return add_coda(self.open_stem(), "ㄹ")
        if ending == "ask":
            if kind in "vp":
                return (self.open_stem() if coda(stem) == "ㄹ" else stem) + "나"
            return self.adnominal() + "가"
        return self.plain() + ending  # -지만, -고, -더라, -긴 한데, -지 ...


# ---------------------------------------------------------------------------------------------------------------------
# Lexicon access
# ---------------------------------------------------------------------------------------------------------------------
class Entry(NamedTuple):
    predicate: Predicate
    negatable: bool
    standalone: bool


class Aspect(NamedTuple):
    topics: list[str]
    entries: dict[int, list[Entry]]


def items(text: str) -> list[str]:
    return [item for item in re.split(r",\s+", text.strip().rstrip(",")) if item]


def parse_entry(text: str) -> Entry:
    negatable, standalone = "!" in text, text.startswith("^")
    stem = text.strip("^!*=@")
    kind = "n" if "=" in text else "v" if "*" in text else "p" if coda(stem) in "ㅆㅄ" else "a"
    return Entry(Predicate(stem, kind), negatable, standalone)


def load_lexicon() -> tuple[dict[str, list[str]], dict[str, Aspect], dict[str, tuple[list[str], list[str]]]]:
    """Read the word lists by section, the aspects, and the aspects and model names of each device category."""
    source = (Path(__file__).resolve().parent / "lexicon.txt").read_text(encoding="utf-8")
    words: dict[str, list[str]] = {}
    aspects: dict[str, Aspect] = {}
    categories: dict[str, tuple[list[str], list[str]]] = {}
    for line in source.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            words[section] = []
        elif section == "aspects" and line.startswith("@"):
            name, topics = line[1:].split(": ")
            aspects[name] = Aspect(items(topics), {1: [], -1: []})
        elif section == "aspects":
            aspects[name].entries[1 if line[0] == "+" else -1].extend(map(parse_entry, items(line[1:])))
        elif section == "categories":
            category, own, models = re.split(r": | \| ", line)
            categories[category] = (items(own), items(models))
        else:
            words[section] += [line] if section in WHOLE_LINES else items(line)
    return words, aspects, categories


WORDS, ASPECTS, CATEGORIES = load_lexicon()
ANY_ASPECT = ASPECTS.pop("공통")  # Predicates that fit every aspect.
SECTIONS = {1: "positive", -1: "negative", 0: "neutral"}
VERDICTS = {polarity: list(map(parse_entry, WORDS[name])) for polarity, name in SECTIONS.items()}
IRONIES = [(text.split("@")[1], parse_entry(text.split("@")[0]).predicate) for text in WORDS["irony"]]
TYPOS = [tuple(text.split(">")) for text in WORDS["typos"]]
ENDINGS = {
    "yo": (["yo", "ne+요", "더라고요", "seem+요", "거든요"], [60, 22, 10, 8, 1]),
    "formal": (["formal", "ne+요", "seem+formal"], [75, 15, 10]),
    "casual": (["casual", "ne", "da", "더라", "guess"], [40, 20, 22, 10, 8]),
    "noun": (["noun", "guess", "ne", "더라"], [75, 12, 7, 6]),
}


def finish(predicate: Predicate, ending: str) -> str:
    if ending == "ne+요":
        return predicate.form("ne") + "요"
    if ending.startswith("seem"):
        return predicate.adnominal() + " 것 같" + ("아요" if ending.endswith("요") else "습니다")
    if ending == "guess":
        return predicate.adnominal() + " 듯"
    return predicate.form(ending)


# ---------------------------------------------------------------------------------------------------------------------
# Composition
# ---------------------------------------------------------------------------------------------------------------------
class Segment(NamedTuple):
    text: str
    aspect: str | None = None
    polarity: int = 0


@dataclass
class Writer:
    """Composer of one review, which remembers the register, the device and the aspects used so far."""

    rng: random.Random
    category: str
    brand: str
    product: str
    register: str
    used: list[str] = field(default_factory=list)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    def common(self, options: Sequence[T]) -> T:
        """Pick an option, the first ones far more often than the last, as words have a long tail."""
        return options[int(len(options) * self.rng.random() ** SKEW)]

    def word(self, section: str) -> str:
        return self.pick(WORDS[section])

    # -- words and predicates
    def fill(self, text: str) -> str:
        values = {
            "n": str(self.rng.randint(1, 7)),
            "shop": self.word("shops"),
            "who": self.word("who"),
            "color": self.word("colors"),
            "cat": self.category,
            "brand": self.brand,
            "gb": self.pick(["64", "128", "256", "512"]),
            "price": self.price(),
            "tagcat": self.category.replace(" ", ""),
            "tagbrand": self.brand,
        }
        text = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], text)
        return re.sub(r"(\S)\[(이?)(으?)(\S+?)\]", lambda m: josa(m[1], f"{m[2]}{m[3]}{m[4]}/{m[4]}"), text)

    def price(self) -> str:
        won = self.rng.randint(190, 1490) if self.category in COSTLY else self.rng.randint(29, 290)
        return self.pick([f"{won:,},000원", f"{won // 10}만원", f"{won // 10}만 {won % 9 + 1}천원"])

    def negated(self, entry: Entry, polarity: int) -> Predicate:
        """Negate an entry; `polarity` is the polarity of the result."""
        predicate = entry.predicate
        stem, kind = predicate.stem, predicate.kind
        after = "v" if kind == "v" else "a"
        options = [Predicate(f"{stem}{neg}", after) for neg in NEGATIONS]
        if " " not in stem and (len(stem) < 3 or not stem.endswith(("하", "럽"))):
            options += [Predicate("안 " + stem, kind)] * 4
        if polarity < 0:
            options += [
                Predicate(predicate.adnominal() + tail, "p") for tail in (" 줄 모르겠", "지 모르겠", "지 전혀 모르겠")
            ]
            options.append(Predicate(predicate.form("quote") + " 못 하겠", "p"))
            options.append(Predicate(predicate.form("quote") + " 할 수가 없", "p"))
        else:
            options.append(Predicate(predicate.adnominal() + " 줄 모르겠", "p"))
            options.append(Predicate(predicate.adnominal() + " 느낌이 없", "p"))
            options += [Predicate(predicate.form("future") + " 일이 없", "p")] * (2 if kind == "v" else 0)
        return self.pick(options)

    def aspect(self) -> str:
        own = CATEGORIES[self.category][0]
        pool = [name for name in own * 2 + COMMON if name not in self.used]
        self.used.append(self.pick(pool))
        return self.used[-1]

    def predicate(self, polarity: int, aspect: str, negate: float, timeless: bool) -> tuple[Predicate, bool]:
        lexicon = (ANY_ASPECT if self.chance(0.6) else ASPECTS[aspect]).entries
        if self.chance(negate):
            entries = [entry for entry in lexicon[-polarity] if entry.negatable]
            for _ in range(8):
                entry = self.common(entries)
                result = self.negated(entry, polarity)
                if result.is_timeless() or not timeless:
                    return result, entry.standalone
        entries = [entry for entry in lexicon[polarity] if entry.predicate.is_timeless() or not timeless]
        entry = self.common(entries)
        return entry.predicate, entry.standalone

    # -- clauses
    def clause(
        self,
        polarity: int,
        end: Callable[[Predicate], str],
        aspect: str | None = None,
        negate: float = 0.15,
        timeless: bool = False,
        particle: str | None = None,
        named: bool = True,
    ) -> Segment:
        aspect = aspect or self.aspect()
        predicate, standalone = self.predicate(polarity, aspect, negate, timeless)
        words = []
        if named and not standalone:
            topic = self.pick(ASPECTS[aspect].topics)
            nested = re.search(r"[이가] ", predicate.stem)  # With a subject of its own, 은/는 reads better.
            particle = particle or self.rng.choices(["이/가", "은/는", "도", ""], [0 if nested else 45, 35, 5, 20])[0]
            words.append(josa(topic, particle) if "/" in particle else topic + particle)
        if not timeless and self.chance(0.3):  # Quoted and supposed clauses take no adverb of the writer.
            words.append(self.word("degree" if predicate.kind == "a" and " " not in predicate.stem else "stance"))
        return Segment(" ".join([*words, end(predicate)]), aspect, polarity)

    def ending(self, timeless: bool = True) -> Callable[[Predicate], str]:
        def end(predicate: Predicate) -> str:
            register = self.register
            if self.chance(0.12):
                register = {"yo": "formal", "formal": "yo", "casual": "noun", "noun": "casual"}[register]
            names, weights = ENDINGS[register]
            while True:
                name = self.rng.choices(names, weights)[0]
                modal = name.startswith(("seem", "guess"))
                if (modal and not predicate.is_timeless()) or (name.startswith("더라") and not timeless):
                    continue
                if predicate.stem.endswith("겠") and name.startswith(("더라", "거든")):
                    continue
                return finish(predicate, name) + self.mark()

        return end

    def mark(self) -> str:
        return self.rng.choices(
            [".", "", "!", "..", "...", "~", " ㅋㅋ", " ㅠㅠ", "!!"], [50, 14, 10, 6, 3, 3, 7, 5, 2]
        )[0]

    def but(self, predicate: Predicate) -> str:
        forms = ["지만", "though", "though", "긴 한데", "기는 하지만"]
        if self.register == "formal":
            forms.append("but_literary")
        name = self.pick(forms if predicate.kind != "p" else forms[:3])
        return predicate.form(name) + ("," if self.chance(0.1) else "")

    def tell(self, text: str, link: float = 0.0) -> Segment:
        """Make a neutral remark from a stem; with probability `link` it is a 는데 clause."""
        predicate = parse_entry(self.fill(text)).predicate
        plain = {"casual": self.pick(["casual", "da"])}.get(self.register, self.register)
        return Segment(
            predicate.form("though") if self.chance(link) else predicate.form(plain) + self.mark().replace(" ㅠㅠ", ".")
        )

    def remark(self, section: str, link: float = 0.0) -> Segment:
        return self.tell(self.pick([t for t in WORDS[section] if "@" not in t or self.category in PORTABLE]), link)

    def verdict(self, polarity: int, lead: str | None = None) -> Segment:
        words = [self.word(lead)] if lead else []
        if self.chance(0.25):
            words.append(self.pick([josa(self.product, "은/는"), "이 제품", "이거", "이건", f"이 {self.category}"]))
        entry = self.common(VERDICTS[polarity])
        predicate = entry.predicate
        if polarity and self.chance(0.15):
            entry = self.common([entry for entry in VERDICTS[-polarity] if entry.negatable])
            # A weak form such as 실망스럽지는 않다 would not be a clear verdict.
            words += self.pick([["전혀"], ["하나도"], []])
            predicate = Predicate(entry.predicate.stem + self.pick(["지 않", "지가 않", "질 않"]), entry.predicate.kind)
        return Segment(" ".join([*words, self.ending(timeless=False)(predicate)]), "전체", polarity)

    # -- plans, each of which returns the segments of one opinion
    def praise_or_complaint(self, polarity: int) -> list[Segment]:
        """State one polarity in one to three clauses."""
        count = self.rng.choices([1, 2, 3], [45, 40, 15])[0]
        segments: list[Segment] = []
        for rest in range(count - 1, -1, -1):
            if rest and self.chance(0.55):
                link = self.pick(["고", "고", "고요,"])
                segments.append(self.clause(polarity, partial(Predicate.form, ending=link)))
            elif not rest and self.chance(0.15):
                segments.append(self.clause(polarity, lambda p: p.form("because")))
                return [*segments, self.verdict(polarity)]
            else:
                segments.append(self.clause(polarity, self.ending()))
        if self.chance(0.3):
            segments.append(self.verdict(polarity, "lead" if self.chance(0.4) else None))
        return segments

    def plain_verdict(self, polarity: int) -> list[Segment]:
        segments = [self.verdict(polarity, "lead" if self.chance(0.4) else None)]
        if self.chance(0.4):
            segments.append(self.verdict(polarity))
        return segments

    def conceded(self, polarity: int) -> list[Segment]:
        """Concede the other polarity first, and then give the verdict that decides."""
        segments = [self.clause(-polarity, self.but if self.chance(0.7) else self.ending())]
        if self.chance(0.25):
            segments.insert(0, self.clause(-polarity, lambda p: p.form("고")))
        if self.chance(0.2):
            segments.append(self.clause(polarity, self.ending()))
        return [*segments, self.verdict(polarity, "turn")]

    def conceded_after(self, polarity: int) -> list[Segment]:
        """Give the verdict first, and then one small point of the other polarity."""
        segments = [self.verdict(polarity, "lead" if self.chance(0.3) else None)]
        if self.chance(0.3):
            segments.insert(0, self.clause(polarity, self.ending()))
        style = self.rng.randrange(3)
        if style == 0:
            segments.append(
                self.clause(-polarity, lambda p: p.form("지만") + ("요." if self.register == "yo" else "."))
            )
            return segments
        tails = {"yo": ["점 정도예요.", "거 하나네요."], "formal": ["점 정도입니다.", "것 하나입니다."]}
        tail = tails.get(self.register, ["거 하나.", "점 정도.", "거 딱 하나뿐."])
        point = self.clause(-polarity, lambda p: f"{p.adnominal()} {self.pick(tail)}", timeless=True, particle="이/가")
        return [*segments, Segment(self.word("small flaw" if polarity > 0 else "small merit")), point]

    def only(self, polarity: int) -> list[Segment]:
        """Set one aspect against all the others, as in 디자인만 예쁘고 나머진 꽝."""
        aspect = self.aspect()
        rest = self.pick(["나머지는", "나머진 다", "그 외엔 전부", "다른 건 전부", "그거 빼면 전부"])
        lexicon = [entry.predicate for entry in ASPECTS[aspect].entries[-polarity] if not entry.standalone]
        predicate = self.pick([p for p in lexicon if p.kind == "a" or p.kind == "n"] or lexicon)
        words = f"{self.pick(ASPECTS[aspect].topics)}만 {predicate.form(self.pick(['고', '지', '지만']))}"
        one = Segment(words, aspect, -polarity)
        entry = self.pick([entry for entry in VERDICTS[polarity] if len(entry.predicate.stem) < 6])
        return [one, Segment(f"{rest} {self.ending()(entry.predicate)}", "전체", polarity)]

    def reversed_expectation(self, polarity: int) -> list[Segment]:
        """Contradict an expectation of the other polarity; the first clause does not count."""
        aspect = self.aspect()
        fear = [
            lambda p: p.form("future") + "까 봐 걱정했는데",
            lambda p: p.form("quote") + " 해서 망설였는데",
            lambda p: p.form("quote").removesuffix("고") + "는 후기 보고 걱정했는데",
            lambda p: p.form("future") + " 줄 알았는데",
        ]
        hope = [
            lambda p: p.form("quote").removesuffix("고") + "길래 믿고 샀는데",
            lambda p: p.form("quote").removesuffix("고") + "더니",
            lambda p: p.form("quote") + " 광고하던데",
            lambda p: p.form("quote").removesuffix("고") + "는 후기만 믿고 샀는데",
            lambda p: p.form("future") + " 줄 알았는데",
        ]
        hearsay = self.chance(0.4)
        if hearsay:
            entry = self.pick([entry for entry in VERDICTS[-polarity] if entry.predicate.is_timeless()])
            quote = entry.predicate.form("quote")
            who = self.fill(self.word("promise" if polarity < 0 and self.chance(0.3) else "hearsay"))
            first = Segment(
                f"{who} {quote} {self.pick(['하던데', '난리던데', '하길래 고민했는데', '했는데', '하지만'])}"
            )
        else:
            first = self.clause(-polarity, self.pick(fear if polarity > 0 else hope), aspect, 0.15, timeless=True)
            first = Segment(first.text)
        if self.chance(0.3):
            answer = parse_entry(self.word("relief" if polarity > 0 else "letdown")).predicate
            second = Segment(self.ending()(answer), "전체" if hearsay else aspect, polarity)
        elif self.chance(0.35):
            second = self.verdict(polarity, "actually")
        else:
            second = self.clause(polarity, self.ending(), aspect, named=self.chance(0.3))
            second = second._replace(text=self.pick(["", "막상 겪어 보니 ", "실제로는 ", "웬걸 "]) + second.text)
        return [first, second]

    def compared(self, polarity: int) -> list[Segment]:
        """Contrast the product with a predecessor of the other polarity."""
        aspect = self.aspect()
        old = self.fill(self.word("predecessor"))
        first = self.clause(
            -polarity, lambda p: p.past().form(self.pick(["though", "지만", "though"])), aspect, 0.2, timeless=True
        )
        new = self.pick(["이건", "이번 건", "얘는", "새로 산 건", josa(self.product, "은/는"), "바꾸고 나서는"])
        second = self.clause(polarity, self.ending(), aspect, 0.3, named=False)
        return [Segment(f"{old} {first.text}"), second._replace(text=f"{new} {second.text}")]

    def negations(self, polarity: int) -> list[Segment]:
        segments = [self.clause(polarity, lambda p: p.form("고"), negate=0.9)] if self.chance(0.4) else []
        segments.append(self.clause(polarity, self.ending(), negate=0.95))
        if self.chance(0.3):
            segments.append(self.verdict(polarity))
        return segments

    def ironic(self, polarity: int) -> list[Segment]:
        own = CATEGORIES[self.category][0] + COMMON
        aspect, praise = self.pick([pair for pair in IRONIES if pair[0] in own])
        self.used.append(aspect)
        first = praise.form(self.pick(["ne", "because"])) if praise.kind != "n" else self.ending()(praise)
        laugh = self.pick(["ㅋㅋ", "ㅋㅋㅋ", "^^", "ㅎㅎ", "하하"])
        return [
            Segment(f"{first} {laugh}", aspect, polarity),
            Segment(self.ending()(parse_entry(self.word("irony tail")).predicate)),
        ]

    def mixed(self, _: int) -> list[Segment]:
        """State a good and a bad aspect, in either order and without an overall verdict."""
        first = self.pick([1, -1])
        style = self.rng.randrange(6)
        if style <= 2:
            segments = [self.clause(first, self.but), self.clause(-first, self.ending())]
        elif style == 3:
            turn = self.pick(["근데", "다만", "대신", "반면에", "하지만", "그런데", "한편"])
            segments = [self.clause(first, self.ending()), Segment(turn), self.clause(-first, self.ending())]
        elif style == 4:
            labels = {
                1: self.pick(["장점은", "좋은 점은", "맘에 드는 건"]),
                -1: self.pick(["단점은", "아쉬운 점은", "걸리는 건"]),
            }
            points = []
            for polarity in (first, -first):
                noun = self.pick(["거", "점", "것"])
                points.append(Segment(labels[polarity]))
                end = f" {noun}" + self.pick([",", ".", ""])
                point = self.clause(polarity, Predicate.adnominal, timeless=True, particle="이/가")
                points.append(Segment(point.text + end, point.aspect, point.polarity))
            segments = points
        else:
            segments = [
                self.clause(first, lambda p: p.form("고")),
                self.clause(first, self.but),
                self.clause(-first, lambda p: p.form("고")),
                self.clause(-first, self.ending()),
            ][self.rng.randrange(2) :]
        if self.chance(0.22):
            segments.append(self.verdict(0, "lead" if self.chance(0.5) else None))
        return segments

    def lukewarm(self, _: int) -> list[Segment]:
        segments = [self.verdict(0, "lead" if self.chance(0.5) else None)]
        roll = self.rng.random()
        if roll < 0.25:
            segments.append(self.verdict(0))
        elif roll < 0.6:
            entry = self.pick([e for e in VERDICTS[self.pick([1, -1])] if e.predicate.is_timeless()])
            tail = {"yo": "까진 아니에요.", "formal": "까지는 아닙니다.", "casual": "까진 아님.", "noun": "까진 아님."}
            quote = entry.predicate.form("quote") + self.pick([" 할 정도", " 말할 정도", " 할 것"])
            segments.insert(self.rng.randrange(2), Segment(quote + tail[self.register], "전체", 0))
        return segments

    def factual(self, _: int) -> list[Segment]:
        sections = ["bought", *self.rng.choices(["unopened", "fact"], k=self.rng.choices([1, 2, 3], [30, 50, 20])[0])]
        facts = [self.remark(section) for section in sections]
        return list({fact.text.rstrip(".!~ "): fact for fact in facts}.values())

    def question(self, _: int) -> list[Segment]:
        """Use sentiment words in a question or in hearsay, where they are not an opinion of the writer."""
        polarity, aspect = self.pick([1, -1]), self.aspect()
        polite = self.register in ("yo", "formal")
        ask = self.rng.sample([text for text in WORDS["ask"] if polite == ("요" in text[-3:])], self.rng.randint(1, 2))
        if self.chance(0.5):
            end = (lambda p: p.form("ask") + "요?") if polite else lambda p: p.form("noun") + "?"
            first = self.clause(polarity, end, aspect, 0.0, timeless=True)
            segments = [Segment(f"{josa(self.product, '은/는')} {first.text}", aspect, 0)]
        else:
            said: list[str] = []
            for side in (polarity, -polarity):
                said.append(self.clause(side, lambda p: p.form("quote"), aspect, 0.2, True, named=not said).text)
            one = self.pick(["는 사람도 있고", "는 글도 있고", "는 후기도 보이고"])
            two = self.pick(
                ["는 사람도 있네요.", "는 글도 있던데", "는 후기도 많던데"]
                if polite
                else ["는 사람도 있음.", "는 글도 있던데"]
            )
            text = said[0].removesuffix("고") + one + " " + said[1].removesuffix("고") + two
            segments = [Segment(text, aspect, 0)]
        return [*segments, *map(Segment, ask)]

    def compose(self, polarity: int) -> list[Segment]:
        plans, weights = PLANS[polarity != 0]
        plan = self.rng.choices(plans, weights)[0]
        segments = plan(self, polarity)
        if polarity < 0 and self.chance(0.05):
            segments = self.ironic(polarity)
        roll = self.rng.random()
        used = plan not in (Writer.factual, Writer.question)  # Who asks or unpacks has no experience to tell.
        if used and roll < 0.45:
            segments.insert(0, self.remark("usage" if roll < 0.2 else "bought", link=0.6))
            if roll < 0.12:  # Make it a long post.
                segments.insert(0, self.remark("bought"))
                segments.append(self.remark("fact"))
        if 0.07 < roll < 0.12 or roll > 0.88:
            title = self.pick(["{} 후기.", "{} 써 본 소감!", "{} 사용기", "{} 리뷰!", "{} 이야기."])
            segments.insert(0, Segment(title.format(self.pick([self.product, self.product, self.category]))))
        if used and self.chance(0.14):
            segments.append(self.remark("fact"))
        return segments


PLANS: dict[bool, tuple[list[Callable[[Writer, int], list[Segment]]], list[int]]] = {
    True: (
        [
            Writer.praise_or_complaint,
            Writer.plain_verdict,
            Writer.conceded,
            Writer.conceded_after,
            Writer.only,
            Writer.reversed_expectation,
            Writer.compared,
            Writer.negations,
        ],
        [16, 10, 28, 14, 5, 14, 8, 5],
    ),
    False: ([Writer.mixed, Writer.lukewarm, Writer.factual, Writer.question], [52, 24, 12, 12]),
}


# ---------------------------------------------------------------------------------------------------------------------
# Surface noise and records
# ---------------------------------------------------------------------------------------------------------------------
def roughen(rng: random.Random, text: str, typo: float, glue: float) -> str:
    """Add typos and drop spaces inside one segment."""
    if rng.random() < typo:
        found = [(right, wrong) for right, wrong in TYPOS if right in text]
        if found:
            right, wrong = min(rng.choice(found), rng.choice(found), key=lambda pair: pair[0] == "요")
            at = rng.choice([match.start() for match in re.finditer(right, text)])
            text = text[:at] + wrong + text[at + len(right) :]
    return "".join("" if char == " " and rng.random() < glue else char for char in text)


def render(rng: random.Random, writer: Writer, segments: list[Segment], polarity: int) -> tuple[str, list[dict]]:
    """Join the segments to a text with emoji, tags and HTML as in SNS posts, and list the aspects it mentions."""
    typo = 0.45 if rng.random() < 0.3 else 0.04
    glue = rng.choices([0.0, 0.12, 0.45], [62, 28, 10])[0]
    parts, aspects = [], []
    for segment in segments:
        text = roughen(rng, segment.text, typo, glue)
        parts.append(text)
        if segment.aspect:
            aspects.append(
                {
                    "Aspect": segment.aspect,
                    "SentimentText": text,
                    "SentimentWord": str(len(text.split())),
                    "SentimentPolarity": str(segment.polarity),
                }
            )
    body = parts[0]
    for part in parts[1:]:
        body += rng.choices([" ", "  ", "<br>", "<br/>", "&nbsp;"], [90, 4, 3, 2, 1])[0] + part
    if rng.random() < 0.2:
        body += rng.choice(["", " "]) + rng.choice(EMOJI[polarity]) * rng.randint(1, 3)
    if rng.random() < 0.02:
        body = f"<b>{writer.product}</b> {body}"
    if rng.random() < 0.03:
        body = f"@{rng.choice(['tech', 'daily', 'mong', 'gadget', 'hello'])}_{rng.randint(10, 999)} {body}"
    if rng.random() < 0.12:
        body += "".join(" #" + writer.fill(tag) for tag in rng.sample(WORDS["tags"], rng.randint(1, 3)))
    return body, aspects


def clean(text: str) -> str:
    """Clean a text as the pipeline does, so that cleaned texts are distinct."""
    text = re.sub(r"<[^>]+>", " ", text)
    text = re.sub(r"[^0-9가-힣A-Za-z\.\,\?\!]+", " ", text)
    return re.sub(r"\s+", " ", text).strip()


def make_record(rng: random.Random, polarity: int) -> dict:
    category = rng.choice(list(CATEGORIES))
    brand = rng.choice(WORDS["brands"])
    product = f"{brand} {rng.choice(CATEGORIES[category][1])}{rng.choice(SUFFIXES)}"
    register = rng.choices(["yo", "noun", "casual", "formal"], [45, 22, 19, 14])[0]
    name = rng.choice([product, product.split(" ", 1)[1]])
    writer = Writer(rng, category, brand, name, register)
    text, aspects = render(rng, writer, writer.compose(polarity), polarity)
    score = min(100, max(20, round(rng.gauss({1: 88, 0: 62, -1: 38}[polarity], 14) / 10) * 10))
    day = dt.date(2019, 1, 1) + dt.timedelta(days=rng.randrange(4 * 365))
    return {
        "RawText": text,
        "Source": "SNS",
        "Domain": "IT기기",
        "MainCategory": category,
        "ProductName": product,
        "ReviewScore": str(score),
        "Syllable": str(len(text)),
        "Word": str(len(text.split())),
        "RDate": day.strftime("%Y%m%d"),
        "GeneralPolarity": str(polarity),
        "Aspects": aspects,
    }


def build(seed: int = SEED) -> list[dict]:
    rng = random.Random(seed)
    seen: set[str] = set()

    def fresh(polarity: int) -> dict:
        while True:
            record = make_record(rng, polarity)
            key = clean(record["RawText"])
            if key not in seen and len(key.split()) >= 3:
                seen.add(key)
                return record

    labels = [label for label, count in CLASS_COUNTS.items() for _ in range(count)]
    rng.shuffle(labels)
    valid = [fresh(label) for label in labels[:-REPOSTS]]
    for record in rng.sample(valid, round(NOISE * VALID)):
        others = [str(label) for label in CLASS_COUNTS if str(label) != record["GeneralPolarity"]]
        record["GeneralPolarity"] = rng.choice(others)
    for number, record in enumerate(rng.sample(valid, REPOSTS)):
        # A repost has the same text on another day; a few annotators label it differently the second time.
        label = "0" if number < 3 else record["GeneralPolarity"]
        day = dt.date(2023, 1, 1) + dt.timedelta(days=rng.randrange(300))
        valid.append(record | {"RDate": day.strftime("%Y%m%d"), "GeneralPolarity": label})

    unusable = []
    for reason, count in BAD_POLARITY.items():
        for number in range(count):
            record = fresh(rng.choices(list(CLASS_COUNTS), list(CLASS_COUNTS.values()))[0])
            if number == 0:  # Cleaning leaves nothing of this text.
                text = rng.choice(["👍👍👍", "😭😭", "🔥🔥🔥 ㅋㅋㅋ", "ㅠㅠㅠ", "❤️❤️", "ㅇㅇ ㅋㅋ"])
                record |= {"RawText": text, "Syllable": str(len(text)), "Word": str(len(text.split())), "Aspects": []}
            record["GeneralPolarity"] = {"null": None, "empty": ""}.get(reason, reason)
            if reason == "missing":
                del record["GeneralPolarity"]
            unusable.append(record)
    records = valid + unusable
    rng.shuffle(records)
    return [{"Index": str(number)} | record for number, record in enumerate(records, 1)]


def write(records: list[dict], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in sorted(folder.glob(NAME.format("*"))):
        stale.unlink()
    for number, start in enumerate(range(0, len(records), PER_FILE), 1):
        path = folder / NAME.format(number)
        draft = path.with_name(path.name + ".tmp")
        with draft.open("w", encoding="utf-8", newline="\n") as handle:
            json.dump(records[start : start + PER_FILE], handle, ensure_ascii=False, indent=2)
            handle.write("\n")
        draft.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the synthetic sample corpus.")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parent, help="folder; default: that of this script"
    )
    args = parser.parse_args()
    records = build()
    assert len(records) == TOTAL
    write(records, args.output / FOLDER)
    print(f"{len(records)} records, {VALID} with a usable polarity -> {FOLDER}")


if __name__ == "__main__":
    main()
