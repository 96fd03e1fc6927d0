"""A provider on loopback that answers after a while, many questions at a time: OpenAI's protocol and Gemini's.

python -m bench._provider PORT_FILE SECONDS SHARE_OF_429
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path

from aiohttp import web
from tests.support.chat_server import Answer, ChatServer, GeminiServer


async def serve(port_file: Path, seconds: float, refused: float) -> None:
    """Serves until it is killed; `/seen` tells when the first question came, and when the last answer went."""
    rng = random.Random(0)
    seen: dict[str, float] = {"first": 0.0, "last": 0.0, "answers": 0, "refusals": 0}

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        seen["first"] = seen["first"] or time.monotonic()
        if rng.random() < refused:
            seen["refusals"] += 1
            return web.json_response({"error": {"code": 429, "message": "slow down"}}, status=429)
        await asyncio.sleep(seconds)
        seen["last"] = time.monotonic()
        seen["answers"] += 1
        gemini = "generateContent" in request.path
        if gemini:
            return web.json_response(GeminiServer.completion({}, Answer()))
        return web.json_response(ChatServer.completion({"model": json.loads(body)["model"]}, Answer()))

    async def told(_: web.Request) -> web.Response:
        return web.json_response(seen)

    app = web.Application(client_max_size=2**26)
    app.router.add_get("/seen", told)
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    temporary = port_file.with_suffix(".tmp")
    temporary.write_text(str(runner.addresses[0][1]))
    temporary.replace(port_file)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
