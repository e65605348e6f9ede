"""Say before training what the planned folds can show, and how many models will be trained.

dvc repro split && python -m stages.plan
"""

from stages.common.artifacts.files import read_json
from stages.common.artifacts.folds import SplitMetrics
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import SPLIT_METRICS


@report_user_errors
def main() -> None:
    params = load_params()
    # SciPy takes seconds to import; an error in params.yaml is reported before that.
    import numpy as np

    from stages.common.evaluation.power import describe_power

    metrics = SplitMetrics.model_validate(read_json(SPLIT_METRICS))
    tested = [list(metrics.folds[number].test.classes.values()) for number in params.run.folds]
    class_counts = np.array(tested[0]) if metrics.fixed_test_rows else np.sum(tested, axis=0)
    num_rates = len(params.full.learning_rates) + len(params.lora.learning_rates)
    print(f"{len(tested) * num_rates} models: {len(tested)} folds, {num_rates} learning rates of both methods together")
    print(describe_power(class_counts, len(tested), params.compare.margin))


if __name__ == "__main__":
    main()
