"""`audiogen doctor`: check the installation, a folder of sound files, and whether a model can learn from it."""

from .check import check_overfit
from .experiment import Overfit, overfit
from .folder import check_folder
from .setup import check_setup
from .verdicts import Verdict, verdict

__all__ = ["Overfit", "Verdict", "check_folder", "check_overfit", "check_setup", "overfit", "verdict"]
