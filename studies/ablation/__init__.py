"""What deep students' specialization depends on: width, batch norm, teacher, batch size, learning rate, outputs and
inputs, with the questions of Luck Matters (Tian, Jiang, Gong, Morcos, arXiv 1905.13405).

`python -m studies.ablation --single DIR ... --pace DIR ... --norm DIR ... --inputs DIR ... --rates DIR ...` writes
README.md, figures/ and the summaries of this folder from the folders of finished runs; README.md says which commands
made those.
"""
