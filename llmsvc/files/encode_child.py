"""The process that encodes the passages of one file: started by ``meaning`` as a script, isolated.

Its standard input says where the encoder is, and the texts; it writes the numbers of each text's vector, 16 bits each.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    os.nice(19)  # whoever chats meanwhile goes first
    order = json.load(sys.stdin)
    sys.path.insert(0, order["root"])
    from llmsvc.files.encoder import Encoder

    encoder = Encoder(Path(order["folder"]))
    for text in order["texts"]:
        sys.stdout.buffer.write(encoder.encode(text).astype("float16").tobytes())


if __name__ == "__main__":
    main()
