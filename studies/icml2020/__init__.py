"""The two-layer study of Student Specialization in Deep ReLU Networks (Tian, ICML 2020, arXiv 1909.13458), reproduced.

`python -m studies.icml2020 RUN OWN_TEACHERS_RUN` writes README.md, figures/ and summary.nc of this folder from the
folders of two finished runs; README.md says which commands made those.
"""
