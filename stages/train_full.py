"""Fine-tune the whole base model."""

from stages.common.errors import one_line
from stages.common.model import build_classifier
from stages.common.params import load_params
from stages.common.paths import BASE_MODEL, FULL, FULL_HISTORY
from stages.common.training import fit


@one_line
def main() -> None:
    params = load_params()
    model = build_classifier(BASE_MODEL, params.train.dropout, params.train.seed)
    fit(model, params.train, params.full.learning_rate, FULL, FULL_HISTORY)


if __name__ == "__main__":
    main()
