"""Give notebooks the one form that the repository keeps. usage: tidy.py [--check] NOTEBOOK..."""
import json
import re
import sys
from pathlib import Path

METADATA = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}


def tidy(nb: dict) -> dict:
    """No execution counts, no cell metadata, no widget state; one kernel; ids kept."""
    nb = json.loads(json.dumps(nb))
    nb["metadata"] = METADATA
    for cell in nb["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] != "code":
            continue
        cell["execution_count"] = None
        cell["outputs"] = [o for o in cell["outputs"]
                           if not re.fullmatch(r"(\x1b\[2K|\r|\n)*", "".join(o.get("text", "x")))]
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = None
            if "metadata" in output:
                output["metadata"] = {}
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return nb


def main() -> int:
    names = [a for a in sys.argv[1:] if a != "--check"]
    untidy = []
    for path in map(Path, names):
        text = path.read_text(encoding="utf-8")
        wanted = json.dumps(tidy(json.loads(text)), indent=1, ensure_ascii=False) + "\n"
        if text != wanted:
            untidy.append(str(path))
            if "--check" not in sys.argv:
                path.write_text(wanted, encoding="utf-8")
    if "--check" in sys.argv and untidy:
        print("not clean (run .ci/tidy.py on them):", *untidy)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
