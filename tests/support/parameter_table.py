"""Copy the descriptions of the parameters in stages/common/runtime/params.py to the places where people read them.

    python -m tests.support.parameter_table

These are the comments of params.yaml and the table in stages/README.md. tests/test_documentation.py compares both.
"""

import re
from pathlib import Path

from stages.common.runtime.params import Params

ROOT = Path(__file__).resolve().parents[2]
PARAMS, README = ROOT / "params.yaml", ROOT / "stages/README.md"
HEADER = "# `dvc exp run -S lora.r=16` changes a parameter for one run.\n"
ROW = re.compile(r"^\| `(\w+)\.(\w+)` \| `(.*?)` \|", re.MULTILINE)
TABLE = re.compile(r"(?<=<!-- parameters -->\n).*(?=<!-- end of parameters -->)", re.DOTALL)
SECTION, KEY = re.compile(r"(\w+):$"), re.compile(r"  (\w+): (.*)$")


def describe(section: str, key: str = "") -> str:
    """Return the description of a section, or of a parameter if `key` is given."""
    model = Params.model_fields[section].annotation
    return model.model_fields[key].description if key else model.__doc__.splitlines()[0]


def with_comments(text: str) -> str:
    """Replace the comments in the text of params.yaml."""
    lines, section = [], ""
    for line in text.splitlines():
        if match := KEY.match(line):
            lines.append(f"  # {describe(section, match[1])}")
        if not line.lstrip().startswith("#"):
            lines.append(line)
        if match := SECTION.match(line):
            section = match[1]
            # The comment is below the name, since `dvc exp run -S` deletes a comment that follows a list, and the
            # section before may end with one.
            lines += [f"  # {describe(section)}", "  #"]
    return HEADER + "\n".join(lines) + "\n"


def table(text: str) -> str:
    """Make a Markdown table of the keys and values in the text of params.yaml, with their descriptions."""
    rows, section = ["| key | default | meaning |", "| --- | --- | --- |"], ""
    for line in text.splitlines():
        if match := SECTION.match(line):
            section = match[1]
            rows.append(f"| **{section}** | | {describe(section)} |")
        elif match := KEY.match(line):
            rows.append(f"| `{section}.{match[1]}` | `{match[2]}` | {describe(section, match[1])} |")
    return "\n".join(rows).replace("<...>", r"`<...>`") + "\n"


def shipped() -> str:
    """Make the shipped params.yaml from the table in the README, so that tests do not depend on a user's edits."""
    text, section = "", ""
    for row_section, key, value in ROW.findall(README.read_text(encoding="utf-8")):
        text += f"\n{row_section}:\n" if row_section != section else ""
        text += f"  {key}: {value}\n"
        section = row_section
    return with_comments(text.strip())


def main() -> None:
    params = with_comments(PARAMS.read_text(encoding="utf-8"))
    PARAMS.write_text(params, encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(TABLE.sub(lambda _: table(params), readme), encoding="utf-8")


if __name__ == "__main__":
    main()
