"""Delivers messages to clients and brings back the answers: in this process, in workers, or on Flower's nodes.

Mathematics, recipes and what messages mean live elsewhere: of fftmoe this package imports only single files such as
`errors.py`. Only `setup`, `rounds`, `comparison`, `cost`, `deploy` and `flower_app` import it.
"""
