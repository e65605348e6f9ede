"""What a real browser makes of a page: its elements, its console, and the requests that the page sends."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
