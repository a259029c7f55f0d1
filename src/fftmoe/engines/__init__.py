"""Engines deliver messages to clients and bring back the answers: in this process, in workers, or on Flower's nodes.

Mathematics, recipes and what messages mean live elsewhere; `setup/`, `rounds/`, `comparison/`, `cost/` and `deploy/`
import this package, and it imports no other package of fftmoe except `errors` and `strict`.
"""
