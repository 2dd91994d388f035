"""``python -m stageflow``."""

from stageflow.cli import main

main()
