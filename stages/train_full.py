"""Fine-tune the whole base model."""

from stages.common.core.exceptions import report_user_errors
from stages.common.core.params import load_params
from stages.common.core.paths import BASE_MODEL, RUNS
from stages.common.modeling.classifier import build_classifier
from stages.common.training.train_stage import fit, run_seed


@report_user_errors
def main() -> None:
    params, seed = load_params(), run_seed(__doc__)
    model = build_classifier(BASE_MODEL, params.train.dropout, seed)
    fit(model, params.train, params.full, seed, RUNS / "full" / str(seed))


if __name__ == "__main__":
    main()
