"""Readers and uploaders of the atlas, as a program of its own: `python atlas_load.py ADDRESS SECONDS FILE`.

Each of 50 readers opens the page of a random model, reads for a second, and opens the next. Each of 4 uploaders sends
the file, asks every half second whether it is traced, and sends it again. Prints one JSON object.
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path

import httpx

READERS, UPLOADERS, READING = 50, 4, 1.0

JSON = {"accept": "application/json"}


async def read(client: httpx.AsyncClient, names: list[str], end: float, seed: int, took: list[float]) -> int:
    """Open pages until the end; returns the number of failures."""
    r, failed = random.Random(seed), 0
    await asyncio.sleep(r.random() * READING)
    while time.perf_counter() < end:
        start = time.perf_counter()
        try:
            page = await client.get("/model", params={"name": r.choice(names)})
            failed += page.status_code != 200
        except httpx.HTTPError:
            failed += 1
        took.append(time.perf_counter() - start)
        await asyncio.sleep(READING)
    return failed


async def upload(client: httpx.AsyncClient, content: bytes, end: float, number: int, answers: list[float]) -> int:
    """Send a file until the end; returns the number of failures."""
    failed = 0
    while time.perf_counter() < end:
        start = time.perf_counter()
        try:
            asked = await client.post("/trace", files={"model": (f"{number}.safetensors", content)}, headers=JSON)
            if asked.status_code != 202:
                failed += 1
                await asyncio.sleep(1)
                continue
            while True:
                await asyncio.sleep(0.5)
                answer = await client.get(asked.json()["answer"], headers=JSON)
                if answer.status_code != 202:
                    break
            failed += answer.json().get("schema", {}).get("name") != "stemma.trace"
        except httpx.HTTPError:
            failed += 1
        answers.append(time.perf_counter() - start)
    return failed


async def main(address: str, seconds: float, file: Path) -> None:
    """Load the atlas, and print what was measured."""
    limits = httpx.Limits(max_connections=READERS + UPLOADERS + 4, max_keepalive_connections=READERS + UPLOADERS + 4)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
        names = (await client.get("/tree/drawing")).json()["names"]
        took: list[float] = []
        answers: list[float] = []
        end = time.perf_counter() + seconds
        content = file.read_bytes()
        failed = await asyncio.gather(
            *(read(client, names, end, i, took) for i in range(READERS)),
            *(upload(client, content, end, i, answers) for i in range(UPLOADERS)),
        )
    took.sort()
    print(json.dumps({
        "readers": READERS, "uploaders": UPLOADERS, "seconds": seconds, "pages": len(took), "uploads": len(answers),
        "failures": sum(failed), "upload_bytes": len(content),
        "page_ms": {q: round(1000 * took[min(int(p * len(took)), len(took) - 1)], 1)
                    for q, p in (("median", 0.5), ("p95", 0.95), ("p99", 0.99), ("worst", 1.0))},
        "upload_to_answer_s": round(sum(answers) / max(len(answers), 1), 1),
    }))  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])))
