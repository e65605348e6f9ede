"""Writes page.html, the page of `dvc plots`, with Vega inside, so that it draws without a network.

    pip install vl-convert-python==1.9.0.post1
    python .dvc/plots/make_page.py

Vega-Lite is of version 5, as DVC's own templates are.
"""

from pathlib import Path

import vl_convert

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'self' file: data: blob: 'unsafe-inline' 'unsafe-eval'">
{refresh_tag}
<link rel="icon" href="data:,">
<title>Full fine-tuning against LoRA</title>
<style>
body { font-family: sans-serif; margin: 1rem; }
img { max-width: 100%; }
</style>
<script>BUNDLE</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""

bundle = vl_convert.javascript_bundle(vl_version="5.21")
assert "</script" not in bundle
Path(__file__).with_name("page.html").write_text(PAGE.replace("BUNDLE", bundle), encoding="utf-8")
