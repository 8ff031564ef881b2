"""Generate with a run in the browser and over HTTP: `audiogen serve RUN`.

`service` queues requests and holds what they make; it knows neither HTTP nor a page. `api` offers it over HTTP, `page`
in the browser, and `app` puts both behind the same `guard`.
"""
