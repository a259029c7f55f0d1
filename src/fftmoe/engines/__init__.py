"""How clients are run."""
