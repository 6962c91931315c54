"""How many distinct samples a student needs, Gaussian ones or those about its teacher's boundaries (Student
Specialization, Tian, ICML 2020, arXiv 1909.13458).

`python -m studies.sample_complexity --deep DIR ... --two-layer DIR ... --near DIR ... --long DIR ...` writes README.md,
figures/ and the summaries of this folder from the folders of finished runs; README.md says which commands made those.
"""
