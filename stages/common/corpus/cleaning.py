"""The notebook's cleaning rules as Arrow kernels.

RE2 matches in time linear in the text, where Python's `re` needs quadratic time for a text of many `<`.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

from stages.common.core.exceptions import UserError
from stages.common.core.params import CleanParams

# What Python's `\s` and `str.strip` take for white space; RE2's `\s` is ASCII only.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680"
    + "".join(map(chr, range(0x2000, 0x200B)))
    + ("\u2028\u2029\u202f\u205f\u3000")
)
JAMO = "ㄱ-ㅎㅏ-ㅣ"


def patterns(params: CleanParams) -> list[str]:
    """What to replace by a space, in the notebook's order: a regular expression for each rule that is switched on."""
    # A hyphen at the end stands for itself, and must not begin a range with what follows.
    kept = re.sub(r"(?<!\\)-$", r"\\-", params.keep) + (JAMO if params.keep_jamo else "")
    rules = [
        (params.strip_tags, "<[^>]+>"),
        (params.keep, f"[^{kept}]+"),
        (params.collapse_spaces, f"[{WHITE_SPACE}]+"),
    ]
    return [pattern for on, pattern in rules if on]


def clean(texts: pa.Array | pa.ChunkedArray, params: CleanParams) -> pa.Array | pa.ChunkedArray:
    """Clean each text by the rules that `params` switches on, in the notebook's order; white space at the ends goes.

    Raises:
        UserError: `clean.keep` is not the inside of a character class to RE2.
    """
    rules = patterns(params)
    try:
        # Where rule 2 turns white space into single spaces, rule 3 finds nothing, and takes as long as both others.
        if len(rules) > 1 and pc.replace_substring_regex(WHITE_SPACE, rules[-2], " ").as_py() == " ":
            rules.pop()
        for pattern in rules:
            texts = pc.replace_substring_regex(texts, pattern=pattern, replacement=" ")
    except pa.ArrowInvalid as error:
        raise UserError(f"clean.keep: {params.keep!r} is not the inside of a regular expression's [...]") from error
    return pc.utf8_trim(texts, characters=WHITE_SPACE)
