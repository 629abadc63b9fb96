"""Processes in the place of `torchlstm.qualify.child`, each bad in its own way.  No tests."""

import json
import os
import signal
import sys
import time


def main() -> None:
    """Answer a job as the first argument says."""
    how, job = sys.argv[1], json.loads(sys.stdin.readline())
    hidden, batch = job["sizes"][0]
    print(json.dumps({"at": "parity with torch.nn.LSTM", "H": hidden, "B": batch}), flush=True)
    if how == "hangs":
        print(os.getpid(), file=sys.stderr, flush=True)
        time.sleep(600)
    if how == "traps":
        os.kill(os.getpid(), signal.SIGABRT)
    if how == "fails":
        sys.exit("CUDA error: an illegal instruction was encountered")
    if how == "babbles":
        print("Warning: hello")
    if how == "slower":
        row = {"hidden": hidden, "batch": batch, "reason": None, "least": None, "speed": []}
        print(json.dumps({"found": row}))
    if how == "wrong":
        reason = "wrong: T7: grad input: error 1.00e-02 exceeds 1.00e-06"
        print(json.dumps({"found": {"hidden": hidden, "batch": batch, "reason": reason, "least": None, "speed": []}}))


if __name__ == "__main__":
    main()
