"""Damaged files for the fuzz tests: whole ones with bytes changed, cut, doubled or put in.

`make test-faults` runs the same tests with more examples (`--hypothesis-profile=long`).
"""

from collections.abc import Sequence

from hypothesis import strategies as st

MARKS = (
    *(b"\x00", b'"', b"'", b"\n", b"\r", b"\t", b"{", b"}", b"[", b"]", b": ", b",", b"- ", b"#"),
    *(
        b"null",
        b"true",
        b"-1",
        b"1e999",
        b"NaN",
        b"nan",
        b".nan",
        b"9" * 25,
        b"0x10",
        b"2020-01-01",
    ),
    *(b"\\ud800", b'"\\ud800"', b"\xef\xbb\xbf", b"\xff\xfe", b"\x85", b"\xe2\x80\xa8"),
    *(b"&a ", b"*a", b"<<: ", b"!!python/name:os.system ", b"? ", b"---\n", b"|\n", b"[" * 50),
)
"""What means something to one of the formats."""


@st.composite
def damaged(draw: st.DrawFn, wholes: Sequence[bytes]) -> bytes:
    """One of `wholes` with one to four changes, or a few random bytes."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(("set", "put", "mark", "cut", "end", "double")))
        if change == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif change == "put":
            data[at:at] = draw(st.binary(max_size=4))
        elif change == "mark":
            data[at:at] = draw(st.sampled_from(MARKS))
        elif change == "cut":
            del data[at : at + draw(st.integers(1, 20))]
        elif change == "end":
            del data[at:]
        else:
            start = draw(st.integers(0, len(data)))
            data[at:at] = data[start : start + draw(st.integers(1, 60))]
    return bytes(data)


def damaged_or_random(wholes: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly damaged files, some that are nothing but random bytes."""
    return damaged(wholes) | damaged(wholes) | damaged(wholes) | st.binary(max_size=200)
