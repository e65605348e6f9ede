"""The notebook's cleaning rules as Arrow kernels.

Arrow's RE2 takes time linear in the length of a text, where Python's `re` takes quadratic time for a text of many `<`.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import CleanParams

# What Python's `\s` and `str.strip` take for white space; RE2's `\s` is ASCII only.
WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))
TAGS = {True: "<[^>]+>", "html": r"</?[A-Za-z][0-9A-Za-z]*(?:[ \t\r\n][^<>]*)?/?>"}  # by clean.strip_tags
JAMO = "ㄱ-ㅎㅏ-ㅣ"


def patterns(params: CleanParams) -> list[str]:
    """Return what each rule replaces by a space, as regular expressions in the notebook's order.

    Rules 1 and 2 have their switches in `params`; rule 3, runs of white space, always holds.
    """
    # A hyphen at the end stands for itself, and must not begin a range with what follows.
    kept = re.sub(r"(?<!\\)-$", r"\\-", params.keep) + (JAMO if params.keep_jamo else "")
    tags = [TAGS[params.strip_tags]] if params.strip_tags else []
    others = [f"[^{kept}]+"] if params.keep else []
    return [*tags, *others, f"[{WHITE_SPACE}]+"]


def clean(texts: pa.Array | pa.ChunkedArray, params: CleanParams) -> pa.Array | pa.ChunkedArray:
    """Compose each text to NFC, clean it by the rules of `patterns`, one after the other, and strip white space.

    Raises:
        UserError: RE2 does not accept `clean.keep` as the inside of a character class.
    """
    rules = patterns(params)
    texts = pc.utf8_normalize(texts, form="NFC")  # macOS writes Hangul in parts, which rule 2 would erase
    try:
        # Where rule 2 makes every run of white space one space, rule 3 would find nothing, and take half of the time.
        if len(rules) > 1 and pc.replace_substring_regex(WHITE_SPACE, rules[-2], " ").as_py() == " ":
            rules.pop()
        for pattern in rules:
            texts = pc.replace_substring_regex(texts, pattern=pattern, replacement=" ")
    except pa.ArrowInvalid as error:
        raise UserError(f"clean.keep: {params.keep!r} is not the inside of a regular expression's [...]") from error
    return pc.utf8_trim(texts, characters=WHITE_SPACE)
