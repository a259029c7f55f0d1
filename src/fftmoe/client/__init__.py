"""What a client does in a round: receive a plan, check it, train, and send back an update.

No rule of a method, of the server or of an engine lives here. Only `setup`, `deploy`, `rounds`, `cost` and `trained`
import it.
"""
