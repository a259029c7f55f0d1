"""Lets `python -m fftmoe` stand for the command `fftmoe`, where a shell does not find it."""

from fftmoe.cli.app import main

if __name__ == "__main__":
    main()
