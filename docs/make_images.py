"""Make the pictures of the documentation from a real run.

    make run                                     # or: fftmoe run quickstart --output runs/quickstart
    python docs/make_images.py runs/quickstart   # needs chromium

Writes `docs/images/report-phone.png`, `report-wide.png` and `terminal.svg`.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console

from fftmoe.cli.pages import rebuild_report
from fftmoe.cli.terminal import print_outcome
from fftmoe.report.load import LoadWatch, describe_alarm
from fftmoe.report.progress import Progress
from fftmoe.setup.finished import recipe_of

IMAGES = Path(__file__).parent / "images"
COLUMNS = 100
PHONE, WIDE = (390, 844), (1280, 1000)  # CSS pixels


def main() -> None:
    """Make all three pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    run = parser.parse_args().run
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "terminal.svg").write_text(terminal(run))
    with tempfile.TemporaryDirectory() as folder:
        page = rebuild_report(run, Path(folder) / "report.html")
        photograph(page, IMAGES / "report-phone.png", PHONE, scale=2)
        photograph(page, IMAGES / "report-wide.png", WIDE, scale=1)


def terminal(run: Path) -> str:
    """Return the terminal output of a run as SVG, with the rows of `metrics.jsonl` as `fftmoe run` prints them."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(file=nowhere, record=True, width=COLUMNS)
        console.print("$ fftmoe run", style="bold", highlight=False)
        progress, watch = Progress(console), LoadWatch()
        progress.say("loading data and backbone")
        for line in (run / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            progress.round_done(row)
            for alarm in watch.see(row):
                progress.say(f"alarm: {describe_alarm(alarm)}")
        print_outcome(console, json.loads((run / "summary.json").read_text()), run, recipe_of(run))
    svg = console.export_svg(title="fftmoe run")
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # without fonts from the network


def photograph(page: Path, picture: Path, size: tuple[int, int], scale: int) -> None:
    """Save the first screen of a page, `size` CSS pixels large, with `scale` image pixels for each."""
    found = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        raise SystemExit("this script needs chromium, and none was found; run: apt-get install chromium")
    width, height = size
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--force-device-scale-factor={scale}", f"--window-size={width},{height}", f"--screenshot={picture}"]
    subprocess.run([*command, page.absolute().as_uri()], check=True, capture_output=True, timeout=120)
    # The page has few colours: a palette takes a third of the bytes without a visible difference.
    with Image.open(picture) as taken:
        taken.convert("RGB").quantize(256).save(picture, optimize=True)


if __name__ == "__main__":
    main()
