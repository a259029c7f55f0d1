"""Carries out a client's part of a round: it receives a plan, checks it, trains, and sends back an update.

No rule of a method, of the server or of an engine lives here. Only `setup`, `deploy`, `rounds`, `cost` and `trained`
import it.
"""
