# app.py
import os
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.responses import HTMLResponse

from minicelery.contrib.fastapi import lifespan, task_router, unavailable
from minicelery.exceptions import OperationalError
from tasks import greet, queue, report

API_TOKEN = os.environ.get("API_TOKEN", "secret")


async def signed_in(x_token: Annotated[str, Header()] = ""):
    if x_token != API_TOKEN:
        raise HTTPException(401, "send the header X-Token")


site = FastAPI(lifespan=lifespan(queue))
site.add_exception_handler(OperationalError, unavailable)  # 503 where Redis is away

# GET /tasks/{id}, GET /tasks/{id}/events; POST /tasks/tasks.report with a token
site.include_router(task_router(queue, allow=["tasks.report"], call_dependencies=[Depends(signed_in)]))


@site.post("/reports", status_code=202)
async def order_report(pages: int = 3):
    """Answers at once; the worker takes a second for each page."""
    result = await report.adelay(pages)
    return {"id": result.id, "state": f"/tasks/{result.id}", "events": f"/tasks/{result.id}/events"}


@site.get("/hello/{name}")
async def hello(name: str):
    """Waits for its task, and serves others meanwhile."""
    result = await greet.adelay(name)
    return {"text": await result.aget(timeout=10)}


@site.get("/", response_class=HTMLResponse)
async def page():
    return PAGE


PAGE = """<!doctype html>
<title>Reports</title>
<button>Order a report of 5 pages</button> <progress max="100" value="0"></progress> <output></output>
<script>
const find = name => document.querySelector(name)
find("button").onclick = async () => {
  const order = await (await fetch("/reports?pages=5", {method: "POST"})).json()
  const events = new EventSource(order.events)
  events.addEventListener("state", event => {
    const task = JSON.parse(event.data)
    find("progress").value = task.ready ? 100 : task.progress?.percent ?? 0
    find("output").value = task.ready ? JSON.stringify(task.result ?? task.error) : task.state
    if (task.ready) events.close()
  })
}
</script>
"""
