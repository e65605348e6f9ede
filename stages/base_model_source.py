"""`base_model.name` -> `data/base_model_source`, which DVC can watch: a link to the folder, or the id in a file."""

from pathlib import Path

from stages.common.core.exceptions import report_user_errors
from stages.common.core.files import atomic_write
from stages.common.core.params import load_params
from stages.common.core.paths import BASE_MODEL_SOURCE


@report_user_errors
def main() -> None:
    params = load_params().base_model
    folder = Path(params.name)
    with atomic_write(BASE_MODEL_SOURCE) as temporary:
        if folder.is_dir():
            temporary.symlink_to(folder.resolve(), target_is_directory=True)
        else:
            temporary.write_text(f"{params.name}@{params.revision}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
