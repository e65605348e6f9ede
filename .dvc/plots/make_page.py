"""Writes page.html, the page of `dvc plots`, with Vega and the labels' letters inside: it needs no network and no font.

pip install vl-convert-python==1.9.0.post1
PYTHONPATH=. python .dvc/plots/make_page.py
"""

from pathlib import Path

import vl_convert
from stages.common.core.labels import LABELS

from stages.common.reporting.plots import embedded_font

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
body > div { white-space: normal !important; }
</style>
<script>BUNDLE</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""

bundle = vl_convert.javascript_bundle(START)
assert "</script" not in bundle
page = PAGE.replace("FONT", embedded_font("".join(LABELS))).replace("BUNDLE", bundle)
Path(__file__).with_name("page.html").write_text(page, encoding="utf-8")
