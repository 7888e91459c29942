"""Pictures of a run: what each shows is prepared by functions of NumPy alone, and then drawn by matplotlib.

matplotlib is the extra `distsgd[plot]`, imported only where a picture is drawn, on rank 0.
"""

from __future__ import annotations
