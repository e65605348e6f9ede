"""The origin of a result: the commit of what it was made from."""

import subprocess

INPUTS = ("stages", "params.yaml", "data/sample", "data/kobert-mini")


def git_revision() -> str:
    """Return the commit that last changed code, parameters or embedded data; committing results does not change it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments, "--", *INPUTS], capture_output=True, text=True, check=True).stdout

    try:
        return git("log", "-1", "--format=%H").strip() + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
