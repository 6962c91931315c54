"""Students of teachers that have learned images from labels: scikit-learn's digits, MNIST and CIFAR-10.

`python -m studies.images RUN ...` writes README.md, figures/ and a summary of each run of this folder from the folders
of finished runs; README.md says which commands made them.
"""
