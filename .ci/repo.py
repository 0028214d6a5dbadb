"""Give the project another home: rewrite its address in pyproject.toml and, from there, in every badge and link.

usage: repo.py OWNER REPO      (make repo OWNER=... REPO=...)
       repo.py --check         every address of the repository is the one in pyproject.toml
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORMS = ("github.com/{0}/{1}", "colab.research.google.com/github/{0}/{1}", "{0}.github.io/{1}", "raw.githubusercontent.com/{0}/{1}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def home():
    """(owner, repository) as pyproject.toml has them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^Repository = "https://github\.com/([^/"]+)/([^/"]+)"', text, re.M).groups()


def rewrite(text, old, new):
    """All addresses of the old home in a text, the new one in their place."""
    for form in FORMS:
        there = form.format(*old)
        text = re.sub(rf"(?<![\w.-]){re.escape(there)}(?![\w-])", lambda m, f=form: f.format(*new), text)
    return text


def files():
    """The texts that git keeps."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, listed):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def strays():
    """Places that name a repository `verdiff` of somebody else's."""
    owner, repo = home()
    pattern = re.compile(r"github\.com/([\w-]+)/(verdiff)\b(?!-)|([\w-]+)\.github\.io/(verdiff)\b")
    for path, text in files():
        if path.name in ("repo.py", "test_site.py"):
            continue
        for m in pattern.finditer(text):
            found = (m[1] or m[3], m[2] or m[4])
            if found != (owner, repo):
                yield f"{path.relative_to(ROOT)}: {m[0]}"


def main():
    words = sys.argv[1:]
    if words == ["--check"]:
        found = list(strays())
        print(*found, sep="\n")
        return 1 if found else 0
    if len(words) != 2 or not all(NAME.fullmatch(w) for w in words):
        print(__doc__)
        return 2
    old, count = home(), 0
    for path, text in files():
        if path.name in ("repo.py", "test_site.py"):
            continue
        new = rewrite(text, old, tuple(words))
        if new != text:
            path.write_text(new, encoding="utf-8")
            count += 1
    print(f"{'/'.join(old)} -> {'/'.join(words)}: {count} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
