"""VESL: region labels for images that have none (Chen et al. 2024, arXiv 2410.02746, section 4 and appendix C).

A caption, its noun phrases, and an open-vocabulary detector that is asked for them. README.md tells how to run it.
"""
