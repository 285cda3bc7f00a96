"Builds the site of the course from the notebooks; the command is tools/make_site.py."
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
