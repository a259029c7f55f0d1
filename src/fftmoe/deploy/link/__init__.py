"""The wire of a deployment: Flower's SuperLink and SuperNode, through the parts of Flower that are private to it.

Everything that may break with the next version of Flower lives here, and nothing else. Only `deploy/` imports it.
"""
