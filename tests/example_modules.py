"""The example programs as modules: they import one another by bare names."""

import importlib
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

dlrm = importlib.import_module("dlrm")
dlrm_clicks = importlib.import_module("dlrm_clicks")
dlrm_data = importlib.import_module("dlrm_data")
dlrm_model = importlib.import_module("dlrm_model")
dlrm_options = importlib.import_module("dlrm_options")
dlrm_report = importlib.import_module("dlrm_report")
dlrm_train = importlib.import_module("dlrm_train")
movielens = importlib.import_module("movielens")
