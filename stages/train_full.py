"""Fine-tune the whole base model."""

from stages.common.errors import one_line
from stages.common.fitting import fit, run_seed
from stages.common.model import build_classifier
from stages.common.params import load_params
from stages.common.paths import BASE_MODEL, RUNS


@one_line
def main() -> None:
    params, seed = load_params(), run_seed(__doc__)
    model = build_classifier(BASE_MODEL, params.train.dropout, seed)
    fit(model, params.train, params.full, seed, RUNS / "full" / str(seed))


if __name__ == "__main__":
    main()
