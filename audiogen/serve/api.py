"""The HTTP API: ask for sounds, and hear them while they are generated.

POST /api/generate           the fields of a request -> a WAV, as it is generated
POST /api/sounds             the same fields -> the ids of sounds that are generated one after another
GET  /api/sounds/ID.wav      one of them, as it is generated
"""

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, fields, replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from fastapi import APIRouter, Depends, File, HTTPException, Request, UploadFile
from fastapi import Form as FormField
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from ..errors import AudiogenError, ConfigError
from ..utils.json_files import parse_json
from .service import FILES, Asked, BusyError, Service, Sound

#: Seconds between looks at a sound that is being generated.
PAUSE = 0.02


class SoundInfo(BaseModel):
    """A sound: how far it is, and how to ask for it again."""

    id: str
    state: str
    error: str
    seconds: float
    seconds_made: float
    seconds_to_first_sound: float | None
    asked: dict[str, Any]
    conditions: dict[str, str]
    files: list[str]


@dataclass(frozen=True)
class Form:
    """The fields of a request as HTTP gives them: labels as JSON, and uploaded files."""

    asked: Asked
    labels: str
    uploads: Mapping[str, UploadFile | None]


def form_of(*left_out: str) -> Callable[..., Form]:
    """Return a dependency that reads a `Form`: one field for each of `Asked` and of `FILES`, but for those left out."""
    types, parameters = get_type_hints(Asked), []

    def add(name: str, kind: Any, default: Any, source: Any) -> None:
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, source]))

    for field in fields(Asked):
        if field.name not in left_out:
            kind, default = (str, "{}") if field.name == "labels" else (types[field.name], field.default)
            add(field.name, kind, default, FormField(description=field.metadata["about"]))
    for name, about in FILES.items():
        add(name, UploadFile | None, None, File(description=about))

    def read(**values: Any) -> Form:
        uploads = {name: values.pop(name) for name in FILES}
        labels = values.pop("labels")
        return Form(Asked(**values), labels, uploads)

    read.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]: FastAPI reads it
    return read


def make_api(service: Service) -> APIRouter:
    """Return the routes under /api."""
    router = APIRouter(prefix="/api")

    def submit(form: Form) -> list[Sound]:
        with tempfile.TemporaryDirectory(prefix="audiogen-", ignore_cleanup_errors=True) as temporary:
            files = {}
            for name in FILES:
                upload = form.uploads[name]
                if upload is not None and (upload.filename or upload.size):
                    files[name] = Path(temporary, name, "sound")  # of the client's names, none is used
                    files[name].parent.mkdir()
                    with open(files[name], "wb") as out:
                        shutil.copyfileobj(upload.file, out)
            return submit_in_http(service, form.asked, form.labels, files)

    @router.get("/run")
    def run() -> dict[str, Any]:
        """Describe the run: its labels with their values, what it can follow, its defaults, and the limits."""
        return service.describe()

    @router.post("/sounds", status_code=202)
    def sounds(form: Annotated[Form, Depends(form_of())]) -> list[SoundInfo]:
        """Ask for sounds, and return at once; listen to them at /api/sounds/ID.wav."""
        return [SoundInfo(**sound.describe()) for sound in submit(form)]

    @router.post("/generate", response_class=StreamingResponse, responses={200: {"content": {"audio/wav": {}}}})
    async def generate(request: Request, form: Annotated[Form, Depends(form_of("num"))]) -> StreamingResponse:
        """Generate one sound, and send the WAV while it is generated; its seed is in the header X-Seed."""
        (sound,) = await asyncio.to_thread(submit, form)
        try:
            return await _wav(sound, request, owned=True)
        except BaseException:
            sound.cancelled = True
            raise

    @router.head("/sounds/{id}.wav", include_in_schema=False)
    @router.get("/sounds/{id}.wav", response_class=StreamingResponse)
    async def wav(id: str, request: Request) -> StreamingResponse:
        """Send the WAV of a sound while it is generated; parts of it by the header Range."""
        return await _wav(_found(service, id), request)

    @router.get("/sounds/{id}")
    def sound(id: str) -> SoundInfo:
        """Say how far a sound is, and how to ask for it again."""
        return SoundInfo(**_found(service, id).describe())

    @router.delete("/sounds/{id}", status_code=204)
    def cancel(id: str) -> None:
        """Stop the generation of a sound."""
        service.cancel(_found(service, id))

    return router


def submit_in_http(service: Service, asked: Asked, labels: str, files: Mapping[str, Path]) -> list[Sound]:
    """Submit a request whose labels are JSON; raise what is wrong with it as an HTTP error."""
    try:
        return service.submit(replace(asked, labels=_parse_labels(labels)), files)
    except BusyError as error:
        raise HTTPException(503, str(error), {"Retry-After": "2"}) from error
    except AudiogenError as error:
        raise HTTPException(400, str(error)) from error


def _parse_labels(text: str) -> dict[str, str | None]:
    try:
        values = parse_json(text.encode())
    except ValueError as error:
        raise ConfigError(f"labels: is no JSON ({str(error)[:100]})") from error
    if not isinstance(values, dict):
        raise ConfigError('labels: must be a JSON object, such as {"lead": "harp"}')
    for name, value in values.items():
        if not isinstance(value, str | int | float | None):
            raise ConfigError(f"labels: the value of {name[:64]} must be a text, a number or null")
    return {name: None if value is None else str(value) for name, value in values.items()}


def _found(service: Service, id: str) -> Sound:
    sound = service.find(id)
    if sound is None:
        raise HTTPException(404, "there is no such sound, or not any more")
    return sound


async def _wav(sound: Sound, request: Request, owned: bool = False) -> StreamingResponse:
    """Answer with a WAV, once its first samples are there.

    Args:
        sound: the sound.
        request: the request, which may ask for a part.
        owned: whether the sound is to be cancelled when the client hangs up.
    """
    size = sound.num_bytes
    start, stop, status, headers = 0, size, 200, {"Accept-Ranges": "bytes"}
    headers |= {"X-Seed": str(sound.asked.seed), "X-Sound-Id": sound.id}
    if part := re.fullmatch(r"bytes=(\d{1,12})-(\d{0,12})", request.headers.get("range", "")):
        start, stop, status = int(part[1]), min(size, int(part[2] or size) + 1), 206
        if not start < stop:
            raise HTTPException(416, "there is no such part", {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers |= {"Content-Length": str(stop - start), "Content-Disposition": f'inline; filename="{_name(sound)}"'}
    while request.method == "GET" or owned:
        if sound.read(44, 1) or await request.is_disconnected():
            break
        if sound.ended:
            raise HTTPException(409, sound.error or "it was cancelled")
        await asyncio.sleep(PAUSE)

    async def body() -> AsyncIterator[bytes]:
        at = start
        try:
            while at < stop:
                if data := sound.read(at, min(1 << 16, stop - at)):
                    at += len(data)
                    yield data
                elif sound.ended:  # it failed; the client sees that bytes are missing
                    break
                else:
                    await asyncio.sleep(PAUSE)
        finally:
            if owned and at < stop:
                sound.cancelled = True

    return StreamingResponse(body(), status, headers, media_type="audio/wav")


def _name(sound: Sound) -> str:
    said = "-".join(re.sub(r"[^A-Za-z0-9]+", "", value)[:20] for value in sound.words.values())
    return "-".join(filter(None, ["sound", said[:60], str(sound.asked.seed)])) + ".wav"
