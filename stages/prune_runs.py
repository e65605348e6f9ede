"""Delete the runs and baselines of earlier parameters, and list the runs of the current parameters.

The files that this stage deletes were written by other stages. DVC keeps the outputs of matrix cells that no longer
exist, and the stages `select` and `compare` depend on the folders of all runs and baselines. Without this stage, their
inputs would differ from those in a fresh clone.
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
