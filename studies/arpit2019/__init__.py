"""The Benefits of Over-parameterization at Initialization (Arpit & Bengio, arXiv 1901.03611), reproduced.

`python -m studies.arpit2019 RUN SCHEMES_RUN` writes README.md, figures/ and summary.nc of this folder from the folders
of two finished runs; README.md says which commands made those.
"""
