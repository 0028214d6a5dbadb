"The short form of `make fuzz`: nearly all inputs made by hand, and the first of the numbered ones."
import sys

import pytest
from robustness.fuzz import Worker, summary, try_all

PLANTED = {
    "traceback": "RecursionError", "code": "exit code 1", "silence": "without a sentence", "memory": "MiB", "half": "half a file",
    "file outside": "outside of the target", "change": "outside of the target", "rest": "left behind", "hang": "no answer"}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_each_input_gives_a_result_or_a_sentence(tmp_path):
    worker = Worker(tmp_path)
    try:
        found = list(try_all(range(100), worker, lambda name: not ("bomb" in name and name.startswith("segment"))))
        assert not (bad := [f"{f['name']}: {f['fault']}" for f in found if f["fault"]]), "\n".join(bad)
        told = summary(found)
        assert told["by_kind"]["calibrate"]["refused"] < told["by_kind"]["calibrate"]["inputs"]  # the radiographs that are changed are sound
        assert told["inputs"] > 220 and 120 < told["refused_in_one_sentence"] < told["inputs"] - 50
        for name, fault in PLANTED.items():  # a search that sees nothing is worth nothing
            assert fault in str(worker.attempt(f"planted {name}", 2 if name == "hang" else 60)["fault"]), name
    finally:
        worker.stop()
