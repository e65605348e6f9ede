"""Write page.html, the page of `dvc plots`, with all that it needs: no network, no font.

    pip install vl-convert-python==1.9.0.post1
    PYTHONPATH=. python .dvc/plots/make_page.py [--output FILE]

Vega is in it, and a font with the letters of the class names (`data.labels` in params.yaml). A browser shows other
letters in a font of its own.
"""

import argparse
from pathlib import Path

import vl_convert

from stages.common.reporting.plots import embedded_font
from stages.common.runtime.params import load_params

START = """
const actions = {export: true, source: true, compiled: false, editor: false};  // the editor is on the net
const options = {renderer: "svg", actions, config: {font: "Labels, sans-serif"}};
window.vegaEmbed = (place, spec) => vegaEmbed(place, spec, options);
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'self' file: data: blob: 'unsafe-inline' 'unsafe-eval'">
{refresh_tag}
<link rel="icon" href="data:,">
<title>Full fine-tuning against LoRA</title>
<style>
@font-face { font-family: Labels; src: url(data:font/ttf;base64,FONT); }
body { font-family: sans-serif; margin: 1rem; }
img { max-width: 100%; }
body { display: flex; flex-direction: column; }
body > div { white-space: normal !important; min-width: 0; order: 1; }
#plots_difference_png, #plots_f1_png { order: 0; max-width: 60rem; }
</style>
<script>BUNDLE</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("page.html"), metavar="FILE")
    output = parser.parse_args().output
    bundle = vl_convert.javascript_bundle(START)
    assert "</script" not in bundle
    font = embedded_font("".join(load_params().data.labels))
    output.write_text(PAGE.replace("FONT", font).replace("BUNDLE", bundle), encoding="utf-8")


if __name__ == "__main__":
    main()
