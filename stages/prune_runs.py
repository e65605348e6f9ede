"""Delete the runs and baselines of earlier parameters, which other stages wrote, and list the runs that are asked for.

DVC does not delete the outs of matrix cells that are gone. Without this stage `select` and `compare`, which depend on
the folders of all runs and all baselines, would see other folders here than in a fresh clone.
"""

import itertools
import shutil

from stages.common.artifacts.files import write_json
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import BASELINES, RUN_PLAN, RUNS, baseline_path, run_name


@report_user_errors
def main() -> None:
    params = load_params()
    learning_rates = {"full": params.full.learning_rates, "lora": params.lora.learning_rates}
    plan = {
        method: [run_name(*run) for run in itertools.product(sorted(params.run.folds), rates)]
        for method, rates in learning_rates.items()
    }
    wanted = {RUNS / method / name for method, names in plan.items() for name in names}
    for folder in RUNS.glob("*/*"):
        if folder.is_dir() and folder not in wanted:
            shutil.rmtree(folder)
    for file in set(BASELINES.glob("*.safetensors")) - set(map(baseline_path, params.run.folds)):
        file.unlink()
    write_json(RUN_PLAN, plan)


if __name__ == "__main__":
    main()
