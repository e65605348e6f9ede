"""The runs that params.yaml asks for; runs of earlier parameters are deleted.

DVC does not delete the outs of matrix cells that are gone. Without this stage `select`, which depends on the folder of
all runs, would see another folder here than in a fresh clone.
"""

import shutil

from stages.common.core.exceptions import report_user_errors
from stages.common.core.files import write_json
from stages.common.core.labels import METHODS
from stages.common.core.params import load_params
from stages.common.core.paths import RUN_PLAN, RUNS


@report_user_errors
def main() -> None:
    seeds = load_params().run.seeds
    plan = {method: [str(seed) for seed in seeds] for method in METHODS}
    for method, runs in plan.items():
        for folder in (RUNS / method).glob("*"):
            if folder.is_dir() and folder.name not in runs:
                shutil.rmtree(folder)
    write_json(RUN_PLAN, plan)


if __name__ == "__main__":
    main()
