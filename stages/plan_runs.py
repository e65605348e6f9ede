"""The runs that params.yaml asks for; runs of earlier parameters are deleted.

DVC does not delete the outs of matrix cells that are gone. Without this stage `select`, which depends on the folder of
all runs, would see another folder here than in a fresh clone.
"""

import itertools
import shutil

from stages.common.artifacts.files import write_json
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import RUN_PLAN, RUNS, run_name


@report_user_errors
def main() -> None:
    params = load_params()
    learning_rates = {"full": params.full.learning_rates, "lora": params.lora.learning_rates}
    seeds = params.run.seeds
    plan = {
        method: [run_name(*run) for run in itertools.product(seeds, rates)] for method, rates in learning_rates.items()
    }
    for method, names in plan.items():
        for folder in (RUNS / method).glob("*"):
            if folder.is_dir() and folder.name not in names:
                shutil.rmtree(folder)
    write_json(RUN_PLAN, plan)


if __name__ == "__main__":
    main()
