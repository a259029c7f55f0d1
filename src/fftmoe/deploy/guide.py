"""Writes the README of a deployment: who gets which folder, how to start, and what must stay secret."""

from collections.abc import Sequence
from datetime import datetime

from fftmoe.shown import count_of, quoted

README = """# A federation of {count}

The server is at `{address}`. The certificates end on {end:%Y-%m-%d %H:%M} UTC.

## Who gets what

| Folder | Goes to | Client id |
|---|---|---|
| `server/` | the machine at `{address}` | |
{rows}
| `ca/` | nobody: keep `ca/ca.key` offline | |

Give each site its own folder and no other, over a channel that nobody else can read or change: in person, or with
`scp` to a machine whose key you know. Keep the modes (`cp -p`, `scp -p`, `tar`): a private key that other users can
read is refused.

## Start

The server, on its machine:

    fftmoe deploy server {server} --recipe recipe.yaml --output runs/x

Each site, on its own machine: a person reviews the recipe, which writes the site's policy, and starts it with the
site's own data:

{clients}

A site calls the server at `{address}`; the server never calls a site, so a site opens no port.

## What never to send

- `ca/ca.key`: who has it can pose as the server to every site. It is not needed while the federation runs, only to
  sign another certificate for the server.
- `server/server.key`: who has it can pose as the server. It stays on the server's machine.
- `sites/<name>/node.key`: who has it can pose as that site. It goes to that site once, and to nobody else; the server
  has only the public half, `server/sites/<name>.pub`. Remove `sites/<name>/` here once the site has it.
- A site's data, its policy and its ledger: they stay at the site.

Nothing here belongs in a repository, a mail or a chat.

## To change the sites or the address, to renew, or when a key has leaked

Make a new deployment with `fftmoe deploy init` in a new folder, give each site its new folder, and start the server
with the new `server/`. A site that has only the old files is then refused. A site moves its `policy.yaml`, `ledger.*`
and `state` into the new folder: what its rows have lost does not end with its key.
"""


def guide(name: str, address: str, sites: Sequence[str], end: datetime) -> str:
    """Return the text of README.md for a deployment in a folder called `name` whose certificates expire at `end`."""
    clients = (
        f"    fftmoe deploy site review recipe.yaml --site {quoted(f'{name}/sites/{site}')}\n"
        f"    fftmoe deploy client {quoted(f'{name}/sites/{site}')} --data /path/to/data --budget small"
        for site in sites
    )
    return README.format(
        count=count_of(len(sites), "site"),
        address=address,
        end=end,
        rows="\n".join(f"| `sites/{site}/` | {site} | {i} |" for i, site in enumerate(sites)),
        server=quoted(f"{name}/server"),
        clients="\n".join(clients),
    )
