"""The notebook's cleaning rules, applied by Arrow.

Arrow's regular expressions (RE2) take time that is linear in the length of a text; Python's `re` takes quadratic time
for a text of many `<`.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import CleanParams

# White space as Python's `\s` and `str.strip` define it; the `\s` of RE2 is ASCII only.
WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))
TAGS = {True: "<[^>]+>", "html": r"</?[A-Za-z][0-9A-Za-z]*(?:[ \t\r\n][^<>]*)?/?>"}  # By value of clean.strip_tags.
JAMO = "ㄱ-ㅎㅏ-ㅣ"


def patterns(params: CleanParams) -> list[str]:
    """Return one regular expression for each rule, in the notebook's order; what it matches is replaced by a space.

    Rule 1 (tags) and rule 2 (other characters) can be switched off in `params`; rule 3 (runs of white space) cannot.
    """
    # A hyphen at the end is an ordinary character and must not form a range with the characters added after it.
    kept = re.sub(r"(?<!\\)-$", r"\\-", params.keep) + (JAMO if params.keep_jamo else "")
    tags = [TAGS[params.strip_tags]] if params.strip_tags else []
    others = [f"[^{kept}]+"] if params.keep else []
    return [*tags, *others, f"[{WHITE_SPACE}]+"]


def clean(texts: pa.Array | pa.ChunkedArray, params: CleanParams) -> pa.Array | pa.ChunkedArray:
    """Compose each text to NFC, apply the rules of `patterns` one after the other, and strip white space.

    Raises:
        UserError: `clean.keep` is not valid inside the brackets of a regular expression.
    """
    rules = patterns(params)
    texts = pc.utf8_normalize(texts, form="NFC")  # Rule 2 would erase decomposed Hangul, which macOS writes.
    try:
        # If rule 2 already replaces runs of white space by one space, rule 3 is skipped, which halves the time.
        if len(rules) > 1 and pc.replace_substring_regex(WHITE_SPACE, rules[-2], " ").as_py() == " ":
            rules.pop()
        for pattern in rules:
            texts = pc.replace_substring_regex(texts, pattern=pattern, replacement=" ")
    except pa.ArrowInvalid as error:
        raise UserError(f"clean.keep: {params.keep!r} is not valid between [ and ] of a regular expression") from error
    return pc.utf8_trim(texts, characters=WHITE_SPACE)
