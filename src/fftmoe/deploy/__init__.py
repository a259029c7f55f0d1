"""Runs a federation over several organisations: keys and certificates, the server, the sites, and their status.

Recipes are read in `setup/`, rounds run in `rounds/`, and Flower's private parts stay in `deploy/link/`. Only `cli`
and `flower_app` import this package.
"""
