"""The Arrow kernels against the notebook's own regular expressions."""

import re
import time

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stages.common.cleaning import WHITE_SPACE, clean, patterns
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import CleanParams

NOTEBOOK = CleanParams(strip_tags=True, keep="0-9가-힣A-Za-z.,?!", keep_jamo=False)
TEXTS = [
    "<b>배터리</b>가 <br/>좋아요!! ㅋㅋㅋ 😊 #추천",
    "a < b > c <> << d >> <\n>",
    "  화면은 좋은데…　배터리가\u2028별로\x1c입니다\xa0\x85",
    "5,000원 99.9% (정가) café 한글 ㅠㅠ",
    "",
    " \t\r\n ",
    "<<<<",
    "𝒜𝓑 ＡＢ １２",
    "\x00널\x00",
]


def notebook(text: str) -> str:
    text = re.sub(r"<[^>]+>", " ", text)
    text = re.sub(r"[^0-9가-힣A-Za-z\.\,\?\!]+", " ", text)
    return re.sub(r"\s+", " ", text).strip()


def cleaned(texts: list[str], params: CleanParams) -> list[str]:
    return clean(pa.array(texts), params).to_pylist()


def test_equals_the_notebook_text_by_text():
    assert cleaned(TEXTS, NOTEBOOK) == [notebook(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("text", "changed", "expected"),
    [
        ("<b>좋다</b> ㅋㅋ", {"strip_tags": False}, "b 좋다 b"),
        ("<b>좋다</b> ㅋㅋ ㅠㅠ 😊", {"keep_jamo": True}, "좋다 ㅋㅋ ㅠㅠ"),
        ("좋다  ㅋㅋ\n😊 ", {"keep": ""}, "좋다 ㅋㅋ 😊"),
        ("와이-파이 ㅋㅋ ♥", {"keep": "가-힣-", "keep_jamo": True}, "와이-파이 ㅋㅋ"),
    ],
)
def test_each_rule_has_its_switch(text, changed, expected):
    assert cleaned([text], NOTEBOOK.model_copy(update=changed)) == [expected]


def test_a_range_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"clean\.keep"):
        cleaned(["좋다"], NOTEBOOK.model_copy(update={"keep": "z-a"}))


def test_white_space_is_what_python_takes_for_it():
    every = "".join(map(chr, range(0x110000 - 1)))
    assert sorted(WHITE_SPACE) == sorted(re.findall(r"\s", every))


@pytest.mark.parametrize(
    "unit", ["<", " ", "ㅋ", "가", "<a", "<a ", "a<", "<>", "<<>", "<ㅋ>", "\u3000", "a ", "<" * 5000 + ">"]
)
def test_time_is_linear_in_the_text(unit):
    started = time.process_time()
    cleaned([unit * (10_000_000 // len(unit.encode()))], NOTEBOOK)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("keep", ["", "0-9가-힣 ", "\\s가-힣", "[:space:]가", "\\W", "a-z-"])
@pytest.mark.parametrize("strip_tags", [True, False])
def test_the_result_is_that_of_all_rules_one_after_the_other(keep, strip_tags):
    texts = [*TEXTS, "가  나\t \n다\u2028\u2028라", "a \x1c\x1c b"]
    params = NOTEBOOK.model_copy(update={"keep": keep, "strip_tags": strip_tags})
    expected = pa.array(texts)
    for rule in patterns(params):
        expected = pc.replace_substring_regex(expected, pattern=rule, replacement=" ")
    assert cleaned(texts, params) == [text.strip(WHITE_SPACE) for text in expected.to_pylist()]
