"""Print the cost of each run on this machine: seconds, seconds to the best epoch, examples per second, peak memory.

    python -m stages.timings

Runs that another machine has trained, and that DVC has restored from its cache, are left out.
"""

from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.paths import RUNS
from stages.common.runtime.timings import read_timing


@report_user_errors
def main() -> None:
    # pandas takes half a second to import, so it is not imported with this module.
    import pandas as pd

    runs = {str(path.parent.relative_to(RUNS)): read_timing(path) for path in sorted(RUNS.glob("*/*/checkpoint"))}
    known = {name: timing for name, timing in runs.items() if timing}
    print(pd.DataFrame.from_dict(known, orient="index").to_string() if known else "No run was trained on this machine.")


if __name__ == "__main__":
    main()
