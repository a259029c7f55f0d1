"""Connects a deployment's server and sites by Flower's SuperLink, and holds all use of Flower's private parts.

What may break with the next version of Flower lives here, and nothing else. Only `deploy` imports this package.
"""
