"""Definitions written out as slow loops, in another way than the library's, to compare it with."""


def layout(kind: str, num_rows: int, num_frames: int) -> list[list[int | None]]:
    """The frame at [row][step] of a pattern, None for a hole, written step by step as MusicGen describes them."""
    steps: list[list[int | None]]
    if kind == "parallel":
        steps = [[t] * num_rows for t in range(num_frames)]
    elif kind == "delay":
        steps = []
        if num_frames > 0:
            for s in range(num_frames + num_rows - 1):
                steps.append([s - k if 0 <= s - k < num_frames else None for k in range(num_rows)])
    elif kind == "flatten":
        steps = [
            [t if k == row else None for k in range(num_rows)] for t in range(num_frames) for row in range(num_rows)
        ]
    else:
        raise NotImplementedError(f"pattern {kind!r} has no slow definition: add it here")
    return [[step[k] for step in steps] for k in range(num_rows)]
