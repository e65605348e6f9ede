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
JAMO = "ㄱ-ㅎㅏ-ㅣ"


def patterns(params: CleanParams) -> list[str]:
    """What each rule that is switched on replaces by a space: regular expressions, in the notebook's order."""
    # A hyphen at the end stands for itself, and must not begin a range with what follows.
    kept = re.sub(r"(?<!\\)-$", r"\\-", params.keep) + (JAMO if params.keep_jamo else "")
    rules = [
        (params.strip_tags, "<[^>]+>"),
        (params.keep, f"[^{kept}]+"),
        (params.collapse_spaces, f"[{WHITE_SPACE}]+"),
    ]
    return [pattern for is_on, pattern in rules if is_on]


def clean(texts: pa.Array | pa.ChunkedArray, params: CleanParams) -> pa.Array | pa.ChunkedArray:
    """Clean each text by the rules that `params` switches on, in the notebook's order, and strip white space.

    Raises:
        UserError: RE2 does not accept `clean.keep` as the inside of a character class.
    """
    rules = patterns(params)
    try:
        # Where rule 2 makes every run of white space one space, rule 3 would find nothing, and take half of the time.
        if len(rules) > 1 and pc.replace_substring_regex(WHITE_SPACE, rules[-2], " ").as_py() == " ":
            rules.pop()
        for pattern in rules:
            texts = pc.replace_substring_regex(texts, pattern=pattern, replacement=" ")
    except pa.ArrowInvalid as error:
        raise UserError(f"clean.keep: {params.keep!r} is not the inside of a regular expression's [...]") from error
    return pc.utf8_trim(texts, characters=WHITE_SPACE)
