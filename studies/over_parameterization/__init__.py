"""Theorem 5 of Luck Matters (Tian, Jiang, Gong, Morcos, arXiv 1905.13405) run with the matrix dynamics, reproduced.

`python -m studies.over_parameterization RUN` writes README.md, figures/ and summary.nc of this folder from the folder
of a finished run; README.md says which command made it.
"""
