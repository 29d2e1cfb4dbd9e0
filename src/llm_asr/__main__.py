"""`python -m llm_asr`."""

import sys

from .cli import main


sys.exit(main())
